"""What every kernel module uses: Triton if it is installed, the GPU's family, tiles, launch costs, compile specs for CI.

A kernel module takes `jit` and `tl` from here, so that it also imports where Triton is not installed and only references run.
It provides TILES (`select_tile` selects from them), COMPILE (for tests/kernels/compile.py) and the `Cost` of a launch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch

from everface.core.log import log

try:
    import triton
    import triton.language as tl
except ImportError:
    triton: Any = None
    tl: Any = None

HAS_TRITON = triton is not None


def jit(fn: Any = None, **options: Any) -> Any:
    """triton.jit, as `@jit` or `@jit(...)`. Without Triton the kernel is defined too, and never launched."""
    if not HAS_TRITON:
        return fn if fn is not None else lambda f: f
    return triton.jit(fn, **options) if fn is not None else triton.jit(**options)


class Cost(NamedTuple):
    """The least that one launch must do: multiply-adds counted twice, bytes read and written once."""

    flops: int
    bytes: int


@dataclass(frozen=True)
class Tile:
    """Launch configuration of a kernel: constexpr sizes by name, warps per program, stages of the load pipeline."""

    sizes: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int]:
        """Keyword arguments of a launch."""
        return {**dict(self.sizes), "num_warps": self.num_warps, "num_stages": self.num_stages}


def tile(num_warps: int, num_stages: int, **sizes: int) -> Tile:
    return Tile(tuple(sizes.items()), num_warps, num_stages)


# Architecture -> variant (dtype, width, ...) -> tile. 80 must have every variant, within 99 KiB of shared memory.
Tiles = dict[int, dict[Hashable, Tile]]


@dataclass(frozen=True)
class CompileSpec:
    """One compilation that CI checks without a GPU. `name` is its key in tests/kernels/budget.json."""

    name: str
    kernel: Any
    signature: dict[str, str]  # run-time arguments: "*bf16", "*fp32", "*i64", "i32", "fp32"
    constexprs: dict[str, Any]  # every other argument, the tile's sizes included
    num_warps: int
    num_stages: int
    archs: tuple[int, ...] = (80, 90, 100)
    unaligned: tuple[str, ...] = ()  # integers and pointers not known to be multiples of 16
    must_not_spill: bool = True
    needs_wgmma: bool = False  # on sm_90


def runs_triton(*tensors: torch.Tensor) -> bool:
    """Whether an op on these goes to its kernel: all on a GPU, Triton installed, no gradients wanted."""
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return HAS_TRITON and not wanted and all(t.is_cuda for t in tensors)


def launching_on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """For code that runs on the caller's thread: makes a GPU the current one, on which Triton launches wherever its tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@cache
def tile_family(device: torch.device) -> int:
    """80, 90 or 100: the family whose tiles fit. GPUs with 99 KiB of shared memory (86, 89, 120) take those of 80, as does the CPU."""
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 8
    return {9: 90, 10: 100}.get(major, 80)


@cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors, for persistent grids. The interpreter gets 3, so that its programs loop."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


PROGRAMMATIC_LAUNCH = False
"""Whether ops over rows are launched while the kernel before them drains, on sm_90 and later (programmatic dependent launch). Set it before
a graph is captured. Off, as it gained nothing on an H200 (docs/tuning.md)."""


def programmatic_launch(device: torch.device) -> dict[str, Any]:
    """Keyword arguments of a launch of a kernel that begins with `wait_for_inputs(PDL)`."""
    on = PROGRAMMATIC_LAUNCH and device.type == "cuda" and tile_family(device) >= 90
    return {"PDL": True, "launch_pdl": True} if on else {"PDL": False}


_selected: dict[tuple[str, int, Hashable], Tile] = {}


def select_tile(op: str, tiles: Tiles, on: torch.device | int, variant: Hashable) -> Tile:
    """The tile of the newest family not newer than the device (or architecture) that has the variant. Selected once, and logged."""
    key = (op, on if isinstance(on, int) else tile_family(on), variant)
    if key not in _selected:
        family = max(a for a in tiles if a <= key[1] and variant in tiles[a])
        _selected[key] = tiles[family][variant]
        log.info("%s %s on %s: tile of sm_%d, %s", op, variant, on, family, _selected[key].options())
    return _selected[key]


def metadata(name: str, launch_cost: Callable[[dict[str, Any]], Cost]) -> Callable[..., dict[str, Any]]:
    """For @jit(launch_metadata=...): names a launch and computes its cost from its arguments, so that profiles show percent of peak."""

    def count(grid: Any, kernel: Any, args: dict[str, Any]) -> dict[str, Any]:
        cost = launch_cost(args)
        return {"name": name, "flops": cost.flops, "bytes": cost.bytes}

    return count
