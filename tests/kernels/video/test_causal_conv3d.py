"""The convolution that keeps its own past: the kernel against plain torch in float64, the memory it must not read, and the past it writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from tests.kernels.poison import DEVICE, Poisoned

from everface.kernels.video import causal_conv3d as module
from everface.kernels.video.causal_conv3d import PAST, causal_conv3d_reference, next_past

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# Of the largest value: 2.5 roundings to 8 or 11 bits; in float32 three tf32 passes, each off by 2^-22, over sums of independent terms.
TOLERANCE = {F32: 4 * 3 * 2.0**-22, F16: 2.5 * 2.0**-11, BF16: 2.5 * 2.0**-8}

# videos, frames, height, width, CI, CO, taps in space, dtype, past, residual
CASES = {
    "block": (1, 3, 5, 7, 32, 32, 3, F32, True, True),
    "several tiles": (1, 2, 13, 11, 16, 8, 3, F32, True, False),
    "two GEMMs": (1, 1, 3, 5, 16, 96, 3, F32, True, True),
    "two GEMMs, two columns": (1, 1, 2, 3, 16, 384, 1, BF16, True, False),
    "odd channels": (1, 2, 3, 4, 13, 21, 3, F32, True, True),
    "many chunks": (1, 1, 2, 3, 192, 16, 1, BF16, True, False),
    "two videos": (2, 2, 3, 4, 16, 16, 3, F16, True, True),
    "stream begins": (2, 3, 3, 4, 16, 16, 3, F32, False, False),
    "one frame, stream begins": (1, 1, 4, 5, 16, 16, 3, BF16, False, True),
    "in time": (1, 3, 3, 5, 24, 48, 1, F32, True, False),
    "head": (1, 1, 5, 6, 96, 3, 3, BF16, True, False),
}


def within(*size: int, dtype: torch.dtype, seed: int, scale: float = 1.0) -> torch.Tensor:
    """Random numbers with NaN on either side in memory."""
    around = Poisoned(*size, dtype=dtype)
    around.inside.copy_(scale * torch.randn(size, generator=torch.Generator().manual_seed(seed)))
    return around.inside


def given(case: str) -> dict[str, Any]:
    """Arguments of the launch, channels last."""
    videos, frames, height, width, c_in, c_out, space, dtype, past, residual = CASES[case]
    fan_in = (3 * space**2 * c_in) ** -0.5
    return {
        "x": within(videos, frames, height, width, c_in, dtype=dtype, seed=1),
        "past": within(videos, PAST, height, width, c_in, dtype=dtype, seed=2) if past else None,
        "w": within(c_out, 3, space, space, c_in, dtype=dtype, seed=3, scale=fan_in),
        "bias": within(c_out, dtype=dtype, seed=4),
        "residual": within(videos, frames, height, width, c_out, dtype=dtype, seed=5) if residual else None,
    }


def first(x: Any) -> Any:
    """Channels first, as the ops take them; a bias as it is."""
    return x if x is None or x.dim() == 1 else x.movedim(-1, 1)


def exact(a: dict[str, Any]) -> torch.Tensor:
    """Channels last, in float64: zeros or the past in front, torch's convolution, bias, residual."""
    wide: list[Any] = [None if t is None else first(t.double().cpu()) for t in a.values()]
    x, past, w, bias, residual = wide
    past = x.new_zeros(*x.shape[:2], PAST, *x.shape[3:]) if past is None else past
    y = F.conv3d(torch.cat([past, x], 2), w, bias, padding=(0, w.shape[3] // 2, w.shape[4] // 2))
    return (y if residual is None else y + residual).movedim(1, -1)


def close(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> None:
    assert got.shape == want.shape and got.dtype == dtype
    off = (got.double().cpu() - want).abs().max()
    assert off <= TOLERANCE[dtype] * want.abs().max(), off


@pytest.mark.parametrize("case", CASES)
def test_kernel_is_the_convolution(case: str) -> None:
    a, dtype = given(case), CASES[case][7]
    y = Poisoned(*a["x"].shape[:-1], len(a["w"]), dtype=dtype)
    module.launch(a["x"], a["past"], a["w"], a["bias"], a["residual"], 1, 1, y.inside)
    close(y.written(), exact(a), dtype)
    reference = causal_conv3d_reference(*map(first, a.values()))
    close(reference.movedim(1, -1), exact(a), dtype)


@pytest.mark.parametrize("kind", module.TILES[90])
def test_the_tiles_of_hopper(kind: tuple[int, int, int]) -> None:
    """They differ from those the other cases run with here: larger, and written half by half."""
    _, columns, chunk = kind
    x, past = (within(1, t, 3, 5, chunk, dtype=BF16, seed=t) for t in (1, PAST))
    w = within(columns, 3, 1, 1, chunk, dtype=BF16, seed=3, scale=(3 * chunk) ** -0.5)
    bias, residual = within(len(w), dtype=BF16, seed=4), within(1, 1, 3, 5, len(w), dtype=BF16, seed=5)
    y = Poisoned(1, 1, 3, 5, len(w), dtype=BF16)
    module.launch_tile(x, past, w, bias, residual, 1, 1, y.inside, module.TILES[90][kind].options())
    close(y.written(), exact({"x": x, "past": past, "w": w, "bias": bias, "residual": residual}), BF16)


@pytest.mark.parametrize("by", ["kernel", "reference"])
@pytest.mark.parametrize("cuts", [(1, 1, 1, 1, 1), (3, 2), (1, 4), (2, 1, 2)])
def test_cuts_do_not_matter_and_the_past_stays_where_it_is(
    cuts: tuple[int, ...], by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = within(2, 5, 3, 4, 8, dtype=F32, seed=1).movedim(-1, 1)
    w, bias = (within(*s, dtype=F32, seed=3) for s in ((8, 3, 3, 3, 8), (8,)))
    want = exact({"x": x.movedim(1, -1), "past": None, "w": w, "bias": bias, "residual": None})
    monkeypatch.setattr(module, "runs_kernel", lambda *_: by == "kernel")
    past, outputs, places = None, [], set()
    for part in x.split(cuts, 2):
        y, past = module.causal_conv3d(part, past, w.movedim(-1, 1), bias)
        outputs.append(y)
        places.add(past.data_ptr())
    assert len(places) == 1 and past is not None
    assert torch.equal(past, x[:, :, -2:]) and past.movedim(1, -1).is_contiguous()
    assert past.untyped_storage().nbytes() == past.nbytes
    close(torch.cat(outputs, 2).movedim(1, -1), want, F32)


def test_gradients_flow_through_the_past() -> None:
    x = torch.randn(1, 4, 3, 2, 3, requires_grad=True)
    one_by_one = next_past(x[:, :, 1:2], next_past(x[:, :, :1], None))
    for past in (one_by_one, next_past(x[:, :, :2], None)):
        (grad,) = torch.autograd.grad(past.sum(), x)
        assert torch.equal(past, x[:, :, :2]) and grad.sum((0, 1, 3, 4)).tolist() == [24, 24, 0]
        with torch.no_grad():
            assert next_past(x, past).data_ptr() not in (past.data_ptr(), x.data_ptr())
        later = x.detach()
        assert next_past(later, past).data_ptr() != later[:, :, 1:].data_ptr()  # the next block will write there
        assert past._version == 0
    seen = torch.zeros(1, 4, 2, 2, 3)
    assert next_past(x, seen) is not seen and seen.abs().sum() == 0  # what autograd may still need is left alone


def test_a_past_of_another_dtype_or_mode_is_replaced() -> None:
    x = torch.randn(1, 4, 1, 2, 3)
    half = next_past(x.bfloat16(), None)
    new = next_past(x, half)
    assert new.dtype == F32 and torch.equal(new[:, :, :1], half[:, :, 1:].float()) and torch.equal(new[:, :, 1:], x)
    with torch.inference_mode():
        past = next_past(x, None)
    assert torch.equal(next_past(2 * x, past), torch.cat([x, 2 * x], 2)) and torch.equal(past[:, :, 1:], x)


def test_what_the_kernel_does_not_take_goes_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = torch.randn(1, 4, 2, 3, 3, requires_grad=True), torch.randn(5, 4, 3, 3, 3)
    y, past = module.causal_conv3d(x, None, w, None)
    assert y.requires_grad and past.requires_grad
    monkeypatch.setattr(module, "runs_triton", lambda *_: True)
    half = x.detach().bfloat16()
    assert module.runs_kernel(half, None, w.bfloat16()) and module.runs_kernel(half.half(), half.half())
    assert not module.runs_kernel(half, w) and not module.runs_kernel(x, w)  # of two dtypes; of four bytes


def test_every_width_has_a_tile() -> None:
    for itemsize in (2, 4):
        for c_in in (1, 3, 16, 24, 96, 192, 384):
            for c_out in (3, 8, 16, 32, 48, 96, 192, 384, 768):
                sizes = module.TILES[80][module.variant(c_in, c_out, itemsize)].options()
                assert c_out % (sizes["BN"] + sizes["BN2"]) == 0 or c_out not in (96, 192, 384, 768)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("c_in", "c_out", "height", "width"), [(384, 384, 48, 88), (192, 192, 50, 90), (96, 96, 101, 99), (96, 3, 96, 176)]
)
def test_kernel_is_the_convolution_at_14b(c_in: int, c_out: int, height: int, width: int) -> None:
    x, past = (torch.randn(1, t, height, width, c_in, device=DEVICE).to(BF16).movedim(-1, 1) for t in (3, 2))
    w = (torch.randn(c_out, 3, 3, 3, c_in, device=DEVICE) * (27 * c_in) ** -0.5).to(BF16).movedim(-1, 1)
    bias, residual = torch.randn(c_out, device=DEVICE).to(BF16), torch.randn(1, 3, height, width, c_out, device=DEVICE).to(BF16)
    want = causal_conv3d_reference(x.float(), past.float(), w.float(), bias.float(), residual.movedim(-1, 1).float())
    y, kept = module.causal_conv3d(x, past, w, bias, residual.movedim(-1, 1))
    close(y, want.double().cpu(), BF16)
    assert kept is past and torch.equal(past, x[:, :, 1:])
