"""One denoising step of one block, captured and replayed as the runtime does it, with the ring full.

    python -m pytest bench/step/bench_step.py -k "test_step" --attention auto,gluon-e4m3

The 14B model at 704x384 on a GPU, a tiny one on a CPU; weights are random (bench/stream/random14b.py). A row is named by the dtype of its
GEMMs and its attention (bench/attention.py), as in `fp8-gluon-e4m3`. The share of the peak counts GEMMs and attention, each at the ceiling
of its own precision as measured in this process.

In 8 bits a row has the error of its velocity against the same weights in bfloat16 over the same keys and values, `error_of_one_layer` that
of bfloat16 against float32: norms of the difference over norms of the better one. `step_reference` is the step of plain torch, launched op
by op, `step_compiled` the same with every block through torch.compile.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from bench.attention import deployment, parametrize, select
from bench.peaks import device, device_name, peaks
from bench.rows import commit
from bench.step.captured import CFG, SIGMAS, Inputs, make_inputs, quantize_cache, step
from bench.stream.random14b import LATENT, ON_GPU, random_dit
from bench.timing import compiled
from tests.runtime.launches import predicted

from everface.core.config import DiTConfig
from everface.kernels import launch
from everface.networks.transformer.dit import DiT, cache_shape
from everface.networks.transformer.linear import Residual, RowLinear
from everface.weights.quantize import AUDIO_ROWS, FP8_ATTENTION, FP8_DTYPES, ROWS, quantize_for_dtype

FUSED = (
    "fused.gate_norm_modulate.runs_triton",
    "fused.norm_rope.runs_triton",
    "fused.qk_norm_rope_store.runs_triton",
    "fused.qk_norm_rope_quantize.runs_triton",
    "fused.audio_inject.runs_triton",
    "fused.flow_step.runs_triton",
    "attention.cross.runs_attention",
    "attention.self_attention.runs_attention",
    "attention.self_attention.runs_fp8_attention",
)  # what decides whether an op runs its kernel
VARIANTS: dict[str, tuple[Any, str]] = {
    "gelu-in-epilogue": (RowLinear, "gelu_in_epilogue"),
    "programmatic-launch": (launch, "PROGRAMMATIC_LAUNCH"),
}


def eager(dit: DiT, given: Inputs) -> torch.Tensor:
    """The same step, launched op by op."""
    return dit.step(given.x, *SIGMAS, *given[1:])


@torch.inference_mode()
def trace(dit: DiT, given: Inputs) -> list[torch.Tensor]:
    """The stream after every block, then the velocity, of one forward launched op by op."""
    after: list[torch.Tensor] = []

    def watching(stream: Callable[..., Residual]) -> Callable[..., Residual]:
        def watched(*args: Any) -> Residual:
            r = stream(*args)
            after.append(r.value().clone())
            return r

        return watched

    with contextlib.ExitStack() as stack:
        for block in dit.transformer_blocks():
            stack.enter_context(patch.object(block, "stream", watching(block.stream)))
        velocity = dit.tokens(*given)
    return [*after, velocity]


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """The norm of the difference over that of `want`."""
    return float((got.float() - want.float()).norm() / want.float().norm())


@contextlib.contextmanager
def references() -> Iterator[None]:
    """Every op as its reference, on a GPU too."""
    with contextlib.ExitStack() as stack:
        for name in FUSED:
            stack.enter_context(patch(f"everface.kernels.{name}", lambda *_: False))
        yield


def flops(cfg: DiTConfig, tokens: int, sink: int) -> dict[str, float]:
    """Of one step by part: GEMMs of the blocks, GEMMs of the audio, self-attention, attention to the text."""
    d, layers, injected = cfg.dim, cfg.num_layers, len(cfg.audio_inject_layers)
    rows = 2 * tokens * d * (6 * d + 2 * cfg.ffn_dim) * layers
    keys, scores = cfg.window_blocks * tokens + sink, 4 * tokens * d * layers
    return {"blocks": rows, "audio": 2 * tokens * d * 2 * d * injected, "attention": scores * keys, "text": scores * cfg.text_len}


def record(benchmark: Any, call: Callable[[], object], dtype: str, **info: object) -> None:
    """Time the call and note its share of the machine's peak."""

    def once() -> None:
        call()
        if ON_GPU:
            torch.cuda.synchronize()

    once()
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()  # of what was quantized before
    benchmark.pedantic(once, rounds=20 if ON_GPU else 3, warmup_rounds=3 if ON_GPU else 1)
    (rows, cols), tokens = (LATENT[0] // 2, LATENT[1] // 2), 3 * LATENT[0] * LATENT[1] // 4
    cost = flops(CFG, tokens, cache_shape(CFG, *LATENT)[1][1])
    benchmark.extra_info.update(
        gpu=device_name(), commit=commit(), shape=f"{CFG.num_layers} layers, 3x{rows}x{cols} tokens of {CFG.dim}", dtype=dtype,
        tflop={name: n / 1e12 for name, n in cost.items()}, **info,
    )  # fmt: skip
    if ON_GPU:
        benchmark.extra_info.update(memory_gb=torch.cuda.max_memory_allocated() / 1e9)
    if benchmark.stats is None:  # --benchmark-disable
        return
    ceilings = peaks()
    half, eighth = ceilings["bf16"], ceilings.get("fp8", ceilings["bf16"])
    gemms = eighth if dtype in FP8_DTYPES else half
    at = {"blocks": gemms, "audio": gemms, "attention": eighth if dtype == FP8_ATTENTION else half, "text": half}
    least_s, step_s = sum(n / at[name] for name, n in cost.items()), benchmark.stats.stats.median
    benchmark.extra_info.update(step_ms=1e3 * step_s, percent_of_peak=100 * least_s / step_s, peaks=ceilings)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc)


def test_step(benchmark: Any, gemms: str, attention: str) -> None:
    chosen = deployment(gemms, attention, device().type)
    info: dict[str, Any] = select(chosen, CFG.head_dim)
    dit = random_dit(CFG, device())
    given = make_inputs(dit)
    if chosen.dtype in FP8_DTYPES:
        select(deployment("bf16", "auto", device().type), CFG.head_dim)  # of the better one that errors are measured against
        want = trace(dit, given)
        select(chosen, CFG.head_dim)
        with torch.no_grad():
            quantize_for_dtype(dit, chosen.dtype)
        given = quantize_cache(dit, given)
        errors = [relative_error(a, b) for a, b in zip(trace(dit, given), want, strict=True)]
        worst = max(range(CFG.num_layers), key=lambda i: errors[i])
        info |= {"error_against_bf16": errors[-1], "worst_layer": worst, "error_by_layer": errors[:-1], "quantized": [*ROWS, *(f"audio {name}" for name in AUDIO_ROWS)]}
        del want
    with torch.inference_mode():
        run = step(dit, given)
        assert run().isfinite().all()
        record(benchmark, run, chosen.dtype, used=given.position.used, attention=attention, **info)
    benchmark.extra_info["launches_predicted"] = predicted(CFG, *LATENT, chosen.dtype).total()


def median_ms(call: Callable[[], object], rounds: int = 10) -> float:
    """Of a call, until the GPU has done it."""
    times: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        if ON_GPU:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant(benchmark: Any, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step in fp8 with one thing done the other way. `without_ms`: as it is, before and after, over the same weights."""
    select(deployment("fp8", "auto", device().type), CFG.head_dim)
    dit = random_dit(CFG, device())
    with torch.inference_mode():
        quantize_for_dtype(dit, "fp8")
        given = make_inputs(dit)
        plain = step(dit, given)
        want, before_ms = plain().clone(), median_ms(plain)
        monkeypatch.setattr(*VARIANTS[variant], True)
        other = step(dit, given)
        error = relative_error(other(), want)
        record(benchmark, other, "fp8", variant=variant, error_against_plain=error)
        benchmark.extra_info.update(without_ms=[before_ms, median_ms(plain)])


def test_error_of_one_layer(benchmark: Any) -> None:
    """bfloat16 through the kernels against float32 through the references, one layer with audio and the same keys."""
    cfg = replace(CFG, num_layers=1, audio_inject_layers=(0,))
    dit = random_dit(cfg, device())
    given = make_inputs(dit)
    got = trace(dit, given)
    exact = random_dit(cfg, "meta", torch.float32).to_empty(device=device())
    exact.load_state_dict(dit.state_dict())
    same = make_inputs(exact)
    with torch.inference_mode():
        for into, source in zip(same.cache.tensors, given.cache.tensors, strict=True):
            into.copy_(source)
        same.x.copy_(given.x)
    with references():
        want = trace(exact, same)
    error = relative_error(got[-1], want[-1])
    assert error < 0.05
    with torch.inference_mode():
        benchmark.pedantic(lambda: dit.tokens(*given), rounds=1)
    benchmark.extra_info.update(
        gpu=device_name(), commit=commit(), shape=f"1 layer, {CFG.dim}", dtype="bf16", error_against_float32=error,
        error_of_stream=relative_error(got[0], want[0]),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["step_reference", "step_compiled"])
def test_baseline(benchmark: Any, kind: str) -> None:
    dit = random_dit(CFG, device())
    given = make_inputs(dit)
    with references(), torch.inference_mode():
        if kind == "step_compiled":
            streams = compiled(type(dit.transformer_blocks()[0]).stream)
            for block in dit.transformer_blocks():
                vars(block)["stream"] = partial(streams, block)
        call = lambda: eager(dit, given)  # noqa: E731 timed and checked as one call
        assert call().isfinite().all()
        record(benchmark, call, "bfloat16")
