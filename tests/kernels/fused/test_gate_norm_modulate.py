"""The op between two GEMMs: its kernel against its reference, in every way the model calls it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from tests.kernels.poison import DEVICE, Poisoned, agree, same_bits

from everface.kernels.fused import audio_inject as audio
from everface.kernels.fused import gate_norm_modulate as gate_norm
from everface.kernels.linear.quantize_rows import quantize_rows_reference

F32, BF16 = torch.float32, torch.bfloat16
SIZES = {"wide": (1, 2, 1, 5120), "odd": (2, 2, 3, 192), "ragged": (1, 1, 3, 100)}

# What the model asks for: dtype of x, y and gate, affine, modulation, norm_dtype, dtype
CALLS = {
    "input": (BF16, False, False, False, True, BF16, BF16),
    "norm3": (BF16, True, True, True, False, BF16, BF16),
    "ffn": (F32, True, False, False, True, F32, BF16),
    "head": (BF16, False, False, False, True, BF16, F32),
    "all in float32": (F32, True, True, True, True, F32, F32),
}


def arguments(call: str, size: tuple[int, int, int, int], one_row: bool = False) -> tuple:
    """Positional arguments of the reference; modulation is a view with gaps between its rows, as the model makes it."""
    x_dtype, added, gated, affine, modulated, norm_dtype, dtype = CALLS[call]
    g = torch.Generator().manual_seed(len(call) + size[-1])
    width, dense = size[-1], BF16 if x_dtype == BF16 or dtype == BF16 else F32

    def made(*s: int, dtype: torch.dtype = F32) -> torch.Tensor:
        return torch.randn(s, generator=g).to(DEVICE, dtype)

    m = made(1, 1, 6, 1, width) if one_row else made(*size[:2], 6, 1, width)
    shift, scale, gate, *_ = m.unbind(2)
    return (
        made(*size, dtype=x_dtype) * 3 + 1,
        made(*size, dtype=dense) if added else None,
        gate if gated else None,
        (made(width, dtype=norm_dtype), made(width, dtype=norm_dtype)) if affine else None,
        (shift, scale) if modulated else None,
        1e-6,
        norm_dtype,
        dtype,
    )


def launched(args: tuple, quantized: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(x', u, scale of u if it is quantized) as the kernel writes them into poisoned memory."""
    x, y, gate, affine, modulation, eps, norm_dtype, dtype = args
    new = None if y is None else Poisoned(*x.shape)
    u = Poisoned(*x.shape, dtype=torch.float8_e4m3fn if quantized else dtype)
    scale = Poisoned(*x.shape[:-1], 1) if quantized else None
    outputs = [None if p is None else p.inside for p in (new, u, scale)]
    gate_norm.launch(x, y, gate, *(affine or (None, None)), *(modulation or (None, None)), eps, norm_dtype, dtype, *outputs)
    return x if new is None else new.written(), u.written(), None if scale is None else scale.written()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("call", CALLS)
def test_kernel_is_the_reference(call: str, size: str) -> None:
    args = arguments(call, SIZES[size], one_row=size == "ragged")
    new, u, _ = launched(args)
    want_new, want_u = gate_norm.gate_norm_modulate_reference(*args)
    agree(new, want_new, rounded=False)
    agree(u, want_u, rounded=BF16 in CALLS[call])


@pytest.mark.parametrize("call", ["input", "norm3", "ffn"])
def test_quantized_equals_the_two_ops_one_after_the_other(call: str) -> None:
    args = arguments(call, SIZES["odd"])
    _, u, _ = launched(args)
    _, quantized, scale = launched(args, quantized=True)
    want_quantized, want_scale = quantize_rows_reference(u)
    assert same_bits(quantized, want_quantized) and scale is not None
    torch.testing.assert_close(scale, want_scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_residual_alone(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, gate, *_ = arguments("all in float32", SIZES["odd"])
    want = gate_norm.gate_residual_reference(x, y, gate).to(dtype)
    assert torch.equal(gate_norm.gate_residual(x, y, gate, dtype), want) or DEVICE == "cuda"
    monkeypatch.setattr(gate_norm, "runs_triton", lambda *_: True)
    agree(gate_norm.gate_residual(x, y, gate, dtype), want, rounded=dtype == BF16)


def test_ops_launch_what_the_references_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the op to the kernel: y of one row for all, modulation of one row, of a row a frame, and of a row a token."""
    x, y, gate, affine, modulation, eps, norm_dtype, dtype = args = arguments("all in float32", SIZES["odd"])
    given = {"affine": affine, "modulation": modulation, "eps": eps, "norm_dtype": norm_dtype, "dtype": dtype}
    want = gate_norm.gate_norm_modulate_reference(*args)
    one_y = gate_norm.gate_norm_modulate_reference(x, y[:1, :1, :1], *args[2:])
    per_token = gate_norm.gate_norm_modulate_reference(x, y, y, *args[3:])
    monkeypatch.setattr(gate_norm, "runs_triton", lambda *_: True)
    monkeypatch.setattr(gate_norm, "writes_e4m3", lambda *_: True)
    for got, wanted in (
        (gate_norm.gate_norm_modulate(x, y, gate, **given), want),
        (gate_norm.gate_norm_modulate(x, y[:1, :1, :1], gate, **given), one_y),
        (gate_norm.gate_norm_modulate(x, y, y, **given), per_token),
    ):
        agree(got[0], wanted[0], rounded=False)
        agree(got[1], wanted[1], rounded=False)
    new, (quantized, scale) = gate_norm.gate_norm_modulate_fp8(x, y, gate, **given)
    agree(new, want[0], rounded=False)
    assert ((quantized.float() * scale - want[1]).abs() <= want[1].abs() / 16 + scale / 512).all()


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_audio_uses_the_same_kernel(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(7)
    x = torch.randn(2, 3, 2, 192, generator=g).to(DEVICE, dtype)
    shift_scale = torch.randn(2, 3, 384, generator=g).to(DEVICE, dtype)
    want = audio.audio_inject_reference(x, shift_scale)
    for module in (audio, gate_norm):
        monkeypatch.setattr(module, "runs_triton", lambda *_: True)
    agree(audio.audio_inject(x, shift_scale), want, rounded=dtype == BF16)
    faint = audio.audio_inject(x * 1e-3, torch.zeros_like(shift_scale)).float()
    assert 0.2 < faint.std() < 0.4  # eps 1e-5 is felt where the variance is 1e-6: 1 / sqrt(11)


@pytest.mark.parametrize("quantized", [False, True])
def test_the_end_of_a_block_and_the_beginning_of_the_next_in_one(quantized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the stream rounded between them: what two calls give, to the bit, by references and by kernels."""
    g = torch.Generator().manual_seed(11)
    x, y = (torch.randn(1, 2, 3, 192, generator=g).to(DEVICE, dtype) for dtype in (F32, BF16))
    gate, shift, scale = torch.randn(3, 1, 1, 1, 192, generator=g).to(DEVICE)
    given: Any = {"modulation": (shift, scale), "eps": 1e-6, "norm_dtype": BF16, "dtype": BF16}
    op: Any = gate_norm.gate_norm_modulate_fp8 if quantized else gate_norm.gate_norm_modulate
    for by_kernel in (False, True):
        monkeypatch.setattr(gate_norm, "runs_triton", lambda *_, on=by_kernel: on)
        monkeypatch.setattr(gate_norm, "writes_e4m3", lambda *_, on=by_kernel: on)
        ended = gate_norm.gate_residual(x, y, gate, BF16)
        _, want = op(ended, **given)
        new, got = op(x, y, gate, **given, residual_dtype=BF16)
        assert new.dtype == BF16 and torch.equal(new, ended)
        assert same_bits(got[0], want[0]) and torch.equal(got[1], want[1]) if quantized else torch.equal(got, want)
    with pytest.raises(ValueError, match="rounds once"):
        op(x, y, gate, **(given | {"norm_dtype": F32}), residual_dtype=BF16)
