"""A face for LiveKit agents: `AvatarSession` in the agent, `AvatarWorker` in the room, `AvatarVideoGenerator` for any other AvatarRunner."""

from everface.integrations.extras import require

require("livekit.agents", "livekit")

from everface.integrations.livekit.avatar_session import AvatarSession  # noqa: E402  the extra is checked first
from everface.integrations.livekit.video_generator import AvatarVideoGenerator  # noqa: E402  the extra is checked first
from everface.integrations.livekit.worker import AvatarWorker  # noqa: E402  the extra is checked first

__all__ = ["AvatarSession", "AvatarVideoGenerator", "AvatarWorker"]
