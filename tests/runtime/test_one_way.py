"""The runtime knows no model, and calls go one way from a caller's push to its poll: read from the source, and seen in a run."""

from __future__ import annotations

import ast
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType

import pytest
from tests.runtime import toy

from everface.core.config import Deployment
from everface.runtime.planning.placement import place
from everface.runtime.scheduler import Scheduler
from everface.runtime.start import start_pipeline

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "runtime" if (ROOT / "runtime").is_dir() else ROOT / "python/everface/runtime"
MODEL_WORDS = re.compile(
    r"sink|\bclean|audio_local|audio_global|denois|\bdecoder\b|\bvae\b|wav2vec|\bnoise|\bprompt|sigma|\bstep\d|latent|\bmotion|portrait|\bface\b",
    re.IGNORECASE,
)


def model_words(source: str) -> list[str]:
    """Words of a model in a source of the runtime, comments included."""
    return [hit.group() for hit in MODEL_WORDS.finditer(source.replace("msgspec.msgpack.Decoder", ""))]


def order() -> list[str]:
    """The modules of docs/path.md, in the order in which a reader meets them."""
    text = (ROOT / "docs/path.md").read_text()
    return re.findall(r"^\d+\. `runtime/([\w/]+)\.py`", text, re.MULTILINE)


def imported(path: Path) -> Iterator[str]:
    """Modules of the runtime that a source imports at run time, as in docs/path.md."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("everface.runtime."):
            yield str(node.module).removeprefix("everface.runtime.").replace(".", "/")


def test_no_model_word_in_the_runtime() -> None:
    assert model_words("x = condition['audio_local']  # of the Sink") == ["audio_local", "Sink"]
    found = {str(path.relative_to(RUNTIME)): words for path in RUNTIME.rglob("*.py") if (words := model_words(path.read_text()))}
    assert not found


def test_the_path_names_each_module_once_and_all_that_a_run_meets() -> None:
    modules = order()
    assert len(modules) == len(set(modules)) > 8
    assert all((RUNTIME / f"{module}.py").is_file() for module in modules)
    missing = {"session", "audio_buffer", "scheduler", "scheduled_session", "in_flight", "pipeline", "stage"} - set(modules)
    assert not missing


# Who may know whom: the first knows the others, never the other way round.
DOWN = {"scheduler": {"scheduled_session", "session", "pipeline"}, "scheduled_session": {"session", "in_flight"}}


@pytest.mark.parametrize("above", DOWN)
def test_imports_go_one_way(above: str) -> None:
    seen = set(imported(RUNTIME / f"{above}.py"))
    assert DOWN[above] <= seen
    for below in DOWN[above]:
        assert above not in set(imported(RUNTIME / f"{below}.py")), f"{below} imports {above}"


@pytest.mark.parametrize("below", ["session", "pipeline", "stage", "in_flight", "audio_buffer"])
def test_nobody_below_knows_the_scheduler(below: str) -> None:
    source = (RUNTIME / f"{below}.py").read_text()
    names = {n.attr if isinstance(n, ast.Attribute) else n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute | ast.Name)}
    assert not {name for name in names if "scheduler" in name.lower()}


def test_calls_go_one_way() -> None:
    """Every call between session, scheduler and pipeline in a whole session, as the interpreter sees them."""
    calls: set[tuple[str, str]] = set()

    def module(frame: FrameType | None) -> str:
        name = frame.f_globals.get("__name__", "") if frame else ""
        return name.removeprefix("everface.runtime.") if name.startswith("everface.runtime.") else ""

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            caller, callee = module(frame.f_back), module(frame)
            if caller and callee and caller != callee:
                calls.add((caller, callee))

    pipeline = start_pipeline(place(toy.roles_of(2), "inline"), toy.MODEL, toy.SPEC, Deployment())
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        with closing(Scheduler(pipeline)) as scheduler, toy.open_at(scheduler).wait_open() as session:
            session.push_audio(toy.speech(1.0))
            session.interrupt()
            session.push_audio(toy.speech(3.0))
            session.end_segment()
            assert len(list(session.frames())) == 7
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]  # None ends it
    assert {("scheduler", "session"), ("scheduler", "scheduled_session"), ("scheduler", "pipeline"), ("scheduled_session", "session")} <= calls
    rank = {"scheduler": 0, "scheduled_session": 1, "in_flight": 2, "session": 3, "pipeline": 3, "inline_pipeline": 4, "stage": 5}
    up = {(a, b) for a, b in calls if a in rank and b in rank and rank[a] >= rank[b] and (a, b) != ("pipeline", "inline_pipeline")}
    assert not up
