"""Cross-compiles every kernel in the COMPILE lists under everface.kernels, without a GPU, and reports what each costs.

    python -m tests.kernels.compile             JSON on stdout: {"triton": version, "builds": {key: {regs, stack, shared, ...}}}
    python -m tests.kernels.compile --write     the same into budget.json; look at the difference before committing it
    python -m tests.kernels.compile cross       only keys that contain a word

Run apart from the tests: Triton cannot compile in a process that has its interpreter switched on.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

import everface.kernels
from everface.kernels.launch import CompileSpec

BUDGET = Path(__file__).with_name("budget.json")
EXPONENTIAL, ONE_LEFT, NONE_LEFT = "MUFU.EX2", "WARPGROUP.DEPBAR.LE gsb0, 0x1", "WARPGROUP.DEPBAR.LE gsb0, 0x0"
RES_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")


def key(spec: CompileSpec, arch: int) -> str:
    return f"{spec.name} sm_{arch}"


@cache
def compile_specs() -> dict[str, tuple[CompileSpec, int]]:
    """Every build of every kernel module, once for each of its architectures."""
    found: dict[str, tuple[CompileSpec, int]] = {}
    for module in pkgutil.walk_packages(everface.kernels.__path__, "everface.kernels."):
        for spec in getattr(importlib.import_module(module.name), "COMPILE", []):
            for arch in spec.archs:
                if key(spec, arch) in found:
                    raise ValueError(f"{module.name}: two builds have the name {key(spec, arch)!r}")
                found[key(spec, arch)] = (spec, arch)
    return found


def overlap(sass: str) -> int:
    """The fewest exponentials between the wait for all GEMMs but one and the wait for that one. PTX does not show it: ptxas
    may move the second wait up to the first, and then the softmax overlaps nothing."""
    parts = sass.split(ONE_LEFT)[1:]
    return min((part.split(NONE_LEFT)[0].count(EXPONENTIAL) for part in parts), default=0)


def waits_first(ptx: str) -> bool:
    """Whether a kernel waits for the one before it, and accesses no memory but its parameters until then."""
    before, wait, _ = ptx.partition("griddepcontrol.wait")
    return bool(wait) and not re.search(r"\b(ld|st|atom|red|cp)\.(?!param)", before)


def measure(spec: CompileSpec, arch: int, tools: Path) -> dict[str, int | bool]:
    """Registers a thread, stack bytes a thread, shared bytes a program, wgmma instructions, warps of one build, and its promises.
    Of one in Gluon also the exponentials that overlap its GEMMs."""
    names = spec.kernel.arg_names
    signature = {name: spec.signature.get(name, "constexpr") for name in names}
    missing = [n for n in names if n not in spec.signature and n not in spec.constexprs]
    unknown = [n for n in (*spec.signature, *spec.constexprs, *spec.unaligned) if n not in names]
    if missing or unknown:
        raise ValueError(f"{spec.name}: arguments without a value {missing}, values without an argument {unknown}")
    aligned = [n for n, kind in spec.signature.items() if (kind.startswith("*") or kind[0] in "iu") and n not in spec.unaligned]
    by_hand = isinstance(spec.kernel, GluonJITFunction)
    source = (GluonASTSource if by_hand else ASTSource)(
        spec.kernel,
        signature,
        constexprs={(names.index(n),): v for n, v in spec.constexprs.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    options = {"num_warps": spec.num_warps, "num_stages": spec.num_stages}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        report = subprocess.run([tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        sass = subprocess.run([tools / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True).stdout if by_hand else ""
    match = RES_USAGE.search(report)
    if match is None:
        raise ValueError(f"{spec.name}: cuobjdump returned {report!r}")
    regs, stack, _ = map(int, match.groups())
    if spec.constexprs.get("PDL") and not waits_first(made.asm["ptx"]):
        raise ValueError(f"{spec.name}: memory is accessed before the wait for the kernel before")
    wgmma = made.asm["ptx"].count("wgmma.mma_async")
    used = {"regs": regs, "stack": stack, "shared": made.metadata.shared, "wgmma": wgmma, "warps": made.metadata.num_warps}
    used |= {"overlap": overlap(sass)} if by_hand else {}
    return used | {"must_not_spill": spec.must_not_spill, "needs_wgmma": spec.needs_wgmma}


def report(name: str) -> dict[str, Any]:
    """`measure` of one build, or its error: one that fails to compile must not hide the others."""
    spec, arch = compile_specs()[name]
    try:
        return measure(spec, arch, Path(triton.__file__).parent / "backends/nvidia/bin")
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[-400:]}"}


def main(words: list[str]) -> None:
    wanted = [name for name in compile_specs() if all(w in name for w in words if w != "--write")]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        made = dict(zip(wanted, pool.map(report, wanted), strict=True))
    lines = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(made.items()))
    text = f'{{\n  "triton": "{triton.__version__}",\n  "complete": true,\n  "builds": {{\n{lines}\n  }}\n}}\n'
    if "--write" in words:
        BUDGET.write_text(text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
