"""Result of a comparison: a line a tensor, and the sum of the lines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch

from everface.parity.golden import Golden, Missing

HALF_TOLERANCE = 0.03  # bfloat16: RMS of the error over RMS of what is wanted


@dataclass(frozen=True)
class Line:
    """One tensor. `status`: ok, MISS, absent (the folder lacks it; the reason is in `note`) or unused (no comparison needs it).

    `error` is the largest absolute error for unit "abs", steps of bfloat16 for "ulp", RMS of the error over RMS of the wanted for "rms".
    """

    case: str
    tensor: str
    status: str
    error: float | None = None
    tolerance: float | None = None
    unit: str = "abs"
    note: str = ""

    def __str__(self) -> str:
        head = f"{self.case:<24} {self.tensor:<46} "
        if self.error is None:
            return f"{head}{self.status:<7} {self.note}"
        return f"{head}{self.error:8.1e} of {self.tolerance:7.1e} {self.unit} {self.status}  {self.note}".rstrip()

    def to_dict(self) -> dict[str, str | float | None]:
        """For JSON, which has no infinity: an error that is not finite is None."""
        return asdict(self) | {"error": self.error if self.error is None or math.isfinite(self.error) else None}


class Check:
    """Compares what this build computes with what one file wants, under the file's own tensor names."""

    def __init__(self, file: Golden, dtype: torch.dtype = torch.float32) -> None:
        self.file, self.dtype = file, dtype
        self.lines: list[Line] = []

    def __call__(self, name: str, got: torch.Tensor, tolerance: float, unit: str = "abs") -> None:
        """Compare `got` with the tensor `name`, which a folder may lack."""
        if name in self.file:
            self.compare(name, got, self.file[name], tolerance, unit)
        else:
            self.absent(name, "not in this folder")

    def compare(self, name: str, got: torch.Tensor, wanted: torch.Tensor, tolerance: float, unit: str = "abs") -> None:
        """Compare `got` with `wanted`: within `tolerance` in float32, within HALF_TOLERANCE in bfloat16."""
        if got.numel() != wanted.numel():
            note = f"shape {list(got.shape)}, wanted {list(wanted.shape)}"
            self.lines.append(Line(self.file.path.stem, name, "MISS", math.inf, tolerance, unit, note))
            return
        if self.dtype != torch.float32 and wanted.is_floating_point():
            tolerance, unit = HALF_TOLERANCE, "rms"
        error = distance(got.reshape(wanted.shape), wanted, unit)
        self.lines.append(Line(self.file.path.stem, name, "ok" if error <= tolerance else "MISS", error, tolerance, unit))

    def absent(self, name: str, why: str) -> None:
        self.lines.append(Line(self.file.path.stem, name, "absent", note=why))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is compared together: if an input of it is missing, it is absent and the rest of the case goes on."""
        try:
            yield
        except Missing as missing:
            self.absent(name, f"needs {missing}, which is not in this folder")

    def close(self) -> list[Line]:
        """All lines, with those of tensors that nothing looked at, and of a case in which nothing could be compared."""
        unused = [name for name in self.file if name not in self.file.used]
        self.lines += [Line(self.file.path.stem, name, "unused", note="no comparison needs it") for name in unused]
        if not any(line.error is not None for line in self.lines):
            self.absent("(the case)", "nothing in it could be compared")
        return self.lines


def distance(got: torch.Tensor, wanted: torch.Tensor, unit: str) -> float:
    """How far apart two tensors of one shape are; infinite when either is not finite."""
    if unit == "ulp":
        return float((_order(got) - _order(wanted)).abs().max())
    difference = got.double() - wanted.double()
    error = difference.abs().max() if unit == "abs" else difference.norm() / wanted.double().norm().clamp(min=1e-30)
    return float(error) if error.isfinite() else math.inf


def _order(x: torch.Tensor) -> torch.Tensor:
    """bfloat16 -> integers in the same order, neighbors one apart."""
    bits = x.contiguous().view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def count(lines: Iterable[Line]) -> dict[str, int]:
    """How many lines of each status."""
    found = Counter(line.status for line in lines)
    return {status: found[status] for status in ("ok", "MISS", "absent", "unused")}
