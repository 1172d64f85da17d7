"""The JSON messages of `WS /v1/avatar/stream`, and the header of its binary messages."""

from __future__ import annotations

import struct
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from everface.core.errors import BadInput

MOST_JSON = 16_384  # characters of a control message
MOST_FAULT = 300  # characters
JPEG, PCM = 1, 2  # kinds of a binary message that the server sends where the client asked for jpeg
IDLE, HELD = 1, 2  # flags of a JPEG
HEADER = struct.Struct("<BBBxIq")  # kind, flags, channels, a byte of nothing, rate_hz, pts


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Start(_Message):
    """The first message. With image "upload", the next message is the image file, in binary."""

    type: Literal["start"]
    image: str = Field("ada", max_length=64, description="a name that GET /v1/avatar lists, or upload")
    format: Literal["fmp4", "jpeg"] = "fmp4"
    rate_hz: int = Field(16_000, ge=8_000, le=192_000)
    channels: int = Field(1, ge=1, le=2)
    encoding: Literal["s16le", "f32le"] = "s16le"
    prompt: str = Field("", max_length=2000)
    seed: int | None = Field(None, ge=0, lt=2**63)
    idle: bool = True
    paced: bool = True


class EndSegment(_Message):
    type: Literal["end_segment"]


class Interrupt(_Message):
    type: Literal["interrupt"]


class Change(_Message):
    """Another image (the next binary message where it is "upload") or prompt; with a transition a new shot, of the same if need be."""

    type: Literal["change"]
    image: str | None = Field(None, max_length=64)
    prompt: str | None = Field(None, max_length=2000)
    transition: Literal["cut", "dissolve"] | None = None


class UserAudioSwitch(_Message):
    """The binary messages that follow are what the person hears, for a model that listens; with on false they are its own speech again."""

    type: Literal["user_audio"]
    on: bool = True


class Close(_Message):
    """`drain`: first play what was sent."""

    type: Literal["close"]
    drain: bool = False


Control = Start | EndSegment | Interrupt | Change | UserAudioSwitch | Close
_CONTROL: TypeAdapter[Control] = TypeAdapter(Annotated[Control, Field(discriminator="type")])


def read_control(text: str) -> Control:
    """Parse one message. Raises BadInput with a sentence."""
    if len(text) > MOST_JSON:
        raise BadInput(f"a control message of {len(text)} characters is too long: send at most {MOST_JSON}, and audio as binary messages")
    try:
        return _CONTROL.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "message"
        fault = f"{where}: {first['msg']}"
        fault = fault if len(fault) <= MOST_FAULT else f"{fault[:MOST_FAULT]}..."  # it may repeat what came
        raise BadInput(f"this control message cannot be used ({fault}): see docs/serve.md") from None
    except RecursionError:
        raise BadInput("this control message is nested too deeply: see docs/serve.md") from None
