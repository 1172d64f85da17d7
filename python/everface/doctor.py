"""What this machine has, what is missing, and what each thing is for. Floor 5."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from everface.core import env

# Packages that are used when they are there: import name, distribution, purpose.
OPTIONAL = (
    ("triton", "triton", "the fused kernels (on a CPU: their tests, under the interpreter)"),
    ("flash_attn", "flash-attn", "not used; a peer to measure attention against"),
    ("xformers", "xformers", "not used; a peer to measure attention against"),
    ("flashinfer", "flashinfer-python", "not used; a peer to measure attention against"),
    ("sageattention", "sageattention", "not used; a peer to measure attention against"),
    ("cupy", "cupy-cuda13x", "not used; CUDA from Python without a compiler"),
    ("matplotlib", "matplotlib", "the plots of everface train"),
)
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


def doctor(everface: str) -> int:
    """Print one line a fact, the version `everface` first. 0 when everface can run here, 1 when something it needs is missing."""
    say("everface", f"{everface} at {Path(__file__).parent}")
    say("python", f"{platform.python_version()} at {sys.executable}")
    say("system", f"{platform.system()} {platform.release()} {platform.machine()}")
    say("cpu", f"{cores()} cores; {' '.join(cpu_features()) or 'features unknown'}")
    say("memory", memory())
    missing = [name for name in required() if not say_package(name, "needed")]
    for line in devices():
        say("device", line)
    for module, distribution, purpose in OPTIONAL:
        say_package(distribution, purpose, present=find_spec(module) is not None)
    trouble = cache_trouble(env.cache_dir())
    say("cache", f"{env.cache_dir()}: {trouble or 'writable, ' + free_space(env.cache_dir())}")
    verdict = [f"missing {', '.join(missing)}: run make setup"] * bool(missing) + [f"the cache cannot be written: {trouble}"] * bool(trouble)
    say("verdict", "; ".join(verdict) or "everface can run here")
    return 1 if verdict else 0


def say(what: str, fact: str) -> None:
    print(f"{what:<18} {fact}")


def say_package(distribution: str, purpose: str, present: bool | None = None) -> bool:
    """One line about a package; `present` says whether it can be imported when its distribution may bear another name."""
    found = _version(distribution) or ("present" if present else None)
    say(distribution, f"{found or '-':<14} {purpose}")
    return found is not None


def required() -> list[str]:
    """Distributions that pyproject.toml asks for without an extra, as installed."""
    try:
        asked = requires("everface") or []
    except PackageNotFoundError:  # run from the source tree
        return ["torch", "numpy", "safetensors", "transformers", "av", "soxr", "pillow", "msgspec", "huggingface_hub"]
    return [r.split(">")[0].split("=")[0].split("<")[0].split("!")[0].strip() for r in asked if "extra ==" not in r]


def devices() -> list[str]:
    """What torch sees, one line a device."""
    if _version("torch") is None:
        return ["unknown without torch"]
    import torch

    lines = [f"cpu, torch uses {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"]
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        lines.append(f"cuda:{i} {p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    return lines


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_features(path: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Those of FEATURES that the kernel reports; empty where there is no such file."""
    lines = path.read_text().splitlines() if path.is_file() else []
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [f for f in FEATURES if f in flags]


def memory() -> str:
    if find_spec("psutil") is None:
        return "unknown without psutil"
    import psutil

    m = psutil.virtual_memory()
    return f"{m.available / 2**30:.1f} of {m.total / 2**30:.1f} GiB free"


def cache_trouble(folder: Path) -> str | None:
    """Why nothing can be written there, or None. The folder is not made: its nearest parent that exists is tried."""
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return None
    except OSError as error:
        return error.strerror or str(error)


def free_space(folder: Path) -> str:
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    return f"{shutil.disk_usage(nearest).free / 2**30:.0f} GiB free (the official weights take 47)"


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
