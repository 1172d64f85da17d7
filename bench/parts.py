"""What `bench.gpu` runs: parts, each a pytest process with a limit, and three rounds of them that end within nine minutes each.

This module imports nothing of everface, so that `python -m bench.gpu` starts where everface is not installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROUND_S = 540.0  # of a round, with all that is around its parts
START_S = 20.0  # of it, to ask which GPU is there
SOAK_S = 20.0  # seconds that a session streams, unless --soak says otherwise
ATTENTIONS = ("auto", "cudnn", "triton", "gluon", "triton-e4m3", "gluon-e4m3", "flash", "flash-attn", "xformers")

LIVE_TALK = "bench/step/bench_live_talk.py"
STEP, SESSION, ATTENTION = "bench/step/bench_step.py", "bench/stream/bench_gpu_session.py", "bench/kernels/bench_attention.py"
LINEAR, FUSED, VIDEO = (f"bench/kernels/bench_{name}.py" for name in ("linear", "fused", "video"))
GLUON_TESTS = "tests/kernels/attention/test_block_causal_hopper.py"
GPU_TESTS = "GPU_TESTS"  # replaced by the files outside tests/kernels that have tests marked gpu


@dataclass(frozen=True)
class Part:
    """One process: the arguments of pytest, and the longest that it may take in seconds."""

    limit_s: float
    words: tuple[str, ...]
    attention: str = ""  # of the steps and sessions in it
    soaks: bool = False  # streams for so many seconds: SOAK_S of its limit
    needs: str = ""  # a part without which these figures mean nothing

    def limit(self, soak_s: float) -> float:
        """Seconds, with a soak of this length."""
        return self.limit_s + (soak_s - SOAK_S if self.soaks else 0.0)


def _by_attention(name: str) -> dict[str, Part]:
    """A step and two sessions with the 8-bit GEMMs and one attention backend."""
    needs = "gluon-tests" if name.startswith("gluon") else ""
    return {
        f"step-{name}": Part(75, (STEP, "-k", "test_step and fp8"), name, needs=needs),
        f"session-{name}": Part(100, (SESSION, "-k", "official and fp8"), name, True, needs),
        f"skip-null-{name}": Part(100, (SESSION, "-k", "skip-null and fp8"), name, True, needs),
    }


PARTS: dict[str, Part] = {
    "peaks": Part(40, ("bench/kernels/bench_peaks.py",)),
    "linear": Part(70, (LINEAR,)),
    "attention": Part(90, (ATTENTION, "-k", "not gluon and not compile")),
    "kernel-tests": Part(120, ("-n", "8", "--ignore", "tests/kernels/test_compile.py", "--ignore", GLUON_TESTS, "tests/kernels")),
    "step": Part(95, (STEP, "-k", "test_step or one_layer"), "auto"),
    "session": Part(100, (SESSION, "-k", "official and fp8"), "auto", True),
    "skip-null": Part(100, (SESSION, "-k", "skip-null and fp8"), "auto", True),
    "gluon-tests": Part(55, ("-m", "gpu", GLUON_TESTS)),
    "attention-gluon": Part(40, (ATTENTION, "-k", "gluon"), needs="gluon-tests"),
    "vae": Part(100, ("bench/step/bench_vae.py",)),
    "gpu-tests": Part(60, ("-m", "gpu", "--continue-on-collection-errors", GPU_TESTS)),
    "fused": Part(60, (FUSED, "-k", "not compile")),
    "video": Part(75, (VIDEO, "-k", "not compile")),
    "launches": Part(60, ("bench/step/bench_launches.py",), "auto"),
    "baseline": Part(60, (STEP, "-k", "reference"), "auto"),
    "variants": Part(75, (STEP, "-k", "variant"), "auto"),
    "compiled": Part(100, (STEP, ATTENTION, FUSED, VIDEO, "-k", "compile"), "auto"),
    "livetalk": Part(75, (LIVE_TALK,), "auto"),
    "channel": Part(90, ("bench/stream/bench_channel.py",)),
} | {part: made for name in ATTENTIONS[1:] for part, made in _by_attention(name).items()}

ROUNDS: dict[int, tuple[str, ...]] = {
    # Does it run, is it right, how fast is it as it is.
    1: ("peaks", "linear", "attention", "kernel-tests", "step", "session"),
    # The fastest configuration, and the decoder.
    2: ("gluon-tests", "attention-gluon", "step-gluon-e4m3", "session-gluon-e4m3", "step-gluon", "step-triton-e4m3", "vae"),
    # The rest: other tests, launches, small ops, three forwards, plain torch, and what could be done another way.
    3: ("gpu-tests", "launches", "fused", "video", "skip-null-gluon-e4m3", "baseline", "variants"),
}


def chosen_parts(names: str | None, round_number: int | None, attention: str | None) -> list[str]:
    """The parts that the command line asks for, in order: by name, of a round, or of a step and a session by each attention named;
    without any of these all rounds. Raises ValueError for a part or an attention that is unknown."""
    backends = attention.split(",") if attention else []
    if unknown := [a for a in backends if a not in ATTENTIONS]:
        raise ValueError(f"no such attention: {', '.join(unknown)}; there are {', '.join(ATTENTIONS)}")
    if backends and round_number:
        raise ValueError("a round has attentions of its own: give --round or --attention")
    if backends:
        kinds = names.split(",") if names else ["step", "session"]
        parts = [kind if a == "auto" else f"{kind}-{a}" for a in backends for kind in kinds]
    else:
        parts = names.split(",") if names else [p for n, r in ROUNDS.items() if round_number in (None, n) for p in r]
    if unknown := [p for p in parts if p not in PARTS]:
        raise ValueError(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    needed = [PARTS[p].needs for p in parts if PARTS[p].needs and backends]
    return list(dict.fromkeys([*needed, *parts]))


def gpu_test_files() -> list[str]:
    """Files with tests marked gpu that "kernel-tests" does not run."""
    files = (p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu\n" in p.read_text())
    return sorted(name for p in files if not (name := p.relative_to(ROOT).as_posix()).startswith("tests/kernels/"))
