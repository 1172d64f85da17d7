"""A face for Pipecat bots: `EverfaceVideoService`, between the voice and the transport."""

from everface.integrations.extras import require

require("pipecat", "pipecat")

from everface.integrations.pipecat.video_service import EverfaceVideoService, video_params  # noqa: E402  the extra is checked first

__all__ = ["EverfaceVideoService", "video_params"]
