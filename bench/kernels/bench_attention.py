"""Attention of the 14B model beside its peers: torch's own backends, FlashAttention and xformers where they can be imported.

    python -m pytest bench/kernels/bench_attention.py --benchmark-json FILE

The sizes of 704x384 on a GPU; tiny ones on a CPU, where the op is the reference. Peers read one range of keys, so ring and sink are
laid end to end for them beforehand: their time leaves that copy out.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bench.peaks import device
from bench.stopwatch import SETS, measure
from torch.nn.attention import SDPBackend, sdpa_kernel

from everface.kernels.attention import block_causal as block
from everface.kernels.attention import cross

ON_GPU = torch.cuda.is_available()
FRAMES, FRAME, HEADS, D, RING, SINK, TEXT, AUDIO = (3, 1056, 40, 128, 12672, 2640, 512, 5) if ON_GPU else (3, 8, 2, 64, 96, 20, 16, 5)
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], object]  # q_BTHd, k_BSHd, v_BSHd


def made(*size: int) -> torch.Tensor:
    return torch.randn(size, device=device(), dtype=torch.bfloat16)


def sdpa(backend: SDPBackend) -> Attend:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> object:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))

    return attend


def package(module: str, function: str) -> Attend | None:
    return getattr(import_module(module), function) if ON_GPU and find_spec(module.split(".")[0]) else None


PEERS: dict[str, Attend | None] = {
    "sdpa cudnn": sdpa(SDPBackend.CUDNN_ATTENTION) if ON_GPU else None,
    "sdpa flash": sdpa(SDPBackend.FLASH_ATTENTION),
    "sdpa efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION) if ON_GPU else None,
    "flash_attn 2": package("flash_attn", "flash_attn_func"),
    "flash_attn 3": package("flash_attn_interface", "flash_attn_func"),
    "xformers": package("xformers.ops", "memory_efficient_attention"),
}


def peer(by: str) -> Attend:
    found = PEERS[by]
    if found is None:
        pytest.skip(f"{by} is not here")
    return found


@pytest.mark.parametrize("by", ["op", *PEERS])
@pytest.mark.parametrize("used", [RING, RING // 4])
def test_block_causal(benchmark: Any, used: int, by: str) -> None:
    calls, tokens = [], FRAMES * FRAME
    attend = peer(by) if by != "op" else None
    for _ in range(SETS):
        q, ring_k, ring_v, sink_k, sink_v = (made(n, HEADS, D) for n in (tokens, RING, RING, SINK, SINK))
        if attend is None:
            calls.append(lambda a=(q, ring_k, ring_v, used, sink_k, sink_v): block.block_causal(*a))
        else:
            k, v = torch.cat((ring_k[:used], sink_k)), torch.cat((ring_v[:used], sink_v))
            calls.append(lambda a=(q[None], k[None], v[None]): attend(*a))
    work = block.work(tokens, used + SINK, HEADS, D, 2)
    measure(benchmark, calls, work, shape=f"{tokens}x{used}+{SINK}x{HEADS}x{D}", dtype="bf16", by=by)


@pytest.mark.parametrize("by", ["op", *PEERS])
@pytest.mark.parametrize("keys", [TEXT, AUDIO])
def test_cross(benchmark: Any, keys: int, by: str) -> None:
    attend = cross.cross if by == "op" else peer(by)
    batch, tokens = (FRAMES, FRAME) if keys == AUDIO else (1, FRAMES * FRAME)
    sets = [(made(batch, tokens, HEADS, D), made(batch, keys, HEADS, D), made(batch, keys, HEADS, D)) for _ in range(SETS)]
    work = cross.work(batch, tokens, keys, HEADS, D, batch, 2)
    measure(benchmark, [lambda a=a: attend(*a) for a in sets], work, shape=f"{batch}x{tokens}x{keys}x{HEADS}x{D}", dtype="bf16", by=by)
