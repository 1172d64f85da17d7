"""Attention for sm_90: its Python under an emulator of barriers, copies and GEMMs; its machine code; on a Hopper GPU, the kernel itself."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton.experimental.gluon")
from tests.kernels.attention import gluon
from tests.kernels.attention.test_block_causal import Case, draw, error
from tests.kernels.poison import DEVICE

from everface.kernels.attention import block_causal_hopper as hopper
from everface.kernels.launch import tile

ROOT = Path(__file__).parents[3]
Sizes = tuple[int, int, int, int]
Fp8Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, torch.Tensor, torch.Tensor]
HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
needs_hopper = pytest.mark.skipif(not HOPPER or bool(hopper.UNAVAILABLE), reason="needs a GPU of sm_90 and Triton 3.6")
TOLERANCE = {torch.bfloat16: 1e-2, torch.float8_e4m3fn: 4e-2}

CASES = [  # tokens, slots, used, heads
    (67, 230, 230, 1),  # queries and keys ragged, half of the second warpgroup's queries beyond the end
    (33, 112, 56, 2),  # the ring not yet full; the second warpgroup has no query at all
    (128, 96, 96, 3),  # nothing ragged; more tiles than programs
    (65, 64, 17, 1),  # two tiles, the second of one key
    (40, 32, 7, 5),  # a single tile: no loop over keys
]


def quantize(case: Case) -> tuple[Fp8Case, Case]:
    """Arguments in e4m3, and the case they represent, to compare with. Values beyond `used` stay NaN."""
    q, k, v, used = case
    random = torch.Generator().manual_seed(used)
    heads = q.shape[1]
    qk_scale, v_scale = (torch.rand(heads, generator=random).to(q.device) + 0.5 for _ in range(2))

    room = torch.full((*v.shape[1:], -(-len(v) // 16) * 16), float("nan"), device=v.device)
    room[..., : len(v)] = v.permute(1, 2, 0)
    q8, k8, v8 = (x.float().to(torch.float8_e4m3fn) for x in (q, k, v))
    quantized = q8, k8, room.to(torch.float8_e4m3fn), used, qk_scale, v_scale
    return quantized, (q8.double() * qk_scale[:, None], k8.double(), v8.double() * v_scale[:, None], used)


def emulated(patch: pytest.MonkeyPatch, seed: int, mutant: tuple[str, str] = ("", "")) -> None:
    """Tiles small enough that every loop turns and every slot is used again; three programs."""
    small = tile(4, 1, BM=random.Random(seed).choice((32, 128)), BN=16, STAGES=random.Random(seed).choice((2, 3)), CHAINS=2)
    patch.setattr(hopper, "select_tile", lambda *_: small)
    gluon.emulate(patch, hopper, "block_causal_hopper_kernel", seed, mutant)


on_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="the emulator takes the CPU's tensors")


@on_cpu
@pytest.mark.parametrize("sizes", CASES, ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_schedule_equals_reference(sizes: Sizes, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    emulated(monkeypatch, seed)
    case = draw(*sizes, 128, torch.bfloat16)
    assert error(hopper.launch_hopper(*case), case) <= TOLERANCE[torch.bfloat16]


@on_cpu
@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_schedule_in_8_bits_equals_reference(sizes: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    emulated(monkeypatch, 0)
    quantized, case = quantize(draw(*sizes, 128, torch.bfloat16))
    assert error(hopper.launch_hopper_fp8(*quantized), case) <= TOLERANCE[torch.float8_e4m3fn]


MISTAKES = {
    "keys read before they are there": ("mbarrier.wait(k_full.index((i + 1) % STAGES), (i + 1) // STAGES & 1, pred=j + 1 < n)", "pass"),
    "values read before they are there": ("mbarrier.wait(v_full.index(before), before_phase)", "pass"),
    "queries read before they are there": ("mbarrier.wait(q_full.index(half), query_tile & 1)", "pass"),
    "queries released under a GEMM": ("mbarrier.arrive(q_empty.index(half))\n", "pass\n"),
    "a slot filled while it is read": ("mbarrier.wait(empty.index(stage), phase ^ 1)", "pass"),
    "the loader waits for the wrong phase": ("mbarrier.wait(empty.index(stage), phase ^ 1)", "mbarrier.wait(empty.index(stage), phase)"),
    "the other parity": ("stage, phase = i % STAGES, i // STAGES & 1\n            if", "stage, phase = i % STAGES, i // STAGES & 1 ^ 1\n            if"),
    "values released before they are used": ("s = warpgroup_mma_wait(1, deps=[s])", "s = warpgroup_mma_wait(1, deps=[s]); mbarrier.arrive(v_empty.index(before))"),
    "values never released": ("mbarrier.arrive(v_empty.index(before))", "pass"),
    "scores used before their GEMM": ("warpgroup_mma_wait(1, deps=[s])", "warpgroup_mma_wait(2, deps=[s])"),
    "one warpgroup's release is enough": ("mbarrier.init(k_empty.index(stage), count=2)", "mbarrier.init(k_empty.index(stage), count=1)"),
    "output not rescaled": ("acc = acc * gl.convert_layout(shrink, o_row)[:, None]", "pass"),
    "the tail not masked": ("if left < BN:", "if False:"),
    "sums of a thread not rescaled": ("l = l * gl.convert_layout(shrink, gl.SliceLayout(1, l))[:, None] + more", "l = l + more"),
    "the first tile again": ("[j * BN, column]", "[0, column]"),
    "counts not carried to the next tile": ("acc = warpgroup_mma_wait(0, deps=[acc])", "acc = warpgroup_mma_wait(0, deps=[acc]); i -= 1"),
}  # fmt: skip


@on_cpu
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_emulator_finds(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = draw(67, 230, 230, 2, 128, torch.bfloat16)
    for seed in range(4):  # a race may go well once
        with monkeypatch.context() as patch:
            emulated(patch, seed, MISTAKES[mistake])
            try:
                wrong = error(hopper.launch_hopper(*case), case)
            except gluon.RuleViolation:
                return
            if not wrong <= TOLERANCE[torch.bfloat16]:
                return
    pytest.fail("not found")


@on_cpu
@pytest.mark.parametrize("mistake", [
    ("key = key // 16 * 16 + key % 8 // 2 * 4 + key % 16 // 8 * 2 + key % 2", "pass"),  # the mask in the order of rows
    ("(0, 1, 3, 2, 4)", "(0, 1, 2, 3, 4)"),  # P in the order of columns
    ("s = gl.minimum(s, ", "s = s + gl.minimum(0 * s, "),  # NaN from beyond the last key
])  # fmt: skip
def test_the_emulator_finds_a_wrong_order_of_keys(mistake: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    emulated(monkeypatch, 0, mistake)
    quantized, case = quantize(draw(33, 112, 57, 2, 128, torch.bfloat16))
    assert not error(hopper.launch_hopper_fp8(*quantized), case) <= TOLERANCE[torch.float8_e4m3fn]


def test_wrong_arguments_are_refused() -> None:
    q, k, v, _ = draw(4, 8, 8, 2, 128, torch.bfloat16)
    with pytest.raises(ValueError, match=r"torch.float32: this kernel is for torch.bfloat16"):
        hopper.launch_hopper(q.float(), k, v, 4)
    with pytest.raises(ValueError, match="9 slots used of 8"):
        hopper.launch_hopper(q, k, v, 9)
    with pytest.raises(ValueError, match="heads of 64"):
        hopper.launch_hopper(q[..., :64], k, v, 4)


@pytest.fixture(scope="module")
def ends() -> None:
    """A mistake in the barriers would wait for ever, so a process that can be killed goes first."""
    code = (
        "import torch\n"
        "from tests.kernels.attention.test_block_causal_hopper import quantize, draw, hopper\n"
        "case = draw(300, 1400, 1100, 5, 128, torch.bfloat16)\n"
        "hopper.launch_hopper(*case), hopper.launch_hopper_fp8(*quantize(case)[0]), torch.cuda.synchronize()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
@needs_hopper
@pytest.mark.usefixtures("ends")
@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", [(3168, 3168, 2640), (173, 173, 61), (64, 64, 0), (5, 5, 1)], ids=str)
@pytest.mark.parametrize("heads", [1, 2, 5])
def test_kernel_equals_reference(blocks: int, sizes: tuple[int, int, int], heads: int) -> None:
    tokens, block, sink = sizes
    case = draw(tokens, sink + 4 * block, sink + blocks * block, heads, 128, torch.bfloat16)
    for _ in range(3):  # a race may go well once
        assert error(hopper.launch_hopper(*case), case) <= TOLERANCE[torch.bfloat16]


@pytest.mark.gpu
@needs_hopper
@pytest.mark.usefixtures("ends")
@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", [(3168, 3168, 2640), (173, 176, 61), (64, 64, 0), (5, 16, 1)], ids=str)
@pytest.mark.parametrize("heads", [1, 5])
def test_kernel_in_8_bits_equals_reference(blocks: int, sizes: tuple[int, int, int], heads: int) -> None:
    tokens, block, sink = sizes
    quantized, case = quantize(draw(tokens, sink + 4 * block, sink + blocks * block - 3, heads, 128, torch.bfloat16))
    assert error(hopper.launch_hopper_fp8(*quantized), case) <= TOLERANCE[torch.float8_e4m3fn]


@pytest.mark.gpu
@needs_hopper
@pytest.mark.usefixtures("ends")
def test_kernel_is_captured_and_replayed() -> None:
    case = draw(300, 1400, 1100, 2, 128, torch.bfloat16)
    hopper.launch_hopper(*case)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = hopper.launch_hopper(*case)
    case[0].copy_(torch.randn_like(case[0]))
    graph.replay()
    assert error(o, case) <= TOLERANCE[torch.bfloat16]
