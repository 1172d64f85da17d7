"""Counts what one forward would launch on a GPU, without one: tensors of no memory, every op as its kernel, views and room free."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from everface.core.config import DiTConfig
from everface.kernels.linear.fp8_linear import TILES
from everface.networks.transformer.dit import BlockPosition, DiT
from everface.networks.transformer.layers import TextKV
from everface.networks.transformer.rope import Rope
from everface.runtime.cuda_graph import CapturedGraph, GraphPool
from everface.weights.quantize import quantize_for_dtype

FREE = {
    "view", "_unsafe_view", "reshape", "slice", "select", "expand", "permute", "transpose", "t", "unsqueeze", "squeeze", "split", "chunk",
    "unbind", "as_strided", "detach", "alias", "view_as_complex", "view_as_real", "empty", "empty_like", "new_empty", "empty_strided",
    "split_with_sizes", "lift_fresh",
}  # fmt: skip
WAITS = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_dim"}
ROOM = "everface.kernels."


class Counted(TorchDispatchMode):
    """Ops by name; a forbidden one raises. `unread` are storages that nothing may read."""

    def __init__(self, unread: dict[int, str] | None = None) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()
        self.unread = unread or {}

    @property
    def launches(self) -> int:
        return sum(n for name, n in self.ops.items() if name not in FREE)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in WAITS, f"{name} waits for the device"
        for tensor in (t for t in (*args, *(kwargs or {}).values()) if isinstance(t, torch.Tensor)):
            if self.unread:
                read = self.unread.get(tensor.untyped_storage().data_ptr())
                assert read is None, f"{name} reads {read} again"
        self.ops[name] += 1
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Every op takes its kernel, as on sm_90."""
    sites = {
        "fused.gate_norm_modulate": ("runs_triton", "writes_e4m3"),
        "fused.norm_rope": ("runs_triton",),
        "fused.qk_norm_rope_store": ("runs_triton",),
        "fused.qk_norm_rope_quantize": ("runs_triton",),
        "fused.audio_inject": ("runs_triton",),
        "fused.flow_step": ("runs_triton",),
        "linear.quantize_rows": ("runs_triton", "writes_e4m3"),
        "linear.fp8_linear": ("runs_triton", "_has_fp8_gemm"),
        "attention.cross": ("runs_attention", "writes_e4m3"),
        "attention.self_attention": ("runs_attention", "runs_fp8_attention"),
    }
    with contextlib.ExitStack() as stack:
        for module, names in sites.items():
            for name in names:
                stack.enter_context(patch(f"{ROOM}{module}.{name}", lambda *_: True))
        stack.enter_context(patch(f"{ROOM}linear.fp8_linear.tile_family", lambda *_: 90))
        stack.enter_context(patch(f"{ROOM}linear.fp8_linear.select_tile", lambda *_: TILES[90]["rows"]))
        stack.enter_context(patch("torch.autocast", lambda *_, **__: contextlib.nullcontext()))  # knows no device without memory
        yield


def predicted(cfg: DiTConfig, h: int, w: int, dtype: str = "bfloat16") -> Counter[str]:
    """Launches by name of one captured step of a model of this size on a GPU, in a deployment's dtype."""
    with as_on_a_gpu(), torch.device("meta"), torch.no_grad():  # not inference_mode, which would hide what composite ops are made of
        dit = DiT(cfg).bfloat16().requires_grad_(False).fuse()
        quantize_for_dtype(dit, dtype)
        mod = dit.modulations(dit.time(1000.0))
        kv = torch.empty(1, cfg.text_len, cfg.num_heads, cfg.head_dim, dtype=torch.bfloat16)
        reading = [TextKV(kv, kv, torch.empty(1))] * cfg.num_layers
        local = torch.empty(cfg.block_frames, cfg.num_audio_token + 1, cfg.dim)
        heard, cache = dit.audio_kv(local, local[:, 0]), dit.new_cache(h, w, device="meta")
        rope: Rope = dit.rope((h // cfg.patch_size[1], w // cfg.patch_size[2]))
        x = torch.empty(16, cfg.block_frames, h, w, dtype=torch.bfloat16)
        first, sink, start = (torch.empty((), dtype=torch.int64) for _ in range(3))
        used = dit.block_position((h // 2, w // 2), 0, 0).used

        def step(used: int, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            place = BlockPosition(first, sink, start, used)
            return (dit.step(x, 1.0, 0.86, mod, reading, heard, cache, rope, place),)

        counted = Counted()
        with counted:
            (out,) = CapturedGraph(step, {}, GraphPool(torch.device("cpu"))).run(used, x=x)
        assert out.shape == x.shape and out.dtype == x.dtype
    return Counter({name: n for name, n in counted.ops.items() if name not in FREE})
