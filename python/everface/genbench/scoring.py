"""Measures every window of every clip. Scores of a clip are kept in DIR/scores/ID.json and reused while clip, sample and metrics are the same."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from everface.core.errors import BadInput
from everface.genbench.clips.runner import ClipRecord
from everface.genbench.manifest import BenchmarkSet, Sample, digest
from everface.genbench.metrics.av_sync import AVSync
from everface.genbench.metrics.color_likeness import ColorLikeness
from everface.genbench.metrics.dino import DinoIdentity
from everface.genbench.metrics.flicker import Flicker
from everface.genbench.metrics.lips import LipTruth
from everface.genbench.metrics.measurement import Measures, Metric, NotAvailable
from everface.genbench.metrics.motion import Motion
from everface.genbench.metrics.q_align import QAlign
from everface.genbench.metrics.syncnet import SyncNetSync
from everface.genbench.windows import BEGINS_S, ClipWindow, read_windows


@dataclass(frozen=True)
class MetricWeights:
    """The user's files; None where there are none."""

    syncnet: Path | None = None
    dino: Path | None = None
    qalign: Path | None = None
    trust_qalign: bool = False
    device: str = "cpu"

    def key(self) -> str:
        """Changes when other weights are given, and when their files change."""
        return "|".join(_stamp(path) for path in (self.syncnet, self.dino, self.qalign)) + f"|{self.trust_qalign}"


def _stamp(path: Path | None) -> str:
    """A path with size and time of its file, or of every file in its folder."""
    if path is None:
        return ""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path] if path.is_file() else []
    stats = [(str(file.relative_to(path)), file.stat()) for file in files]
    return f"{path} {[(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]}"


class WindowScore(msgspec.Struct):
    """Measures of one window, and why others are missing: {measure: reason}."""

    begin_s: float
    measures: dict[str, float]
    missing: dict[str, str]


class ClipScore(msgspec.Struct):
    """Windows of a clip; `key` says of which file, sample and metrics, and "" that it is to be made again."""

    id: str
    key: str
    windows: list[WindowScore]
    error: str = ""


class _Missing:
    """A metric that could not be loaded; `given`: though its weights were."""

    def __init__(self, names: tuple[str, ...], reason: str, given: bool) -> None:
        self.names, self.reason, self.given = names, reason, given

    def measure(self, window: ClipWindow) -> Measures:
        raise NotAvailable(self.reason)


def load_metrics(weights: MetricWeights) -> list[Metric]:
    """All metrics. One without its weights gives its reason instead of numbers."""

    def load(kind: type, path: Path | None, make: Callable[[], Metric]) -> Metric:
        try:
            return make()
        except NotAvailable as error:
            return _Missing(kind.names, str(error), path is not None)

    w = weights
    return [
        Flicker(), Motion(), ColorLikeness(), LipTruth(), AVSync(),
        load(SyncNetSync, w.syncnet, lambda: SyncNetSync.load(w.syncnet, w.device)),
        load(DinoIdentity, w.dino, lambda: DinoIdentity.load(w.dino, w.device)),
        load(QAlign, w.qalign, lambda: QAlign.load(w.qalign, w.trust_qalign, w.device)),
    ]  # fmt: skip


def score_window(metrics: Iterable[Metric], window: ClipWindow) -> WindowScore:
    """Every measure is a finite number or has a reason why it is missing."""
    measures, missing = dict[str, float](), dict[str, str]()
    for metric in metrics:
        try:
            found = metric.measure(window)
        except NotAvailable as error:
            missing |= dict.fromkeys(metric.names, str(error))
            continue
        finite = {name: value for name, value in found.items() if math.isfinite(value)}
        measures |= finite
        missing |= {name: "it has no value for this video" for name in metric.names if name not in finite}
    return WindowScore(window.begin_s, measures, missing)


def score_clips(
    benchmark: BenchmarkSet, records: list[ClipRecord], out: Path, weights: MetricWeights, report: Callable[[str], None] | None = None
) -> list[ClipScore]:
    """Scores of all clips that were made, in the set's order. `report` is told each clip's id when it is done."""
    folder, samples, metrics = out / "scores", {sample.id: sample for sample in benchmark.samples}, list[Metric]()
    folder.mkdir(parents=True, exist_ok=True)
    scores, weights_key = [], weights.key()
    for record in records:
        if not record.error:
            path, sample = Path(record.video), samples[record.id]
            key = _key(path, sample, benchmark, weights_key)
            score = _kept(folder / f"{record.id}.json", key)
            if score is None:
                metrics = metrics or load_metrics(weights)
                failed = any(isinstance(metric, _Missing) and metric.given for metric in metrics)  # what was lacking may come without a change of files
                score = _score(metrics, path, sample, benchmark, "" if failed else key)
                partial = folder / f"{record.id}.json.partial"
                partial.write_bytes(msgspec.json.format(msgspec.json.encode(score)))
                partial.rename(folder / f"{record.id}.json")
            scores.append(score)
        if report:
            report(record.id)
    return scores


def _score(metrics: list[Metric], video: Path, sample: Sample, benchmark: BenchmarkSet, key: str) -> ClipScore:
    windows = list[WindowScore]()
    try:
        for window in read_windows(video, sample, benchmark, BEGINS_S):
            windows.append(score_window(metrics, window))
    except BadInput as error:
        return ClipScore(sample.id, key, windows, str(error))
    return ClipScore(sample.id, key, windows, "" if windows else f"the video file {video} shows no frame: make it again")


def _key(video: Path, sample: Sample, benchmark: BenchmarkSet, weights_key: str) -> str:
    """A hash of all that a score depends on. Image and voice by content, as a set that grows writes them again."""
    stat, files = video.stat(), (digest(benchmark.image(sample)), digest(benchmark.voice(sample)))
    parts = str(stat.st_size), str(stat.st_mtime_ns), *files, msgspec.json.encode(sample).decode(), weights_key
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def _kept(path: Path, key: str) -> ClipScore | None:
    try:
        score = msgspec.json.decode(path.read_bytes(), type=ClipScore)
    except (OSError, msgspec.DecodeError):
        return None
    return score if score.key == key else None
