"""The nouns that travel: what a viewer's stream is opened with, and one block of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Opening:
    """Starts a session on every stage. `tensors` is opaque to the runtime (picture and prompt, as latents and features)."""

    session: int
    tensors: Tensors
    params: dict[str, int | float | str | bool] = field(default_factory=dict)


@dataclass
class Block:
    """One block in flight. The runtime reads the header only; the model reads `x` and `condition`."""

    session: int
    epoch: int  # grows with every interruption; blocks of an older epoch are dropped
    index: int  # block number since the session opened, never reset
    pts: int  # first audio sample that this block shows, at 16 kHz
    frames: int  # video frames of it to keep, counted from its first
    x: torch.Tensor  # latent [16, 3, h, w] between steps; uint8 frames [12, H, W, 3] after the decoder
    condition: Tensors = field(default_factory=dict)  # audio tokens; a new sink, when this block is the first to need it
    last: bool = False  # the segment ends with this block


@dataclass(frozen=True)
class Closing:
    """Ends a session on every stage and frees its caches."""

    session: int


PITCH = 16  # bytes: a row of quantized values is padded to a multiple


def kv_pair(
    size_LNHd: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device | str, quantized_dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty keys and values [layers, slots, heads, width]. With a `quantized_dtype` of one byte both have it, and the slots of a channel
    of values are adjacent in memory, as 8-bit tensor cores read them."""
    keys = torch.zeros(size_LNHd, dtype=quantized_dtype or dtype, device=device)
    if quantized_dtype is None:
        return keys, torch.zeros_like(keys)
    layers, slots, heads, width = size_LNHd
    values_LHdN = torch.zeros((layers, heads, width, -(-slots // PITCH) * PITCH), dtype=quantized_dtype, device=device)
    return keys, values_LHdN[..., :slots].permute(0, 3, 1, 2)


@dataclass
class KVCache:
    """Keys and values of one denoising step of one session: layers, slots, heads, head width. C slots of the sink (reference and motion
    tokens), then a ring of S = window_blocks * block tokens: one range, N = C + S, however full the ring is."""

    k_LNHd: torch.Tensor  # rotated: of the ring at absolute positions, of the sink by every forward anew
    v_LNHd: torch.Tensor
    sink_k_LCHd: torch.Tensor  # un-rotated, as their position rolls with the block

    @property
    def sink(self) -> int:
        """Slots before the ring."""
        return self.sink_k_LCHd.shape[1]

    @property
    def k_LSHd(self) -> torch.Tensor:
        """The ring's part, a view, as the next two."""
        return self.k_LNHd[:, self.sink :]

    @property
    def v_LSHd(self) -> torch.Tensor:
        return self.v_LNHd[:, self.sink :]

    @property
    def sink_v_LCHd(self) -> torch.Tensor:
        return self.v_LNHd[:, : self.sink]

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(k_NHd, v_NHd) for one forward to write into and to attend to."""
        return self.k_LNHd[index], self.v_LNHd[index]

    def prime(self, k_LCHd: torch.Tensor, v_LCHd: torch.Tensor) -> None:
        """Take over a sink, its keys un-rotated."""
        self.sink_k_LCHd.copy_(k_LCHd)
        self.sink_v_LCHd.copy_(v_LCHd)
