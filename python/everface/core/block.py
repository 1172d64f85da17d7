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


PITCH = 16  # bytes: what a row of coded values is padded to


def kv_pair(size_LSHd: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device | str, codes: torch.dtype | None = None,
            *, turned: bool = True) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Empty keys and values [layers, slots, heads, width]. With a dtype of one byte for `codes` the values are such and lie with the
    slots of a channel side by side, as 8-bit tensor cores read them; so are the keys, but where they are yet to be `turned`."""
    keys = torch.zeros(size_LSHd, dtype=codes if codes and turned else dtype, device=device)
    if codes is None:
        return keys, torch.zeros(size_LSHd, dtype=dtype, device=device)
    layers, slots, heads, width = size_LSHd
    values_LHdS = torch.zeros((layers, heads, width, -(-slots // PITCH) * PITCH), dtype=codes, device=device)
    return keys, values_LHdS[..., :slots].permute(0, 3, 1, 2)


@dataclass
class KVCache:
    """Keys and values of one denoising step of one session. Layers, slots, heads, head width."""

    k_LSHd: torch.Tensor  # ring of window_blocks * block tokens, rotated at absolute positions
    v_LSHd: torch.Tensor
    sink_k_LCHd: torch.Tensor  # reference and motion tokens, un-rotated: their position rolls with the block
    sink_v_LCHd: torch.Tensor
