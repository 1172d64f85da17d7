"""Renders the jobs of a table one after another with one loaded model. What is finished is not rendered again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from everface.avatar.avatar import Avatar
from everface.avatar.jobs import Job
from everface.avatar.manifest import DONE, FAILED, STARTED, Manifest
from everface.avatar.render import Progress, RenderJob, RenderReport, render_on
from everface.avatar.sources import AudioFile
from everface.core.config import Deployment, StreamConfig
from everface.core.errors import BadInput, EverfaceError, Unavailable
from everface.media.output import check_output
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS
from everface.weights.store import fingerprint, hash_file


class BatchWatcher(Protocol):
    """Is told what a batch does."""

    @property
    def progress(self) -> Progress | None:
        """For the frames of the present job."""
        ...

    def finished(self, job: Job, report: RenderReport | None, error: str | None) -> None:
        """One job: a report if it was rendered, an error if it failed, neither if it was there."""
        ...


@dataclass(frozen=True)
class Batch:
    """`stream`: the sampler and compat of all jobs. `overwrite`: videos that no batch made may be replaced, and finished ones are rendered again."""

    jobs: Sequence[Job]
    folder: Path
    weights: Path | None = None
    lora: Path | None = None
    stream: StreamConfig = field(default_factory=StreamConfig)
    deployment: Deployment = field(default_factory=Deployment)
    overwrite: bool = False
    consent: str = ""  # of all jobs


@dataclass
class BatchResult:
    """Counts of jobs."""

    folder: Path
    jobs: int
    rendered: int = 0
    skipped: int = 0
    failed: int = 0

    @property
    def summary(self) -> str:
        return f"{self.folder}: {self.rendered} rendered, {self.skipped} were there, {self.failed} failed, of {self.jobs}"

    def check(self) -> None:
        """Raise BadInput if a job failed."""
        if self.failed:
            raise BadInput(f"{self.failed} of {self.jobs} videos failed, see {self.folder}/manifest.jsonl: correct them and run it again")


def run_batch(batch: Batch, watcher: BatchWatcher) -> BatchResult:
    """Render what is not there yet. A job that fails is reported and recorded, and the others go on. Raises EverfaceError for what
    concerns all of them; Ctrl-C ends it, and the next run goes on."""
    manifest, result = Manifest(batch.folder), BatchResult(batch.folder, len(batch.jobs))
    try:
        model = _model(batch)
        with Avatar(batch.weights, batch.lora, batch.deployment) as avatar:
            for job in batch.jobs:
                _run_job(batch, job, model, avatar, manifest, result, watcher)
    except KeyboardInterrupt as interrupt:
        done = result.rendered + result.skipped
        interrupt.add_note(f"{done} of {result.jobs} videos are complete in {batch.folder}, and the same command goes on with the others")
        raise
    finally:
        manifest.close()
    return result


def _run_job(
    batch: Batch, job: Job, model: dict[str, Any], avatar: Avatar, manifest: Manifest, result: BatchResult, watcher: BatchWatcher
) -> None:
    began_s, out = time.perf_counter(), batch.folder / job.out
    report: RenderReport | None = None
    inputs: dict[str, Any] | None = None
    error: str | None = None
    try:
        check_output(out)
        source = AudioFile(job.audio)
        inputs = {"image": _hash(job.image), "audio": _hash(job.audio), **model, **_settings(job)}
        if not batch.overwrite and manifest.is_done(job.out, inputs):
            result.skipped += 1
        else:
            if out.exists() and not batch.overwrite and not manifest.is_ours(job.out):
                raise BadInput(f"{out} is there already, and no batch has made it: name another out, or pass --force to replace it")
            manifest.add(job.out, STARTED, line=job.line, inputs=inputs)
            task = RenderJob(job.image, job.audio, out, stream=job.stream, deployment=batch.deployment, keep_unfinished=False, consent=batch.consent)
            report = render_on(avatar, task, source, out, watcher.progress, began_s)
            if report.out != str(out):
                raise BadInput(f"another {out} has appeared meanwhile, and the video is in {report.out}: name another out")
            said = {"consent": batch.consent, "remark": report.remark}
            note = {"signed": report.signed, **{name: text for name, text in said.items() if text}}
            figures = {"frames": report.frames, "seconds": report.seconds, "render_s": round(report.render_s, 3), "bytes": out.stat().st_size}
            manifest.add(job.out, DONE, line=job.line, inputs=inputs, **figures, **note)
            result.rendered += 1
    except EverfaceError as failure:
        error, report = str(failure), None
        result.failed += 1
        if isinstance(failure, Unavailable):
            avatar.close()  # the stages may be lost: the next job starts others
        manifest.add(job.out, FAILED, line=job.line, inputs=inputs, error=error)
    watcher.finished(job, report, error)


def _model(batch: Batch) -> dict[str, Any]:
    """What identifies the model, and how it computes."""
    folder = Path(batch.weights or DEFAULT_WEIGHTS)
    files = [path for pattern in ("*.json", "*.safetensors", "*.pth") for path in sorted(folder.glob(pattern))]
    return {
        "weights": {path.name: fingerprint(path) for path in files},
        "lora": fingerprint(batch.lora) if batch.lora else None,
        "dtype": batch.deployment.dtype,
        "kv_keep": batch.deployment.kv_keep,
    }


def _settings(job: Job) -> dict[str, Any]:
    s = job.stream
    return {"seed": s.seed, "prompt": s.prompt, "size": list(s.size) if s.size else None, "sampler": s.sampler, "compat": s.compat, "crop": s.crop}


def _hash(path: Path) -> str:
    try:
        return f"sha256:{hash_file(path)}"
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): check the path") from None
