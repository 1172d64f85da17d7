"""What this machine has, what is missing, and what each thing is for. Floor 5."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from everface.core import env
from everface.core.errors import BadInput, Unavailable
from everface.core.machine import cores

if TYPE_CHECKING:
    from everface.models.live_avatar.forecast import DeviceMemory


# Packages that are used when they are there: import name, distribution, purpose.
OPTIONAL = (
    ("triton", "triton", "the fused kernels (on a CPU: their tests, under the interpreter)"),
    ("nvidia.nccl", "nvidia-nccl-cu13", "blocks from GPU to GPU, with a torch for CUDA 13, which brings it"),
    ("nvidia.nccl", "nvidia-nccl-cu12", "the same with a torch for CUDA 12"),
    ("pybind11", "pybind11", "building everface._native, which calls NCCL (make native)"),
    ("pytest_benchmark", "pytest-benchmark", "timing kernels and hops (bench/)"),
    ("flash_attn", "flash-attn", "attention, where a deployment asks for it"),
    ("xformers", "xformers", "attention, where a deployment asks for it"),
    ("cupy", "cupy-cuda13x", "a program's own way to frames on the GPU without a copy (DLPack)"),
    ("cupy", "cupy-cuda12x", "the same for CUDA 12"),
)
ONE_OF = {"nvidia.nccl", "cupy"}  # imported under one name, shipped under several: only what is installed counts
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
        say_package(distribution, purpose, present=module not in ONE_OF and _found(module))
    for line in attention():
        say("attention", line)
    say("everface._native", native_line())
    trouble = cache_trouble(env.cache_dir())
    say("cache", f"{env.cache_dir()}: {trouble or 'writable, ' + free_space(env.cache_dir())}")
    verdict = [f"missing {', '.join(missing)}: run make setup"] * bool(missing) + [f"the cache cannot be written: {trouble}"] * bool(trouble)
    say("verdict", "; ".join(verdict) or "everface can run here")
    return 1 if verdict else 0


@dataclass(frozen=True)
class Question:
    """What `doctor --plan` is asked: which devices, how fast they were measured to be, for whom."""

    devices: int | None = None  # as many as this machine has
    memory_gib: float | None = None  # of each; what they have
    step_ms: float = 265.5  # of one forward; the paper's, as of the decoding of a block
    decode_ms: float = 150.0
    sampler: str = "official"
    dtype: str = "bf16"
    sessions: int = 1
    size: tuple[int, int] = (384, 704)  # height, width


def plan(question: Question) -> int:
    """Print what each number of devices would do for the official model, the best one marked. Raises BadInput if nothing fits."""
    from everface.core.config import FPS, StreamConfig
    from everface.models.live_avatar.forecast import block_times
    from everface.models.live_avatar.model import role_specs
    from everface.runtime.planning.planner import best, explain, options, refuse

    steps = StreamConfig(sampler=question.sampler).steps
    roles, times = [role.name for role in role_specs(steps)], block_times(steps, question.step_ms, question.decode_ms)
    limits_gib, memory = _limits(question), _memory(question)
    used = min(len(limits_gib), len(roles))
    found = options(roles, limits_gib[:used], memory, times, question.sessions)
    chosen = best(found)
    if chosen is None:
        raise refuse(found, memory, question.sessions)
    height, width = question.size
    print(
        f"{steps} steps and the decoder at {width}x{height}, weights in {question.dtype}, {question.sessions} session(s); "
        f"a forward takes {question.step_ms:g} ms, decoding a block {question.decode_ms:g} ms"
    )
    print(f"\n{'devices':<9}{'fps':>6}  {'first frame':>11}  {'GiB of each':<32}  roles")
    for count in range(1, used + 1):
        here = [option for option in found if len(option.placement.devices) == count]
        row = best(here) or min(here, key=lambda option: option.rank)
        held = " ".join(f"{m:.1f}{'' if m <= limit else '!'}" for m, limit in zip(row.memory_gib, row.limits_gib))
        rate = f"{row.forecast.fps:6.1f}  {row.forecast.first_frame_ms:8.0f} ms" if row.fits else f"{'does not fit':>19}"
        print(f"{f'{count} *' if row is chosen else count:<9}{rate}  {held:<32}  {row.shape()}")
    if len(limits_gib) > used:
        rest = f"{used + 1}-{len(limits_gib)}" if len(limits_gib) > used + 1 else f"{used + 1}"
        print(f"{rest:<9}as {used}: there are {used} roles; what is left serves a second pipeline")
    live = int(chosen.forecast.fps / FPS)
    print(f"\n* best: {explain(chosen, found, times)}.")
    print(f"Its rate is that of {live} live session(s) at {FPS} frames a second. Memory is counted, not measured; times are as given.")
    return 0


def _limits(question: Question) -> list[float]:
    """Memory of each device in GiB: as told, else as torch sees it."""
    import torch

    here = [torch.cuda.get_device_properties(i).total_memory / 2**30 for i in range(torch.cuda.device_count())]
    count = question.devices or len(here)
    if not count:
        raise BadInput("this machine has no CUDA device to plan for: name them, as in --devices 5 --memory 80")
    if count > len(here) and question.memory_gib is None:
        raise BadInput(f"this machine has {len(here)} CUDA devices, not {count}: say how much memory each has, as in --memory 80")
    return [question.memory_gib] * count if question.memory_gib is not None else here[:count]


def _memory(question: Question) -> DeviceMemory:
    """Bytes that the official model takes."""
    from everface.core.config import LATENT_STRIDE, ModelConfig
    from everface.model import sizes
    from everface.models.live_avatar.forecast import DeviceMemory
    from everface.runtime.planning.planner import GIB

    model, (height, width) = ModelConfig(), question.size
    if height % 64 or width % 64:
        raise BadInput(f"{width}x{height} cannot be generated: both sides are multiples of 64, as in 704x384")
    h, w = height // LATENT_STRIDE[1], width // LATENT_STRIDE[2]
    decoder, stream = sizes.decoder_sizes(model.vae, h, w)
    return DeviceMemory(
        process=GIB,  # a guess: context and libraries 0.5, what the allocator cannot use 0.5
        weights=sizes.dit_bytes(model.dit, quantized=question.dtype == "fp8"),
        step_work=4 * sizes.step_work_values(model.dit, h, w),
        session_ring=2 * sizes.ring_values(model.dit, h, w),
        session_sink=2 * sizes.sink_values(model.dit, h, w),
        decoder=2 * decoder,
        decode_work=2 * sizes.decode_work_values(model.vae, h, w),
        session_decode=2 * stream,
        front=GIB + 4 * sizes.encode_work_values(model.vae, h, w),  # another process, with its own context
    )


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


def attention() -> list[str]:
    """The backend that bfloat16 at the official model's width would get, one line a device, and what the others lack there."""
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
        lacking = {name: backend.find_fault(name, on, torch.bfloat16, 128) for name in ATTENTIONS[1:]}
        lines += [f"{on} not {name}: {trouble}" for name, trouble in lacking.items() if trouble]
    return lines


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


def native_line() -> str:
    if _version("torch") is None:
        return "unknown without torch"
    from everface.core import native

    try:
        return "built" if native.find() else "-              the nccl transport (make native)"
    except Unavailable as trouble:
        return str(trouble)


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        return False


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
