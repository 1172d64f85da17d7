"""Which attention a device runs: chosen once, at start, aloud.

    triton      the portable kernel, block_causal.py          gluon       the one for sm_90, block_causal_hopper.py
    cudnn       torch with cuDNN                              flash       torch with its FlashAttention
    flash-attn  the package, 3 before 2                       xformers    the package
On a CPU, and in float32, it is always the reference.

"auto" takes what MEASURED says of the chip, and where nothing was measured the rule in `by_rule`.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from everface.core.config import ATTENTIONS
from everface.core.errors import BadInput, Unavailable
from everface.core.log import log
from everface.kernels.attention import peers
from everface.kernels.attention.block_causal import launch_block_causal
from everface.kernels.attention.block_causal_fp8 import launch_block_causal_fp8
from everface.kernels.attention.block_causal_hopper import WHY_NOT, D, launch_hopper, launch_hopper_fp8

# (chip as torch names it, dtype) -> (backend, the file of bench/results/ that shows it fastest for heads of 128).
# A line is added for a file, and for nothing else; gluon only once tests/kernels/test_block_causal_hopper.py passes on that chip too.
MEASURED: dict[tuple[str, str], tuple[str, str]] = {}

FP8 = torch.float8_e4m3fn


class Choice(NamedTuple):
    """A backend and why it is that one."""

    name: str
    why: str


_asked = "auto"
_chosen: dict[tuple[str, torch.dtype, int], Choice] = {}


def ask(name: str) -> None:
    """What this process shall run from now on: "auto", or a backend, which `choose` then refuses to replace by another."""
    global _asked
    if name not in ATTENTIONS:
        raise BadInput(f"unknown attention {name!r}: choose one of {', '.join(ATTENTIONS)}")
    if name != _asked:
        _asked = name
        _chosen.clear()


@cache
def chip(device: torch.device) -> tuple[str, int]:
    """Its name and its compute capability in tens, as in ("NVIDIA H200", 90)."""
    major, minor = torch.cuda.get_device_capability(device)
    return torch.cuda.get_device_name(device), 10 * major + minor


def why_not(name: str, device: torch.device, dtype: torch.dtype, d: int) -> str:
    """Why a backend cannot serve heads of width d there, "" if it can. A peer is tried out for that."""
    if name in peers.PEERS:
        return "8-bit keys are read by triton and gluon only" if dtype == FP8 else peers.trouble(name, device, dtype, d)
    if name == "triton":
        return ""
    kind, arch = chip(device)
    if arch != 90:
        return f"it is for sm_90, and {kind} is sm_{arch}"
    if dtype not in (torch.bfloat16, FP8) or d != D:
        return f"it is for heads of {D} in bfloat16 or e4m3, not of {d} in {_named(dtype)}"
    return WHY_NOT


def by_rule(device: torch.device, dtype: torch.dtype, d: int) -> Choice:
    """Where nothing was measured. What others measured on sm_90 for heads of 128, 16,000 keys: cuDNN 690 to 700 TFLOP/s, kernels of the
    portable one's form 460 to 490: 1.4 ms for the 0.99 TFLOP a layer at 704x384, against 2.1. Elsewhere, with smaller heads and in 8 bits
    nothing speaks for a peer. gluon is expected between the two, and no chip has shown it to be right."""
    _, arch = chip(device)
    if arch == 90 and d == 128 and dtype != FP8:
        trouble = why_not("cudnn", device, dtype, d)
        if not trouble:
            return Choice("cudnn", "not measured here; rule for heads of 128 on sm_90, by what others measured")
        return Choice("triton", f"not measured here; cudnn would be the rule, but cannot serve: {trouble}")
    return Choice("triton", "not measured here; rule wherever nothing speaks for a peer")


def choose(device: torch.device, dtype: torch.dtype, d: int) -> Choice:
    """The backend for heads of width d on a GPU, the same for as long as `ask` says nothing new. The first time it is logged, and peers
    are tried out, which a capture cannot: choose before. Raises Unavailable if what was asked for cannot serve."""
    kind, _ = chip(device)
    key = kind, dtype, d
    if key not in _chosen:
        name, file = MEASURED.get((kind, _named(dtype)), ("", ""))
        if _asked != "auto" and not (dtype == FP8 and _asked in peers.PEERS):
            trouble = why_not(_asked, device, dtype, d)
            if trouble:
                raise Unavailable(f"attention by {_asked} was asked for, but cannot serve on {kind}: {trouble}")
            _chosen[key] = Choice(_asked, "asked for")
        elif name and d == D and not why_not(name, device, dtype, d):
            _chosen[key] = Choice(name, f"fastest in {file}")
        else:
            _chosen[key] = by_rule(device, dtype, d)
        log.info("attention: %s on %s in %s, heads of %d (%s)", _chosen[key].name, kind, _named(dtype), d, _chosen[key].why)
    return _chosen[key]


def attend(
    q_THd: torch.Tensor, k_NHd: torch.Tensor, v_NHd: torch.Tensor, used: int, by: str | None = None
) -> torch.Tensor:
    """block_causal on a GPU in two bytes an element, by the chosen backend or by another that is named, untried. Returns o_THd."""
    name = by or choose(q_THd.device, q_THd.dtype, q_THd.shape[-1]).name
    run = {"triton": launch_block_causal, "gluon": launch_hopper}.get(name) or peers.peer(name)
    return run(q_THd, k_NHd, v_NHd, used)


def attend_fp8(
    q_THd: torch.Tensor,
    k_NHd: torch.Tensor,
    vT_HdN: torch.Tensor,
    used: int,
    qk_scale_H: torch.Tensor,
    v_scale_H: torch.Tensor,
    by: str | None = None,
) -> torch.Tensor:
    """block_causal_fp8 likewise. Returns o_THd in bfloat16."""
    name = by or choose(q_THd.device, q_THd.dtype, q_THd.shape[-1]).name
    run = {"triton": launch_block_causal_fp8, "gluon": launch_hopper_fp8}[name]
    return run(q_THd, k_NHd, vT_HdN, used, qk_scale_H, v_scale_H)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
