"""The decoder's part of a block: three latents to twelve frames of bytes, on warm caches.

    python -m pytest bench/step/bench_vae.py

The 14B model's VAE at 704x384 in bfloat16 on a GPU, captured in a CUDA graph (the runtime decodes without one, in as many parts as a session asks for); a tiny one on a CPU, where both ways are the
reference. Weights are random: time does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bench.peaks import device
from bench.timing import measure
from torch.utils.flop_counter import FlopCounterMode

from everface.core.config import VAEConfig
from everface.kernels.launch import Cost
from everface.kernels.video import causal_conv3d as conv
from everface.kernels.video import norm_silu as norm
from everface.kernels.video import to_rgb as rgb
from everface.kernels.video import upsample_conv as up
from everface.networks.video import vae_layers
from everface.networks.video.vae import VAE

ON_GPU = torch.cuda.is_available()
CONFIG = VAEConfig() if ON_GPU else VAEConfig(dim=8, decoder_blocks=(1, 1, 1, 1))
ROWS, COLS = (48, 88) if ON_GPU else (2, 3)
LATENTS, DTYPE = 3, torch.bfloat16 if ON_GPU else torch.float32
CONVOLUTIONS = ("causal_conv3d", "norm_silu_conv3d", "upsample_conv")  # as `vae_layers` calls them
RUNS = ((conv, "runs_kernel"), (up, "runs_kernel"), (norm, "runs_triton"), (rgb, "runs_triton"))


def counted(config: VAEConfig, rows: int, cols: int, itemsize: int) -> Cost:
    """Of one block: the flops of a decode over meta tensors; what every convolution is given (input, weight, past) and returns, once."""
    moved = 0

    def counting(op: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            nonlocal moved
            made = op(*given, **named)
            moved += sum(t.numel() for t in (*given, *(made if isinstance(made, tuple) else (made,))) if isinstance(t, torch.Tensor))
            return made

        return run

    with torch.device("meta"), torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        vae = VAE(config, encoder=False)
        stream = vae.warm_up(torch.empty(1, config.z_dim, 2, rows, cols))
        for name in CONVOLUTIONS:
            patch.setattr(vae_layers, name, counting(getattr(vae_layers, name)))
        with FlopCounterMode(display=False) as flops:
            vae.decode_stream(torch.empty(1, config.z_dim, LATENTS, rows, cols), stream)
    return Cost(flops.get_total_flops(), itemsize * moved)


@pytest.mark.parametrize("by", ["op", "torch"])
def test_vae_decode(benchmark: Any, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "torch":
        for module, name in RUNS:
            monkeypatch.setattr(module, name, lambda *_: False)
    vae = VAE(CONFIG, encoder=False).eval().requires_grad_(False).to(device(), DTYPE).channels_last()
    z = torch.randn(1, CONFIG.z_dim, LATENTS, ROWS, COLS, device=device()).to(DTYPE)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
        stream = vae.warm_up(z)
        cost = counted(CONFIG, ROWS, COLS, z.element_size())
        calls = [lambda: rgb.to_rgb(vae.decode_stream(z, stream)[0])]
        size, frames = f"{COLS * vae.stride_s}x{ROWS * vae.stride_s}", LATENTS * vae.stride_t
        measure(benchmark, calls, cost, launches=2, shape=f"{LATENTS}x{ROWS}x{COLS}", size=size, frames=frames, by=by)
    if benchmark.stats is not None:
        benchmark.extra_info.update(frames_per_s=frames * 1e6 / benchmark.extra_info["call_us"])
