"""Mixed precision: bfloat16 only where the processor multiplies it natively; emulated, it is slower than float32."""

from __future__ import annotations

import torch


def multiplies_bfloat16(device: str) -> bool:
    """Whether the device ("cpu", "cuda", "cuda:1") multiplies bfloat16 natively."""
    return not device.startswith("cpu") or torch.cpu._is_avx512_bf16_supported()


def autocast(device: str) -> torch.autocast:
    """bfloat16 where it is native, else float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=multiplies_bfloat16(device))
