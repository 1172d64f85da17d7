"""Which attention a device runs: selected once, at start, and logged.

    triton      the portable kernel, block_causal.py          gluon       the one for sm_90, block_causal_hopper.py
    cudnn       torch with cuDNN                              flash       torch with its FlashAttention
    flash-attn  the package, 3 before 2                       xformers    the package
On a CPU, and in float32, it is always the reference.

"auto" takes the entry of MEASURED for the GPU, and without one the rule in `default_backend`.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from everface.core.config import ATTENTIONS
from everface.core.errors import BadInput, Unavailable
from everface.core.log import log
from everface.kernels.attention import library_backends
from everface.kernels.attention.block_causal import launch_block_causal
from everface.kernels.attention.block_causal_fp8 import launch_block_causal_fp8
from everface.kernels.attention.block_causal_hopper import UNAVAILABLE, D, launch_hopper, launch_hopper_fp8

# (GPU as torch names it, dtype) -> (backend, the file of bench/results/ that shows it fastest for heads of 128).
# A line needs such a file; gluon also needs tests/kernels/attention/test_block_causal_hopper.py to pass on that GPU.
MEASURED: dict[tuple[str, str], tuple[str, str]] = {
    ("NVIDIA H200", "bfloat16"): ("gluon", "bench/results/h200/attention-gluon.jsonl"),
    ("NVIDIA H200", "float8_e4m3fn"): ("gluon", "bench/results/h200/attention-gluon.jsonl"),
}

FP8 = torch.float8_e4m3fn


class Selection(NamedTuple):
    """A backend, and the reason for it as it is logged."""

    name: str
    why: str


_requested = "auto"
_selected: dict[tuple[str, torch.dtype, int], Selection] = {}


def request_backend(name: str) -> None:
    """What this process runs from now on: "auto", or a backend, which `select_backend` then refuses to replace by another.
    Raises BadInput for an unknown name."""
    global _requested
    if name not in ATTENTIONS:
        raise BadInput(f"unknown attention {name!r}: choose one of {', '.join(ATTENTIONS)}")
    if name != _requested:
        _requested = name
        _selected.clear()


@cache
def gpu_model(device: torch.device) -> tuple[str, int]:
    """Its name and its compute capability in tens, as in ("NVIDIA H200", 90)."""
    major, minor = torch.cuda.get_device_capability(device)
    return torch.cuda.get_device_name(device), 10 * major + minor


def find_fault(name: str, device: torch.device, dtype: torch.dtype, d: int) -> str:
    """Why a backend cannot serve heads of width d there, "" if it can. A library is run once to find out."""
    if name in library_backends.LIBRARIES:
        return "8-bit keys are read by triton and gluon only" if dtype == FP8 else library_backends.find_fault(name, device, dtype, d)
    if name == "triton":
        return ""
    model, arch = gpu_model(device)
    if arch != 90:
        return f"it is for sm_90, and {model} is sm_{arch}"
    if dtype not in (torch.bfloat16, FP8) or d != D:
        return f"it is for heads of {D} in bfloat16 or e4m3, not of {d} in {_dtype_name(dtype)}"
    return UNAVAILABLE


def default_backend(device: torch.device, dtype: torch.dtype, d: int) -> Selection:
    """The rule where nothing was measured, as on an H100. It takes every sm_90 for an H200, on which heads of 128 took 1.63 ms a layer at
    704x384 by gluon, 1.83 by cuDNN and 2.40 by triton; in 8 bits 1.25 by gluon and 1.61 by triton. Elsewhere, and with smaller heads, there
    is no evidence for anything but the portable kernel."""
    if gpu_model(device)[1] != 90 or d != D:
        return Selection("triton", "not measured here; the rule without evidence for another")
    faults = {name: find_fault(name, device, dtype, d) for name in ("gluon", "cudnn")}
    for name, fault in faults.items():
        if not fault:
            return Selection(name, f"not measured here; rule for heads of {D} on sm_90, measured on an H200")
    return Selection("triton", "not measured here; cannot serve: " + "; ".join(f"{name}: {fault}" for name, fault in faults.items()))


def select_backend(device: torch.device, dtype: torch.dtype, d: int) -> Selection:
    """The backend for heads of width d on a GPU, the same until `request_backend` changes the request. The first call logs it and runs
    libraries once, which a capture cannot: call it before. Raises Unavailable if the requested backend cannot serve."""
    model, _ = gpu_model(device)
    key = model, dtype, d
    if key not in _selected:
        name, file = MEASURED.get((model, _dtype_name(dtype)), ("", ""))
        if _requested != "auto":
            fault = find_fault(_requested, device, dtype, d)
            if fault:
                raise Unavailable(f"attention by {_requested} was requested, but cannot serve on {model}: {fault}")
            _selected[key] = Selection(_requested, "requested")
        elif name and d == D and not find_fault(name, device, dtype, d):
            _selected[key] = Selection(name, f"fastest in {file}")
        else:
            _selected[key] = default_backend(device, dtype, d)
            if name and d == D:  # a slower video than was measured here
                log.warning("attention by %s, the fastest on %s, cannot serve: %s", name, model, find_fault(name, device, dtype, d))
        log.info("attention: %s on %s in %s, heads of %d (%s)", _selected[key].name, model, _dtype_name(dtype), d, _selected[key].why)
    return _selected[key]


def attend(
    q_THd: Tensor, k_NHd: Tensor, v_NHd: Tensor, used: int, ranges_HR2: Tensor | None = None, backend: str | None = None
) -> Tensor:  # fmt: skip
    """block_causal on a GPU in two bytes an element, by the selected backend, or by the named one without a check; with ranges by triton,
    the only one that reads them. Returns o_THd."""
    if ranges_HR2 is not None:
        return launch_block_causal(q_THd, k_NHd, v_NHd, used, ranges_HR2)
    name = backend or select_backend(q_THd.device, q_THd.dtype, q_THd.shape[-1]).name
    run = {"triton": launch_block_causal, "gluon": launch_hopper}.get(name) or library_backends.load_block_attention(name)
    return run(q_THd, k_NHd, v_NHd, used)


def attend_fp8(
    q_THd: Tensor, k_NHd: Tensor, vT_HdN: Tensor, used: int, qk_scale_H: Tensor, v_scale_H: Tensor, ranges_HR2: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    """block_causal_fp8 likewise. Returns o_THd in bfloat16."""
    if ranges_HR2 is not None:
        return launch_block_causal_fp8(q_THd, k_NHd, vT_HdN, used, qk_scale_H, v_scale_H, ranges_HR2)
    name = backend or select_backend(q_THd.device, q_THd.dtype, q_THd.shape[-1]).name
    run = {"triton": launch_block_causal_fp8, "gluon": launch_hopper_fp8}[name]
    return run(q_THd, k_NHd, vT_HdN, used, qk_scale_H, v_scale_H)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
