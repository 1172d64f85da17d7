"""everface: a real-time runtime for Live Avatar. Sound goes in, a talking face comes out, for ever.

    from everface import Avatar, StreamConfig

    with Avatar() as avatar, avatar.open("face.png", StreamConfig(seed=7)) as session:
        session.push(pcm)             # mono float32 at 16 kHz
        for block in session.poll():  # block.frames_THW3: uint8 at 25 fps; block.pts: the first sample it shows
            ...
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everface.avatar.avatar import Avatar
    from everface.core.config import Deployment, StreamConfig
    from everface.core.errors import EverfaceError
    from everface.runtime.events import FrameBlock, Recovered, Recovering, Segment
    from everface.runtime.session import Session

__version__ = "0.1.0"
__all__ = ["Avatar", "Deployment", "EverfaceError", "FrameBlock", "Recovered", "Recovering", "Segment", "Session", "StreamConfig"]

_HOMES = {
    "Avatar": "everface.avatar.avatar",
    "Deployment": "everface.core.config",
    "EverfaceError": "everface.core.errors",
    "FrameBlock": "everface.runtime.events",
    "Recovered": "everface.runtime.events",
    "Recovering": "everface.runtime.events",
    "Segment": "everface.runtime.events",
    "Session": "everface.runtime.session",
    "StreamConfig": "everface.core.config",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `everface --help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'everface' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
