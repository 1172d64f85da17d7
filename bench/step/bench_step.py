"""One denoising step of one block, captured and replayed as the runtime does it, with the ring full.

    python -m pytest bench/step/bench_step.py -k "bf16 or fp8" --benchmark-json FILE

The 14B model at 704x384 on a GPU, a tiny one on a CPU; weights are random (bench/stream/random14b.py). The share of the peak counts the
GEMMs, each at the ceiling of its own precision as measured in this process; attention is bfloat16 but in
`step_fp8_attention`.

`step_fp8` and `step_fp8_attention` also report the error of their velocity against the same weights in bfloat16 over the same keys and
values, `error_of_one_layer` that of bfloat16 against float32: norms of the difference over norms of the better one. `step_reference` is the
step of plain torch, launched op by op, `step_compiled` the same with every block through torch.compile.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from bench.peaks import device, device_name, peaks
from bench.stream.random14b import CONFIG, LATENT, ON_GPU, random_dit
from bench.timing import commit, compiled, count_launches
from tests.runtime.launches import predicted

from everface.core.config import DiTConfig
from everface.kernels.fused.row_primitives import to_e4m3
from everface.networks.transformer.dit import BlockPosition, DiT, StepMod, cache_shape
from everface.networks.transformer.kv_cache import KVCache
from everface.networks.transformer.layers import AudioKV, TextKV
from everface.networks.transformer.linear import Residual
from everface.networks.transformer.rope import Rope
from everface.runtime.cuda_graph import CapturedGraph, GraphPool
from everface.weights.quantize import FP8_ATTENTION, FP8_DTYPES, ROWS, quantize_for_dtype

CFG = CONFIG.dit
FULL = CFG.window_blocks - 1  # the first block that finds the ring full
SIGMAS, TIME = (0.8577, 0.602), 857.7
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
KINDS = {"step_bf16": "bfloat16", "step_fp8": "fp8", "step_fp8_attention": "fp8-attention"}


class Inputs(NamedTuple):
    """Inputs of a step besides the weights."""

    x: torch.Tensor
    mod: StepMod
    text_kv: list[TextKV]
    audio_kv: list[AudioKV]
    cache: KVCache
    rope: Rope
    position: BlockPosition  # numbers


@torch.inference_mode()
def make_inputs(dit: DiT) -> Inputs:
    """A full ring of random keys and values, random text and audio."""
    (h, w), cfg = LATENT, dit.cfg
    torch.manual_seed(3)
    with torch.device(device()):
        text_kv = dit.text_kv(dit.embed_text(torch.randn(cfg.text_len, cfg.text_dim)))
        audio_kv = dit.audio_kv(torch.randn(3, cfg.num_audio_token + 1, cfg.dim), torch.randn(3, cfg.dim))
        cache, rope = dit.new_cache(h, w), dit.rope((h // 2, w // 2))
        for part in vars(cache).values():
            part.normal_()
        x = torch.randn(16, 3, h, w).to(dit.dtype)
        position = dit.block_position((h // 2, w // 2), 8 + FULL, 17)
        return Inputs(x, dit.modulations(dit.time(TIME)), dit.stream_text_kv(text_kv), audio_kv, cache, rope, position)


@torch.inference_mode()
def quantize_cache(dit: DiT, given: Inputs) -> Inputs:
    """The same keys and values quantized as the attention of this model reads them, a layer at a time."""
    cache, codings = dit.new_cache(*LATENT), dit._qkv_scales()
    for layer, c in enumerate(codings):
        for part, factor_H in (("k_LNHd", 1 / c.k_scale_H), ("v_LNHd", c.v_factor_H), ("sink_k_LCHd", 1 / c.k_scale_H)):
            x, kept = getattr(given.cache, part)[layer] * factor_H[:, None], getattr(cache, part)[layer]
            kept.copy_(to_e4m3(x) if kept.dtype == dit.quantized_dtype else x)
    return given._replace(cache=cache) if codings else given


def step(dit: DiT, given: Inputs) -> Callable[[], torch.Tensor]:
    """The captured step as a call; it copies its input in, as the runtime does."""
    _, mod, text_kv, audio_kv, cache, rope, position = given

    def function(used: int, x: torch.Tensor, **where: Any) -> tuple[torch.Tensor, ...]:
        return (dit.step(x, *SIGMAS, mod, text_kv, audio_kv, cache, rope, BlockPosition(**where, used=used)),)

    positions = {name: torch.zeros((), dtype=torch.int64, device=device()) for name in ("first", "sink", "start")}
    captured = CapturedGraph(function, {"x": given.x.clone(), **positions}, GraphPool(device()))
    numbers = {name: getattr(position, name) for name in positions}
    return lambda: captured.run(position.used, x=given.x, **numbers)[0]


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
    """Of one step by part: GEMMs of ROWS, other GEMMs, attention."""
    d, layers, injected = cfg.dim, cfg.num_layers, len(cfg.audio_inject_layers)
    rows = 2 * tokens * d * (6 * d + 2 * cfg.ffn_dim) * layers
    keys = cfg.window_blocks * tokens + sink + cfg.text_len
    return {"rows": rows, "rest": 2 * tokens * d * 2 * d * injected, "attention": 4 * tokens * keys * d * layers}


def record(benchmark: Any, call: Callable[[], object], dtype: str, **info: object) -> None:
    """Time the call and note its share of the machine's peak."""

    def once() -> None:
        call()
        if ON_GPU:
            torch.cuda.synchronize()

    once()
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
    at = {"rows": eighth if dtype in FP8_DTYPES else half, "rest": half, "attention": eighth if dtype == FP8_ATTENTION else half}
    least_s, step_s = sum(n / at[name] for name, n in cost.items()), benchmark.stats.stats.median
    benchmark.extra_info.update(step_ms=1e3 * step_s, percent_of_peak=100 * least_s / step_s, peaks=ceilings)


@pytest.fixture(autouse=True)
def room() -> Iterator[None]:
    """Frees what the bench before has left: two models of 14B and their rings are most of a device."""
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield


@pytest.mark.parametrize("kind", KINDS)
def test_step(benchmark: Any, kind: str) -> None:
    dtype, info = KINDS[kind], dict[str, Any]()
    dit = random_dit(CFG, device())
    given = make_inputs(dit)
    if dtype in FP8_DTYPES:
        want = trace(dit, given)
        with torch.no_grad():
            quantize_for_dtype(dit, dtype)
        given = quantize_cache(dit, given)
        errors = [relative_error(a, b) for a, b in zip(trace(dit, given), want, strict=True)]
        worst = max(range(CFG.num_layers), key=lambda i: errors[i])
        info |= {"error_against_bf16": errors[-1], "worst_layer": worst, "error_by_layer": errors[:-1], "quantized": list(ROWS)}
        del want
    with torch.inference_mode():
        run = step(dit, given)
        assert run().isfinite().all()
        info["launches"] = count_launches(run)
        record(benchmark, run, "bf16" if dtype == "bfloat16" else dtype, used=given.position.used, **info)
    benchmark.extra_info["launches_predicted"] = predicted(CFG, *LATENT, dtype).total()
    benchmark.extra_info["launches"] = info["launches"] or benchmark.extra_info["launches_predicted"]


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
        for into, source in zip(vars(same.cache).values(), vars(given.cache).values(), strict=True):
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
        record(benchmark, call, "bf16", launches=count_launches(call))
