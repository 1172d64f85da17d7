"""A captured step: what it launches, that it waits for nothing and repeats nothing, and, on a GPU, that a replay is the eager run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from tests.runtime.launches import Counted, predicted
from torch import nn

from everface.core.config import DiTConfig
from everface.kernels.attention import backend
from everface.networks.transformer.dit import BlockPosition, DiT
from everface.networks.transformer.kv_cache import KVCache
from everface.networks.transformer.layers import AudioKV
from everface.runtime.cuda_graph import CapturedGraph, GraphPool
from everface.weights.quantize import quantize_for_dtype

FIXED, LAYER, INJECTED = 24, 14, 5  # launches of a forward: once, a layer, a layer with sound
FP8_LAYER = 15  # one more: the input of o is quantized by itself; GELU is part of what quantizes that of the second FFN GEMM
MOST = 700  # launches of the 14B model, whatever its precision
SMALL = DiTConfig(
    dim=64, ffn_dim=96, freq_dim=32, num_heads=2, num_layers=3, text_dim=8, text_len=4, audio_dim=16, wav2vec_layers=1,
    audio_inject_layers=(0, 2),
)  # fmt: skip
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


class Rig(NamedTuple):
    """One step of one session over tensors that stay where they are; `eager` is the function that `step` captures."""

    dit: DiT
    cache: KVCache
    heard: list[AudioKV]
    step: CapturedGraph
    eager: Callable[..., tuple[torch.Tensor, ...]]


def rig(cfg: DiTConfig = SMALL, h: int = 8, w: int = 8, dtype: torch.dtype = torch.float32, kind: str = "") -> Rig:
    torch.manual_seed(4)
    with torch.device(DEVICE):
        dit = DiT(cfg).to(dtype).eval().requires_grad_(False).fuse()
        quantize_for_dtype(dit, kind)
        text_kv = dit.text_kv(dit.embed_text(torch.randn(3, cfg.text_dim)))
        heard = dit.audio_kv(torch.randn(3, cfg.num_audio_token + 1, cfg.dim), torch.randn(3, cfg.dim))
        cache = dit.new_cache(h, w)
        sink = dit.prefill_sink(torch.randn(16, 1, h, w).to(dtype), torch.randn(16, 19, h, w).to(dtype), text_kv)
        cache.prime(*sink)
        mod, reading, rope = dit.modulations(dit.time(857.7)), dit.stream_text_kv(text_kv), dit.rope((h // 2, w // 2))

        def eager(used: int, x: torch.Tensor, **place: int | torch.Tensor) -> tuple[torch.Tensor, ...]:
            first, sink, start = (place[n] for n in ("first", "sink", "start"))
            return (dit.step(x, 0.8577, 0.602, mod, reading, heard, cache, rope, BlockPosition(first, sink, start, used)),)

        slots = {"x": torch.zeros(16, 3, h, w, dtype=dtype)}
        slots |= {name: torch.zeros((), dtype=torch.int64) for name in ("first", "sink", "start")}
    return Rig(dit, cache, heard, CapturedGraph(eager, slots, GraphPool(DEVICE)), eager)


def inputs(r: Rig, block: int) -> dict[str, torch.Tensor | int]:
    x = r.step.slots["x"]
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(block)).to(x)
    first, sink, start, used = r.dit.block_position(r.dit.grid(x), block, 7)
    return {"key": used, "x": drawn, "first": first, "sink": sink, "start": start}  # type: ignore[dict-item]  an int and tensors


def test_the_released_model_stays_within_its_launches() -> None:
    cfg = DiTConfig()
    launches = predicted(cfg, 88, 48)
    assert launches.total() == FIXED + LAYER * 40 + INJECTED * 12 <= MOST, launches
    for dtype in ("fp8", "fp8-attention"):
        coded = predicted(cfg, 88, 48, dtype)
        assert coded.total() == FIXED + FP8_LAYER * 40 + INJECTED * 12 <= MOST, coded
        assert coded["_scaled_mm"] + coded["fp8_linear_rows"] == 6 * 40 + 2 * 12 and coded["addmm"] == 2
        assert coded["block_causal_fp8"] == coded["qk_norm_rope_quantize"] == (40 if dtype == "fp8-attention" else 0)


@pytest.mark.parametrize(("layers", "injected"), [(2, ()), (3, (1,)), (3, (2,)), (4, (0, 1, 3))])
def test_launches_are_a_sum_over_layers(layers: int, injected: tuple[int, ...]) -> None:
    cfg = DiTConfig(num_layers=layers, audio_inject_layers=injected)
    assert predicted(cfg, 16, 16).total() == FIXED + LAYER * layers + INJECTED * len(injected)


def constants(dit: DiT) -> dict[int, str]:
    """Storages that a step may not read, as what is made from them never changes for a step, a session, or a block."""
    prefixes = ("time_", "text_embedding", "casual_audio_encoder", "frame_packer")
    parts = (".modulation", "cross_attn.k.", "cross_attn.v.", "cross_attn.norm_k", "_adain_layers.")
    sound = tuple(f"injector.{i}.{leaf}" for i in range(2) for leaf in ("k.", "v.", "norm_k."))
    return {
        tensor.untyped_storage().data_ptr(): name
        for name, tensor in dit.named_parameters()
        if name.startswith(prefixes) or any(part in name for part in (*parts, *sound)) or name == "head.modulation"
    }


@pytest.mark.parametrize("kind", ["", "fp8", "fp8-attention"])
@torch.no_grad()
def test_a_forward_waits_for_nothing_and_repeats_nothing(kind: str) -> None:
    r = rig(dtype=torch.bfloat16 if kind else torch.float32, kind=kind)
    given = {k: torch.tensor(v, device=DEVICE) if isinstance(v, int) and k != "key" else v for k, v in inputs(r, 5).items()}
    unread = constants(r.dit)
    assert len(unread) > 30
    with Counted(unread) as counted:
        (by_tensor,) = r.eager(given.pop("key"), **given)
    assert counted.launches > 50
    given = inputs(r, 5)
    (by_number,) = r.eager(given.pop("key"), **given)
    assert torch.equal(by_tensor, by_number)


def test_what_waits_or_repeats_is_seen() -> None:
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(AssertionError, match="waits"), Counted():
        weight.sum().item()
    with pytest.raises(AssertionError, match="the weight again"), torch.no_grad(), Counted({weight.untyped_storage().data_ptr(): "the weight"}):
        weight[:1].add(1)


def test_on_a_cpu_it_is_the_function() -> None:
    if ON_GPU:
        pytest.skip("there is a GPU")
    calls: list[object] = []

    def function(key: object, **given: object) -> tuple[torch.Tensor, ...]:
        calls.append((key, given))
        return (torch.ones(1),)

    step = CapturedGraph(function, {"n": torch.zeros((), dtype=torch.int64)}, GraphPool(torch.device("cpu")))
    assert torch.equal(step.run("a", n=3)[0], torch.ones(1)) and calls == [("a", {"n": 3})]


# On a GPU

BIG = DiTConfig(num_layers=4, audio_inject_layers=(0, 2), dim=1024, num_heads=8, ffn_dim=2048, text_dim=64, text_len=512)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["bf16", "fp8", "fp8-attention"])
@torch.inference_mode()
def test_replays_are_the_eager_run(mode: str) -> None:
    """Bit for bit over twelve blocks, the ring filling up through four captures."""
    captured, plain = (rig(BIG, 16, 16, torch.bfloat16, mode) for _ in range(2))
    for block in range(12):
        given = inputs(plain, block)
        (want,) = plain.eager(given.pop("key"), **given)
        (got,) = captured.step.run(**inputs(captured, block))  # type: ignore[arg-type]  the key among the inputs
        assert torch.equal(got, want), block
        for a, b in ((captured.cache.k_LSHd, plain.cache.k_LSHd), (captured.cache.v_LSHd, plain.cache.v_LSHd)):
            assert torch.equal(a.float(), b.float())
    fills = {inputs(captured, block)["key"] for block in range(12)}
    assert set(captured.step._captured) == fills and len(fills) == 4


@pytest.mark.gpu
@torch.inference_mode()
def test_a_steady_stream_allocates_nothing_more() -> None:
    r = rig(BIG, 16, 16, torch.bfloat16)
    for block in range(6):
        r.step.run(**inputs(r, block))  # type: ignore[arg-type]  the key among the inputs
    given = inputs(r, 6)
    torch.cuda.synchronize()

    def held() -> tuple[int, int, int]:
        stats = torch.cuda.memory_stats()
        return stats["reserved_bytes.all.current"], stats["segment.all.allocated"], stats["allocated_bytes.all.current"]

    before = held()
    for _ in range(20):
        r.step.run(**given)  # type: ignore[arg-type]  the key among the inputs
    torch.cuda.synchronize()
    assert held() == before


@pytest.mark.gpu
@torch.inference_mode()
def test_a_forward_launches_what_was_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.profiler import ProfilerActivity, profile

    monkeypatch.setattr(backend, "select_backend", lambda *_: backend.Selection("triton", "serves every chip"))
    cfg = DiTConfig(num_layers=40, dim=512, num_heads=4, ffn_dim=1024, text_dim=64)
    r = rig(cfg, 16, 16, torch.bfloat16)
    given = {k: torch.tensor(v, device=DEVICE) if isinstance(v, int) and k != "key" else v for k, v in inputs(r, 5).items()}
    key = given.pop("key")
    for _ in range(3):
        r.eager(key, **given)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        r.eager(key, **given)
        torch.cuda.synchronize()
    launched = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]  # type: ignore[union-attr]  not None once the profiler has ended
    assert len(launched) <= MOST, len(launched)
