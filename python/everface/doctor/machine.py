"""`everface doctor`: what this machine has, what is missing, and what each part is for."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from everface.core import env
from everface.core.errors import Unavailable
from everface.core.machine import cores

# Packages that are used if they are installed: import name, distribution, purpose.
OPTIONAL = (
    ("triton", "triton", "the fused kernels (on a CPU: their tests, under the interpreter)"),
    ("nvidia.nccl", "nvidia-nccl-cu13", "sends blocks between GPUs; a torch build for CUDA 13 brings it"),
    ("nvidia.nccl", "nvidia-nccl-cu12", "the same for CUDA 12"),
    ("pillow_heif", "pillow-heif", "reads HEIC images, as phones save them (everface[heic])"),
    ("pybind11", "pybind11", "builds everface._native, which calls NCCL and norms video on a CPU (make native)"),
    ("pytest_benchmark", "pytest-benchmark", "benchmarks of kernels and channels (bench/)"),
    ("flash_attn", "flash-attn", "an attention backend, if the deployment asks for it"),
    ("xformers", "xformers", "an attention backend, if the deployment asks for it"),
    ("cupy", "cupy-cuda13x", "access to frames on the GPU without a copy (DLPack)"),
    ("cupy", "cupy-cuda12x", "the same for CUDA 12"),
)
ONE_OF = {"nvidia.nccl", "cupy"}  # one import name, several distributions: only an installed distribution counts
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


def doctor(everface: str) -> int:
    """Print one line per fact; `everface` is the package's version. Returns 0, or 1 if something that everface needs is missing."""
    _print_fact("everface", f"{everface} at {Path(__file__).parent}")
    _print_fact("python", f"{platform.python_version()} at {sys.executable}")
    _print_fact("system", f"{platform.system()} {platform.release()} {platform.machine()}")
    _print_fact("cpu", f"{cores()} cores; {' '.join(cpu_features()) or 'features unknown'}")
    _print_fact("memory", memory())
    missing = [name for name in required() if not _print_package(name, "needed")]
    for line in devices():
        _print_fact("device", line)
    for module, distribution, purpose in OPTIONAL:
        _print_package(distribution, purpose, present=module not in ONE_OF and _found(module))
    for line in attention():
        _print_fact("attention", line)
    _print_fact("everface._native", native_line())
    fault = cache_fault(env.cache_dir())
    _print_fact("cache", f"{env.cache_dir()}: {fault or 'writable, ' + free_space(env.cache_dir())}")
    verdict = [f"missing {', '.join(missing)}: run make setup"] if missing else []
    if fault:
        verdict.append(f"the cache cannot be written ({fault}): choose another folder with EVERFACE_CACHE")
    _print_fact("verdict", "; ".join(verdict) or "everface can run here")
    return 1 if verdict else 0


def _print_fact(what: str, fact: str) -> None:
    print(f"{what:<18} {fact}")


def _print_package(distribution: str, purpose: str, present: bool | None = None) -> bool:
    """Print one line about a package. `present`: it can be imported, though its distribution may have another name."""
    found = _version(distribution) or ("present" if present else None)
    _print_fact(distribution, f"{found or '-':<14} {purpose}")
    return found is not None


def required() -> list[str]:
    """Distributions that everface requires without an extra."""
    try:
        asked = requires("everface") or []
    except PackageNotFoundError:  # running from a source tree that is not installed
        return ["torch", "numpy", "safetensors", "transformers", "av", "soxr", "pillow", "msgspec", "huggingface_hub"]
    return [r.split(">")[0].split("=")[0].split("<")[0].split("!")[0].strip() for r in asked if "extra ==" not in r]


def devices() -> list[str]:
    """One line per device that torch sees."""
    if _version("torch") is None:
        return ["unknown without torch"]
    import torch

    lines = [f"cpu, torch uses {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"]
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        lines.append(f"cuda:{i} {p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    return lines


def attention() -> list[str]:
    """The attention backend of each device at the official model's width, in bfloat16 and, where it has it, in 8 bits; and why the others are
    not used."""
    if _version("torch") is None:
        return ["unknown without torch"]
    import torch

    if not torch.cuda.is_available():
        return ["the reference, on a CPU"]
    from everface.core.config import ATTENTIONS
    from everface.kernels.attention import backend

    lines = []
    for on in (torch.device("cuda", i) for i in range(torch.cuda.device_count())):
        chosen = backend.select_backend(on, torch.bfloat16, 128)
        lines.append(f"{on} {chosen.name} ({chosen.why})")
        if backend.gpu_model(on)[1] >= 90:
            narrow = backend.select_backend(on, backend.FP8, 128)
            lines.append(f"{on} {narrow.name} in fp8-attention ({narrow.why})")
        lacking = {name: backend.find_fault(name, on, torch.bfloat16, 128) for name in ATTENTIONS[1:]}
        lines += [f"{on} not {name}: {fault}" for name, fault in lacking.items() if fault]
    return lines


def cpu_features(path: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The FEATURES that the Linux kernel reports; empty if there is no such file."""
    lines = path.read_text().splitlines() if path.is_file() else []
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [f for f in FEATURES if f in flags]


def memory() -> str:
    if find_spec("psutil") is None:
        return "unknown without psutil"
    import psutil

    m = psutil.virtual_memory()
    return f"{m.available / 2**30:.1f} of {m.total / 2**30:.1f} GiB free"


def cache_fault(folder: Path) -> str | None:
    """Why the folder cannot be written, or None. The folder is not created: its nearest existing parent is tried."""
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return None
    except OSError as error:
        return error.strerror or str(error)


def free_space(folder: Path) -> str:
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    return f"{shutil.disk_usage(nearest).free / 2**30:.0f} GiB free (the official weights take 47)"


def native_line() -> str:
    if _version("torch") is None:
        return "unknown without torch"
    from everface.core import native

    try:
        return "built" if native.find() else "-              the nccl transport (make native)"
    except Unavailable as error:
        return str(error)


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
