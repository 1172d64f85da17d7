"""`everface demo`: the shipped character speaks the shipped clip; says where the video is and how fast it came."""

from __future__ import annotations

import json
from pathlib import Path

from everface.avatar.render import Progress, RenderJob, RenderReport, render
from everface.core.config import Deployment, StreamConfig
from everface.core.errors import BadInput
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS

IMAGE = DEFAULT_WEIGHTS / "ada.png"
AUDIO = DEFAULT_WEIGHTS / "speech.wav"


def demo(out_dir: Path, deployment: Deployment | None = None, progress: Progress | None = None) -> RenderReport:
    """Render out_dir/demo.mp4 and out_dir/demo.json (the report). Overwrites an earlier demo."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{out_dir} cannot be made a folder ({error.strerror}): name another one") from None
    job = RenderJob(
        IMAGE,
        AUDIO,
        out_dir / "demo.mp4",
        stream=StreamConfig(seed=7),
        deployment=deployment or Deployment(),
        overwrite=True,
    )
    report = render(job, progress)
    (out_dir / "demo.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    return report
