"""A whole run: make the clips, score them, write the report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from everface.core.errors import BadInput
from everface.genbench.build import SETS, open_set
from everface.genbench.clips.live_latency import measure_latency, read_latency
from everface.genbench.clips.runner import ClipRecord, read_record, run_system
from everface.genbench.clips.systems import EverfaceSystem, System
from everface.genbench.manifest import BenchmarkSet, Sample, digest
from everface.genbench.page import write_page
from everface.genbench.report import GenBenchReport, summarize, to_markdown
from everface.genbench.scoring import MetricWeights, score_clips


class RunFile(msgspec.Struct):
    """DIR/run.json: what DIR is a run of, so that it is resumed and not mixed with another."""

    system: str
    settings: dict[str, object]
    set_name: str
    manifest: str  # path of it or its folder
    ids: list[str]
    seconds: float | None = None
    made_from: dict[str, str] = msgspec.field(default_factory=dict)  # by id, a hash of what the clip is made from


Steps = Callable[[str, int, str, int], None]  # phase, things in it, thing in work ("": one more is done), frames of it


def run(
    system: System, set_name: str, out: Path, cache: Path, limit: int | None, seconds: float | None, weights: MetricWeights, steps: Steps
) -> GenBenchReport:
    """Run a system over a set and write the report to `out`. Goes on where an interrupted run was. Raises BadInput."""
    benchmark = open_set(set_name, cache, limit, lambda done, many: steps("set", many, "", 0))
    name = set_name if set_name in SETS else benchmark.folder.name
    manifest = benchmark.folder if set_name in SETS else Path(set_name)
    made_from = {sample.id: _digest(benchmark, sample) for sample in benchmark.samples}
    plan = RunFile(system.spec, system.settings(), name, str(manifest.absolute()), list(made_from), seconds, made_from)
    out.mkdir(parents=True, exist_ok=True)
    _check_same(out, plan)
    (out / "run.json").write_bytes(msgspec.json.format(msgspec.json.encode(plan)))
    many = len(benchmark.samples)
    records = run_system(system, benchmark, out, seconds, lambda clip, frames: steps("clips", many, clip, frames))
    if isinstance(system, EverfaceSystem) and not system.raw and any(not record.error for record in records):
        steps("latency", 1, "idle and speech in turn", 0)
        measure_latency(system, out)
        steps("latency", 1, "", 0)
    return write_report(plan, benchmark, records, out, weights, steps)


def rescore(out: Path, weights: MetricWeights, steps: Steps) -> GenBenchReport:
    """Score the clips of a run again, with the weights given now, and write the report. Raises BadInput."""
    path = out / "run.json"
    if not path.is_file():
        raise BadInput(f"{out} is no run of genbench: name the folder of an `everface genbench run -o DIR`")
    plan = msgspec.json.decode(path.read_bytes(), type=RunFile)
    benchmark = open_set(plan.manifest, out)
    benchmark.samples = [sample for sample in benchmark.samples if sample.id in set(plan.ids)]
    records = [read_record(out / "clips", id) or ClipRecord(id, error="it was not made: run again") for id in plan.ids]
    return write_report(plan, benchmark, records, out, weights, steps)


def write_report(
    plan: RunFile, benchmark: BenchmarkSet, records: list[ClipRecord], out: Path, weights: MetricWeights, steps: Steps
) -> GenBenchReport:
    """Score and write report.json, report.md, report.html and the images."""
    scores = score_clips(benchmark, records, out, weights, lambda _: steps("scores", len(records), "", 0))
    settings = plan.settings | ({"seconds": plan.seconds} if plan.seconds else {})
    report = summarize(plan.system, plan.set_name, settings, records, scores, read_latency(out))
    (out / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    (out / "report.md").write_text(to_markdown(report))
    write_page(report, records, scores, benchmark, out)
    return report


def _check_same(out: Path, plan: RunFile) -> None:
    """A folder holds one run; more samples of the same set, or fewer, are the same run."""
    try:
        old = msgspec.json.decode((out / "run.json").read_bytes(), type=RunFile)
    except (OSError, msgspec.DecodeError):
        return
    for name in ("system", "settings", "set_name", "seconds"):
        before, now = (msgspec.json.decode(msgspec.json.encode(getattr(each, name))) for each in (old, plan))  # a tuple becomes a list, as in the file
        if before != now:
            raise BadInput(f"{out} holds a run with another {name} ({before!r}, now {now!r}): name another folder with -o")
    both = old.made_from.keys() & plan.made_from.keys()
    if old.made_from and (not both or any(old.made_from[id] != plan.made_from[id] for id in both)):
        raise BadInput(f"{out} holds a run over other samples of {plan.set_name}: name another folder with -o")


def _digest(benchmark: BenchmarkSet, sample: Sample) -> str:
    """Of what a system is given: a face that is added to the manifest later makes no other clip."""
    given = sample.prompt, sample.duration_s, digest(benchmark.image(sample)), digest(benchmark.voice(sample))
    return hashlib.sha256(msgspec.json.encode(given)).hexdigest()
