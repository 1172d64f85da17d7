"""Runs the Python of a Gluon kernel on the CPU, as Triton's own interpreter cannot: partitions are threads, GEMMs and copies complete late.

    emulate(monkeypatch, module, kernel, seed)      module.kernel[grid](...) then runs here, with torch's CPU tensors

One thread runs at a time; at every wait a seeded draw picks the thread that goes on, or the copy that lands. Undefined behavior shows:
    a slot being copied into holds NaN until its bytes have landed;
    a GEMM reads its operands when it is issued and again when it is awaited, and they must not have changed;
    its result cannot be used before a wait that covers it; no thread able to go on is a deadlock, too many arrivals are an error.
Left out: layouts, registers, memory order between ordinary loads and the copies' engine, everything a compiler might do.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch


class RuleViolation(Exception):
    """The kernel breaks a rule of the GPU."""


class Barrier:
    """An mbarrier: a phase ends when all have arrived and all expected bytes have landed."""

    def __init__(self) -> None:
        self.count = self.missing = self.bytes = self.phase = 0

    def arrive(self) -> None:
        self.missing -= 1
        if self.missing < 0:
            raise RuleViolation("one arrival more than the barrier counts")
        self.turn()

    def turn(self) -> None:
        if self.missing == 0 and self.bytes == 0:
            self.missing, self.phase = self.count, self.phase ^ 1


class Shared:
    """Shared memory: tiles of a kind, or barriers."""

    def __init__(self, data: Any) -> None:
        self.data = data

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    def index(self, i: int) -> Any:
        return self.data[i]

    def _reinterpret(self, dtype: torch.dtype, shape: list[int], _: Any) -> Shared:
        assert dtype is self.dtype
        return Shared(self.data.view(shape))


class Pointer:
    def __init__(self, data: torch.Tensor, at: Any = 0) -> None:
        self.data, self.at = data.view(-1), at

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.data, self.at + more)


class Tiles:
    """A tensor descriptor."""

    def __init__(self, host: Any) -> None:
        self.shape, self.block, self.layout, self.dtype = host.shape, host.block_shape, host.layout, host.base.dtype
        self.rows = torch.as_strided(host.base, host.shape, host.strides)
        self.block_type = SimpleNamespace(nbytes=math.prod(host.block_shape) * host.base.element_size())

    def read(self, at: list[int]) -> torch.Tensor:
        """Elements outside are zero."""
        out = torch.zeros(self.block).to(self.dtype)
        found = self.rows[tuple(slice(first, first + size) for first, size in zip(at, self.block, strict=True))]
        out[tuple(slice(size) for size in found.shape)] = found
        return out


class AsyncGemm:
    """An asynchronous GEMM."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, acc: torch.Tensor, use_acc: bool) -> None:
        self.operands, self.seen = (a, b), (a.clone(), b.clone())
        self.acc, self.value = acc.clone() if use_acc else torch.zeros_like(acc), None

    def finish(self) -> None:
        for now, then in zip(self.operands, self.seen, strict=True):
            if not torch.equal(now.float().nan_to_num(7e7), then.float().nan_to_num(7e7)):
                raise RuleViolation("a slot changed under a running GEMM")
        self.value = self.acc + self.seen[0].float() @ self.seen[1].float()


class Partition(threading.Thread):
    """A partition. It runs while it holds the token, and hands it back to wait."""

    def __init__(self, program: Program, body: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.program, self.body, self.go, self.until = program, body, threading.Semaphore(0), lambda: True
        self.gemms: list[AsyncGemm] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        self.go.acquire()
        try:
            self.body()
        except BaseException as error:  # raised again by the program
            self.error = error
        self.program.partitions.remove(self)
        self.program.back.release()

    def wait(self, until: Callable[[], bool]) -> None:
        self.until = until
        self.program.back.release()
        self.go.acquire()


def current_partition() -> Partition:
    thread = threading.current_thread()
    assert isinstance(thread, Partition)
    return thread


class Program:
    """One program of a grid."""

    def __init__(self, kernel: Any, functions: dict[str, str], number: int, count: int, draw: random.Random) -> None:
        self.partitions: list[Partition] = []
        self.landing: list[Callable[[], None]] = []
        self.draw, self.back = draw, threading.Semaphore(0)
        self.names: dict[str, Any] = {
            "gl": language(self, number, count),
            "mbarrier": SimpleNamespace(init=self.init, wait=self.wait, arrive=self.arrive, expect=self.expect, MBarrierLayout=none),
            "tma": SimpleNamespace(async_copy_global_to_shared=self.copy),
            "warpgroup_mma": self.multiply, "warpgroup_mma_wait": self.multiplied, "fence_async_shared": none,
        }  # fmt: skip
        for source in functions.values():
            exec(compile("from __future__ import annotations\n" + source, kernel, "exec"), self.names)

    def split(self, functions: list[tuple[Callable[..., object], tuple[Any, ...]]], *_: Any) -> None:
        self.partitions = [Partition(self, lambda f=f, a=a: f(*a)) for f, a in functions]
        everyone = list(self.partitions)
        for partition in everyone:
            partition.start()
        while self.partitions:
            ready: list[Any] = [p for p in self.partitions if p.until()] + self.landing
            if not ready:
                raise RuleViolation(f"deadlock: {len(self.partitions)} partitions wait for one another")
            chosen = self.draw.choice(ready)
            if isinstance(chosen, Partition):
                chosen.go.release()
                self.back.acquire()
            else:
                self.landing.remove(chosen)
                chosen()
            for partition in everyone:
                if partition.error is not None:
                    raise partition.error
        if self.landing or any(partition.gemms for partition in everyone):
            raise RuleViolation("the program ended before its copies or GEMMs")

    def init(self, bar: Shared, count: int) -> None:
        bar.data[0].count = bar.data[0].missing = count

    def wait(self, bar: Shared, phase: int, pred: bool = True) -> None:
        if pred:
            current_partition().wait(lambda: bar.data[0].phase != phase)

    def arrive(self, bar: Shared) -> None:
        bar.data[0].arrive()

    def expect(self, bar: Shared, size: int) -> None:
        bar.data[0].bytes += size
        bar.data[0].arrive()

    def copy(self, tiles: Tiles, at: list[int], bar: Shared, slot: torch.Tensor) -> None:
        slot.fill_(float("nan"))

        def land() -> None:
            slot.copy_(tiles.read(at))
            bar.data[0].bytes -= tiles.block_type.nbytes
            bar.data[0].turn()

        self.landing.append(land)

    def multiply(self, a: torch.Tensor, b: torch.Tensor, acc: torch.Tensor, *, use_acc: bool = True, is_async: bool) -> AsyncGemm:
        assert is_async
        gemms = current_partition().gemms
        gemms.append(AsyncGemm(a, b, acc, use_acc))
        return gemms[-1]

    def multiplied(self, left: int, deps: list[Any]) -> Any:
        gemms = current_partition().gemms
        while len(gemms) > left:
            gemms.pop(0).finish()
        values = [x.value if isinstance(x, AsyncGemm) else x for x in deps]
        if any(value is None for value in values):
            raise RuleViolation("a GEMM is used before its wait")
        return values[0] if len(values) == 1 else values


def none(*_: Any, **__: Any) -> None:
    """Layouts and fences."""


def language(program: Program, number: int, count: int) -> SimpleNamespace:
    """The partition of `gl` that kernels here use."""

    def allocate(dtype: Any, shape: list[int], _: Any) -> Shared:
        if dtype is torch.int64:
            return Shared([Shared([Barrier()]) for _ in range(shape[0])])
        return Shared(torch.full(shape, float("nan")).to(dtype))

    def where(condition: Any, a: Any, b: Any) -> Any:
        return torch.where(condition, a, b) if isinstance(condition, torch.Tensor) else a if condition else b

    def store(to: Pointer, value: torch.Tensor, mask: torch.Tensor) -> None:
        seen = mask.expand(value.shape)
        to.data[to.at[seen]] = value[seen]

    layouts = dict.fromkeys(("NVMMADistributedLayout", "DotOperandLayout", "SliceLayout", "BlockedLayout"), none)
    return SimpleNamespace(
        program_id=lambda _: number, num_programs=lambda _: count, warp_specialize=program.split, static_range=range,
        allocate_shared_memory=allocate, where=where, store=store, load=lambda p: p.data[p.at],
        cdiv=lambda a, b: -(-a // b), arange=lambda a, b, _: torch.arange(a, b), convert_layout=lambda x, _: x,
        zeros=lambda shape, dtype, _: torch.zeros(shape, dtype=dtype), full=lambda shape, x, dtype, _: torch.full(shape, x, dtype=dtype),
        max=torch.amax, sum=torch.sum, maximum=torch.maximum, minimum=torch.fmin, exp2=torch.exp2, reshape=torch.reshape, permute=torch.permute,
        float32=torch.float32, bfloat16=torch.bfloat16, int64=torch.int64, **layouts,
    )  # fmt: skip


def emulate(
    patch: pytest.MonkeyPatch, module: ModuleType, kernel: str, seed: int, mutant: tuple[str, str] = ("", "")
) -> None:  # fmt: skip
    """Have module.kernel run here. `mutant`: a piece of its source and what to put in its place, to see that a mistake is found."""
    from triton.experimental.gluon._runtime import GluonJITFunction

    functions = {name: f.raw_src if hasattr(f, "raw_src") else f.src for name, f in vars(module).items() if isinstance(f, GluonJITFunction)}
    functions = {name: "".join(f) if isinstance(f, list) else f for name, f in functions.items()}
    functions = {name: text[text.index("def ") :].replace(".type.layout", "") for name, text in functions.items()}  # a tensor here has none
    if mutant[0]:
        assert any(mutant[0] in text for text in functions.values()), f"{mutant[0]!r} is not in the kernel"
        functions = {name: text.replace(*mutant) for name, text in functions.items()}
    names = getattr(module, kernel).arg_names

    class Launcher:
        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            def launch(*values: Any, **named: Any) -> None:
                for number in range(grid[0]):
                    given = dict(zip(names, values, strict=False)) | {k: v for k, v in named.items() if k in names}
                    given = {k: Tiles(v) if hasattr(v, "block_shape") else Pointer(v) if isinstance(v, torch.Tensor) else v
                             for k, v in given.items()}  # fmt: skip
                    program = Program(kernel, functions, number, grid[0], random.Random(f"{seed} {number}"))
                    program.names[kernel](**given)

            return launch

    patch.setattr(module, kernel, Launcher())
