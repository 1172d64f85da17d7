"""One denoising step of one block, captured and replayed as the runtime does it, with the ring full.

    python -m pytest bench/step/bench_step.py --benchmark-json FILE

The 14B model at 704x384 on a GPU, a tiny one on a CPU. Weights are random, scaled so that activations keep their size from layer to
layer: zeros draw less power and run faster than anything real. The share of the peak counts what must be multiplied, each product at
the ceiling of its own precision as measured in this process; attention is bfloat16 in both.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from bench.peaks import device, device_name, peaks
from bench.stopwatch import commit
from tests.runtime.launches import predicted

from everface.core.config import DiTConfig
from everface.model.dit import DiT, Place, cache_shape
from everface.runtime.graph import Shelf, Step
from everface.weights.quantize import ROWS, quantise_rows_of

ON_GPU = torch.cuda.is_available()
TINY = DiTConfig(
    dim=128, ffn_dim=256, freq_dim=32, num_heads=2, num_layers=3, text_dim=16, text_len=8, audio_dim=16, wav2vec_layers=1,
    audio_inject_layers=(0, 2),
)  # fmt: skip
CFG, LATENT = (DiTConfig(), (48, 88)) if ON_GPU else (TINY, (8, 8))
FULL = CFG.window_blocks - 1  # the first block that finds the ring full


@torch.no_grad()
def build(fp8: bool) -> DiT:
    """The model with random weights, drawn where they are used."""
    with torch.device("meta"):
        dit = DiT(CFG).bfloat16()
    dit.to_empty(device=device()).eval().requires_grad_(False)
    for name, p in dit.named_parameters():
        if p.dim() > 1 and "modulation" not in name:
            p.normal_(std=math.prod(p.shape[1:]) ** -0.5)
        elif name.endswith("bias"):
            p.zero_()
        elif "norm" in name or name.endswith("encoder.weights"):
            p.fill_(1)
        else:
            p.normal_(std=CFG.dim**-0.5)
    dit.fuse()
    if fp8:
        quantise_rows_of(dit)
    return dit


def flops(tokens: int, sink: int) -> dict[str, float]:
    """Of one step by part: products that ROWS names, other products, attention."""
    d, layers, injected = CFG.dim, CFG.num_layers, len(CFG.audio_inject_layers)
    rows = 2 * tokens * d * (6 * d + 2 * CFG.ffn_dim) * layers
    keys = CFG.window_blocks * tokens + sink + CFG.text_len
    return {"rows": rows, "rest": 2 * tokens * d * 2 * d * injected, "attention": 4 * tokens * keys * d * layers}


def step(dit: DiT) -> tuple[Step, dict[str, Any]]:
    """A step over a full ring of random keys, and the inputs of one run."""
    h, w = LATENT
    with torch.device(device()):
        text_kv = dit.text_kv(dit.embed_text(torch.randn(CFG.text_len, CFG.text_dim)))
        heard = dit.hear(torch.randn(3, CFG.num_audio_token + 1, CFG.dim), torch.randn(3, CFG.dim))
        cache, rope = dit.new_cache(h, w), dit.rope((h // 2, w // 2))
        for part in vars(cache).values():
            part.normal_()
        mod, reading = dit.modulations(dit.time(857.7)), dit.reading(text_kv)
        x = torch.randn(16, 3, h, w, dtype=dit.dtype)
        slots = {"x": x.clone(), **{name: torch.zeros((), dtype=torch.int64) for name in ("first", "sink", "start")}}

    def function(used: int, x: torch.Tensor, **place: Any) -> tuple[torch.Tensor, ...]:
        return (dit.step(x, 0.8577, 0.602, mod, reading, heard, cache, rope, Place(**place, used=used)),)

    first, sink, start, used = dit.place(3 * (h // 2) * (w // 2), 8 + FULL, 17)
    return Step(function, slots, Shelf(device())), {"key": used, "x": x, "first": first, "sink": sink, "start": start}


@pytest.mark.parametrize("kind", ["step_bf16", "step_fp8"])
@torch.inference_mode()
def test_step(benchmark: Any, kind: str) -> None:
    fp8 = kind == "step_fp8"
    dit = build(fp8)
    run, given = step(dit)

    def once() -> None:
        run.run(**given)
        if ON_GPU:
            torch.cuda.synchronize()

    once()
    assert run.run(**given)[0].isfinite().all()
    benchmark.pedantic(once, rounds=20 if ON_GPU else 3, warmup_rounds=3 if ON_GPU else 1)
    (rows, cols), tokens = (LATENT[0] // 2, LATENT[1] // 2), given["x"].shape[1] * LATENT[0] * LATENT[1] // 4
    work = flops(tokens, cache_shape(CFG, *LATENT)[1][1])
    with torch.inference_mode(False):
        launches = predicted(CFG, *LATENT, fp8=fp8).total()
    benchmark.extra_info.update(
        gpu=device_name(), commit=commit(), shape=f"{CFG.num_layers} layers, 3x{rows}x{cols} tokens of {CFG.dim}", used=given["key"],
        launches=launches, tflop={name: n / 1e12 for name, n in work.items()}, coded=list(ROWS) if fp8 else [],
    )  # fmt: skip
    if benchmark.stats is None:  # --benchmark-disable
        return
    ceilings = peaks()
    at = {"rows": ceilings.get("fp8", ceilings["bf16"]) if fp8 else ceilings["bf16"], "rest": ceilings["bf16"], "attention": ceilings["bf16"]}
    least_s, step_s = sum(n / at[name] for name, n in work.items()), benchmark.stats.stats.median
    benchmark.extra_info.update(step_ms=1e3 * step_s, percent_of_peak=100 * least_s / step_s, peaks=ceilings)
