"""What comes back from the GPU, and what a run goes on from where its machine was lost: weights as float16, logs and reports, no optimizer. A
phase that is not finished is in it too.

One archive in parts, as a lender may limit the size of a file. Rendered clips are not in it: they follow from the seed.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from everface.networks.audio.articulators import FILE as ARTICULATORS
from everface.networks.familiarity import FILE as FAMILIARITY
from everface.networks.video.mouth_finder import FILE as MOUTH_FINDER
from everface.train.engine.checkpoint import Progress, write_start

PART = 15 << 20  # bytes
WEIGHTS = ("vae/vae.safetensors", "dit/dit.safetensors")
REST = (
    "vae/vae.json", "vae/progress.json", "vae/log.jsonl", "vae/log.png", "dit/plan.json", "dit/progress.json", "dit/log.jsonl", "dit/log.png",
    *(f"dit/{name}" for name in (FAMILIARITY, ARTICULATORS, MOUTH_FINDER)),
)  # fmt: skip
REPORTS = ("report.json", "sheet.jpg", "run.log")


def pack(run: Path, out: Path) -> int:
    """Write out/run.tar.0, .1 ..., and the sheet and report once more as they are. Returns the bytes of the archive."""
    out.mkdir(parents=True, exist_ok=True)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in WEIGHTS:
            if held := _weights(run / name):
                half = run / f"{name}.half"
                save_file({n: t.half() for n, t in held.items()}, half)
                tar.add(half, name)
                half.unlink()
        for name in (*REST, *REPORTS):
            if (run / name).exists():
                tar.add(run / name, name)
    data = archive.getvalue()
    for old in out.glob("run.tar.*"):
        old.unlink()
    for n in range(0, len(data), PART):
        (out / f"run.tar.{n // PART}").write_bytes(data[n : n + PART])
    for name in REPORTS:
        if (run / name).exists():
            (out / name).write_bytes((run / name).read_bytes())
    return len(data)


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """The averaged weights: of the checkpoint, which progress.json goes with, where it is later than what the last call wrote at its end."""
    checkpoint, key = path.parent / "checkpoint.safetensors", "ema."
    averaged = dict[str, torch.Tensor]()
    if checkpoint.exists() and not (path.exists() and path.stat().st_mtime_ns > checkpoint.stat().st_mtime_ns):
        with safe_open(checkpoint, "pt") as held:
            names = [name for name in list(held.keys()) if name.startswith(key)]
            averaged = {name.removeprefix(key): held.get_tensor(name) for name in names}
    if averaged or not path.exists():  # a checkpoint of `write_start` has no average of its own
        return averaged
    return load_file(path)


def unpack(parts: Path, run: Path) -> None:
    """Make a run's folder of the parts in the folder `parts`; weights become checkpoints to go on from."""
    data = b"".join(path.read_bytes() for path in sorted(parts.glob("run.tar.*"), key=lambda p: int(p.suffix[1:])))
    run.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(run, filter="data")
    for name in WEIGHTS:
        weights = run / name
        progress, checkpoint = weights.parent / "progress.json", weights.parent / "checkpoint.safetensors"
        if weights.exists() and progress.exists():
            held: dict[str, torch.Tensor] = {n: t.float() for n, t in load_file(weights).items()}
            save_file(held, weights)
            write_start(checkpoint, held, Progress(**json.loads(progress.read_text())))
