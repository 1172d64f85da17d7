"""everface: a real-time runtime for Live Avatar. Audio goes in, video of a talking face comes out, without end.

    from everface import Avatar, StreamConfig

    with Avatar() as avatar, avatar.open("face.png", StreamConfig(seed=7)) as session:
        session.push_audio(audio_S)   # mono float32 at 16 kHz
        for block in session.poll():  # block.frames_THW3: uint8 at 25 fps; block.pts: the first audio sample it shows
            ...
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everface.avatar.avatar import Avatar
    from everface.avatar.this_machine import best_deployment
    from everface.core.config import Deployment, StreamConfig
    from everface.core.errors import EverfaceError
    from everface.runtime.events import Recovered, Recovering, SegmentEnd, VideoBlock
    from everface.runtime.session import Session

__version__ = "0.1.0"
__all__ = [
    "Avatar", "Deployment", "EverfaceError", "Recovered", "Recovering", "SegmentEnd", "Session", "StreamConfig", "VideoBlock",
    "best_deployment",
]  # fmt: skip

_HOMES = {
    "Avatar": "everface.avatar.avatar",
    "Deployment": "everface.core.config",
    "EverfaceError": "everface.core.errors",
    "Recovered": "everface.runtime.events",
    "Recovering": "everface.runtime.events",
    "SegmentEnd": "everface.runtime.events",
    "Session": "everface.runtime.session",
    "StreamConfig": "everface.core.config",
    "VideoBlock": "everface.runtime.events",
    "best_deployment": "everface.avatar.this_machine",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `everface --help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'everface' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
