"""What the runtime asks of a model: its roles, and one object a session. The model side implements this and registers itself.

A pipeline runs every block through the model's roles in order. What a role computes and what the tensors mean is the model's affair.
`everface.runtime.registry` finds a model by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from everface.core.errors import BadInput
from everface.runtime.messages import Block, CloseSession, OpenSession, Params, Tensors


@dataclass(frozen=True)
class RoleSpec:
    """One role of a pipeline, in the order in which a block meets them."""

    name: str
    cost: float = 1.0  # time a block, in any unit: the planner balances devices by it
    own_thread: bool = False  # inline placement: on a thread of its own, so that two blocks overlap


class Role(Protocol):
    """Keeps its own state per session; sees the blocks of a session in rising order. Called from one thread.

    `close` also comes to a role that failed to open, or that follows one that did; there is nothing to free then.
    """

    def open(self, opening: OpenSession) -> None: ...

    def run(self, block: Block) -> Block: ...

    def close(self, closing: CloseSession) -> None: ...


@runtime_checkable
class SettlingRole(Role, Protocol):
    """A role with work that a block's result does not wait for, but the next block does."""

    def settle(self, session: int) -> None:
        """Called after every `run` of the session, when its result is on its way."""
        ...


@runtime_checkable
class PartsRole(Role, Protocol):
    """A last role that can give out the frames of a block before it has made all of them."""

    def run_parts(self, block: Block) -> Iterator[Block]:
        """What `run` returns, in parts: each a Block with its own frames in `x`, `first`, and its own conditions."""
        ...


PIPELINE = "pipeline"  # of a spec: names the pipeline, where a process can have several; roles of one may share what they build


class Model(Protocol):
    """What a registered import path names."""

    def build_role(self, name: str, spec: dict[str, Any]) -> Role:
        """Build one role in the process where it will run. `spec` is plain JSON, with the role's "device" in it, and PIPELINE where a process has several."""
        ...


@dataclass(frozen=True)
class BlockFormat:
    """The sizes of a block of video and of the audio window that conditions it."""

    frames: int = 12
    first_frames: int | None = None  # of block 0, where it differs; after an interruption no block has this number again
    samples_per_frame: int = 640  # audio samples a video frame: sample_rate / frames per second
    sample_rate: int = 16_000  # Hz
    audio_channels: int = 1  # voices, each a condition of its own: audio is [channels, S], of a single one [S]
    user_audio: bool = False  # the second of two channels is what the person hears, which may be left out
    lookback_samples: int = 0  # audio before the block that its window includes
    lookahead_samples: int = 0  # audio after the block that its window includes
    history: int = 3  # delivered blocks to run again, when the roles have lost their state, to restore it: the last ones
    first_history: int = 0  # and before them the first ones of the session

    def samples(self, index: int) -> int:
        """Audio samples of block `index`."""
        frames = self.frames if index or self.first_frames is None else self.first_frames
        return frames * self.samples_per_frame

    @property
    def fps(self) -> int:
        """Video frames per second."""
        return self.sample_rate // self.samples_per_frame

    @property
    def block_s(self) -> float:
        return self.samples(1) / self.sample_rate


@dataclass(frozen=True, eq=False)
class Window:
    """The audio of one block [lookback + block + lookahead], and where the block stands."""

    audio_S: torch.Tensor  # float32, on the host; [audio_channels, S] if there are several
    pts: int  # first sample of the block
    frames: int  # video frames that show accepted audio
    last: bool  # the segment ends with this block
    turn: int


class SessionModel(Protocol):
    """The model's side of one session, in the process that owns it. The scheduler's thread calls it, unless said otherwise.

    What a model does not need, it leaves out: no block waits for another, no state changes, every result is valid.
    """

    format: BlockFormat
    remark: str = ""  # a sentence for who opened the session, about what was given for it last, such as an unsuitable image

    def initial_state(self) -> tuple[Tensors, Params]:
        """What every role needs to open the session."""
        ...

    def prepare(self, index: int, window: Window) -> Tensors:
        """Conditions of block `index` from its window of audio. From a worker thread, one call at a time, windows in order."""
        ...

    def interrupt(self, wanted: int) -> None:
        """The caller interrupted: it got nothing of the blocks from number `wanted` on, and the next ones are a new turn's."""

    def initial_x(self, index: int, retry: int) -> torch.Tensor:
        """What block `index` starts from. `retry` counts results of it that were invalid. Called with rising index."""
        ...

    def depends_on(self, index: int) -> int | None:
        """The block whose result must come back before block `index` may be sent, or None."""
        return None

    def update(self, index: int) -> Tensors | None:
        """State that every role must take over with block `index`, which is sent for the first time; None for no change."""
        return None

    def result(self, index: int, outputs: Tensors) -> None:
        """Block `index` came back with `outputs`, the last role's conditions: keep what later blocks need of it."""

    def invalid(self, outputs: Tensors) -> str | None:
        """Why a block with these outputs must be computed again, or None."""
        return None

    def change(self, *args: Any, **what: Any) -> Tensors:
        """The state update for a caller's wish, such as another image. From the caller's thread. Raises BadInput."""
        raise BadInput("this model lets nothing be changed within a session: open another")

    def cut(self, *args: Any, **what: Any) -> Tensors:
        """The state update for a new shot. From the caller's thread. Raises BadInput."""
        raise BadInput("this model has no cuts within a session: open another, and join the videos")

    def apply(self, update: Tensors, first: int | None) -> Tensors:
        """What `change` or `cut` returned comes into force. `first`: the block that begins the new shot, sent next; None for a change.
        Returns what to send."""
        return update
