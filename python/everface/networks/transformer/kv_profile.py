"""Which keys the heads of a transformer need: a measured profile, and the choice that it makes.

Some heads look at the attention sink only, some at the newest frames only, and few need the whole ring. A profile has, for every head of every
layer and denoising step, the error that each choice of keys makes: with or without the sink, and the newest n latent frames of the ring. The
error is that of the residual: the mean square of what changes behind the output projection and the gate. A choice keeps a share of all keys
with the least sum of errors.

The share is that of every step, though the last one, which is short, could do with less: steps run on devices of their own, and the slowest
of them sets the pace. Where all run on one, the sampler skip-null leaves out the whole last step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from everface.core.config import TransformerConfig
from everface.core.errors import BadWeights
from everface.kernels.fused.qk_norm_rope_store import Start

BISECTIONS = 80
NEVER = 1e30  # the error of a head without a key
PRICES = (1e-30, 1e20)  # of a key, in errors; the highest leaves every head its cheapest range


@dataclass(frozen=True)
class KeptKeys:
    """What the heads of one denoising step attend to: the sink or not, and the newest frames of the ring."""

    sink_LH: torch.Tensor  # bool
    frames_LH: torch.Tensor  # int64

    def ranges(self, sink: int, frame: int, block: int, start: Start, used: int) -> torch.Tensor:
        """Ranges of slots, int32 [L, H, 3, 2], as block_causal reads them, on the device of the choice. Sizes are in slots: of the sink, of
        a latent frame, of the block whose slots begin at `start`; `used` are filled. Nothing is read on the host."""
        ring = used - sink
        kept_LH = (self.frames_LH * frame).clamp(max=ring)
        first_LH = start + (block - sink) - kept_LH  # of the ring; below 0 where the newest slots lie at both of its ends
        wrapped_LH = (-first_LH).clamp(min=0)
        none_LH = torch.zeros_like(kept_LH)
        rows = torch.stack((none_LH, sink + first_LH.clamp(min=0), used - wrapped_LH), -1)
        counts = torch.stack((self.sink_LH * sink, kept_LH - wrapped_LH, wrapped_LH), -1)
        return torch.stack((rows, counts), -1).to(torch.int32)

    def to(self, device: torch.device | str) -> KeptKeys:
        return KeptKeys(self.sink_LH.to(device), self.frames_LH.to(device))


@dataclass(frozen=True)
class KVProfile:
    """Of one checkpoint. `sink` and `frame` are the slots of the sink and of a latent frame at the size at which it was measured; F the latent
    frames of a full ring, B its blocks."""

    sink: int
    frame: int
    mass_SLHB: torch.Tensor  # share of the attention that goes to the sink, to the block itself, to the block before it ...
    error_SLH2F: torch.Tensor  # without and with the sink; 0 to F frames

    @property
    def frames(self) -> int:
        """Latent frames of a full ring."""
        return self.error_SLH2F.shape[-1] - 1

    @property
    def keys(self) -> int:
        """All keys of a head."""
        return self.sink + self.frames * self.frame

    def choose(self, keep: float) -> list[KeptKeys]:
        """For each step what its heads attend to: at most `keep` of all keys, as a mean over heads and layers, and the sum of errors as small
        as this allows. Every head keeps at least a frame or the sink, whatever the share."""
        return [self._choose(error_LH2F, keep) for error_LH2F in self.error_SLH2F]

    def share(self, kept: KeptKeys) -> float:
        """Of all keys, what a step keeps."""
        return float((kept.sink_LH * self.sink + kept.frames_LH * self.frame).double().mean()) / self.keys

    def _choose(self, error_LH2F: torch.Tensor, keep: float) -> KeptKeys:
        frames_F = torch.arange(self.frames + 1, dtype=torch.float64) * self.frame
        keys_2F = torch.stack((frames_F, frames_F + self.sink))

        def cheapest(price: float) -> KeptKeys:
            at_LH = (error_LH2F + price * keys_2F).flatten(-2).argmin(-1)
            return KeptKeys(at_LH >= self.frames + 1, at_LH % (self.frames + 1))

        low, high = PRICES
        for _ in range(BISECTIONS):
            price = (low * high) ** 0.5
            low, high = (low, price) if self.share(cheapest(price)) <= keep else (price, high)
        return cheapest(high)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; numbers to three digits."""
        return {"sink": self.sink, "frame": self.frame, "mass": _rounded(self.mass_SLHB), "error": _rounded(self.error_SLH2F)}

    @classmethod
    def from_dict(cls, raw: dict[str, Any], cfg: TransformerConfig, steps: int) -> KVProfile:
        """Raises BadWeights if it is not a profile of this model."""
        heads = (steps, cfg.num_layers, cfg.num_heads)
        try:
            sink, frame = int(raw["sink"]), int(raw["frame"])
            mass, error = (torch.tensor(raw[name], dtype=torch.float64) for name in ("mass", "error"))
        except (KeyError, TypeError, ValueError) as wrong:
            raise BadWeights(f"it is not a profile ({type(wrong).__name__}: {wrong})") from None
        fits = mass.shape == (*heads, 1 + cfg.window_blocks) and error.shape == (*heads, 2, 1 + cfg.window_blocks * cfg.block_frames)
        if not fits or min(sink, frame) < 1 or not bool(torch.isfinite(error).all()):
            raise BadWeights(f"it is the profile of another model, of {tuple(error.shape[:3])} steps, layers and heads instead of {heads}")
        return cls(sink, frame, mass, error)


def _rounded(x: torch.Tensor) -> Any:
    return [_rounded(part) for part in x] if x.ndim else float(f"{float(x):.3g}")
