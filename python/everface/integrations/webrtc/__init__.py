"""A live session for WebRTC players: `WhepEndpoint`, which a FastAPI or Starlette app mounts."""

from everface.integrations.extras import require

require("aiortc", "webrtc")

from everface.integrations.webrtc.whep import WhepEndpoint  # noqa: E402  the extra is checked first

__all__ = ["WhepEndpoint"]
