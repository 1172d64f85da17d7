"""Keys and values of one denoising step of one session: an attention sink, then a ring of recent blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from everface.networks.transformer.kv_profile import KeptKeys

PITCH = 16  # bytes: what a row of quantized values is padded to


def kv_pair(
    size_LNHd: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device | str, quantized: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty keys and values [layers, slots, heads, width]. With a dtype of one byte for `quantized` both are quantized, and values lie with the
    slots of a channel side by side, as 8-bit tensor cores read them."""
    keys = torch.zeros(size_LNHd, dtype=quantized or dtype, device=device)
    if quantized is None:
        return keys, torch.zeros(size_LNHd, dtype=dtype, device=device)
    layers, slots, heads, width = size_LNHd
    values_LHdN = torch.zeros((layers, heads, width, -(-slots // PITCH) * PITCH), dtype=quantized, device=device)
    return keys, values_LHdN[..., :slots].permute(0, 3, 1, 2)


@dataclass
class KVCache:
    """Keys and values of one denoising step of one session: layers, slots, heads, head width. C slots of the sink (reference and motion
    tokens), then a ring of S = window_blocks * block tokens: one range, N = C + S, however full the ring is."""

    k_LNHd: torch.Tensor  # rotated: of the ring at absolute positions, of the sink by every forward anew
    v_LNHd: torch.Tensor
    sink_k_LCHd: torch.Tensor  # un-rotated, as their position rolls with the block
    kept: KeptKeys | None = None  # what each head attends to; None: to all

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All of them, without what is kept of them."""
        return self.k_LNHd, self.v_LNHd, self.sink_k_LCHd

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
