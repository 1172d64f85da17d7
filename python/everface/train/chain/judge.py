"""A look at what there is: held-out people as they are, through the codec, and made by the model from one image and a held-out voice.

Truth is the renderer's. Lips are read by the network that reads drawn characters, trained here on rendered frames, after it has been checked on
true ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from everface.core.config import Deployment, StreamConfig
from everface.train.chain.codec import reconstruct
from everface.train.chain.frames import HELD_OUT, as_video, paths, read_frames, read_rest
from everface.train.chain.readers import train_head_lip_reader
from everface.train.data.vae_files import read_vae
from everface.train.engine.statistics import correlation
from everface.train.evaluate import metrics
from everface.train.evaluate.offline_stream import OfflineModel
from everface.train.evaluate.readers.lip_reader import LipReader
from everface.train.synthetic.characters import mouth_box

ACROSS, SHOWN = 6, 16


def judge(run: Path, frames: Path, model: Path | None, device: str, reader_steps: int) -> dict[str, Any]:
    """Write run/report.json and run/sheet.jpg. Without a model only the codec is judged. Returns the report."""
    vae, held_out = read_vae(run / "vae").to(device), paths(frames / HELD_OUT)
    reader = train_head_lip_reader(paths(frames), reader_steps, device) if model else None
    offline = OfflineModel(model, Deployment()) if model else None  # as it will run: on a CPU
    rows, panels = [], []
    for path, (decoded, true) in zip(held_out, reconstruct(vae, held_out, device)):
        decoded, true = (x[0].movedim(1, 0).clamp(-1, 1) for x in (decoded, true))  # [T, 3, H, W]
        mouth = mouth_box(true.shape[-1])
        row = {"vae_psnr": metrics.psnr(decoded, true), "vae_mouth_psnr": metrics.psnr(metrics.crop(decoded, mouth), metrics.crop(true, mouth))}
        shown = [true, decoded]
        if offline and reader:
            rest = read_rest(path)
            made = generate(offline, read_frames(path)[0], torch.from_numpy(rest["audio"]), device)
            shown.append(made)
            row |= read_lips(reader, made, true, rest)
        rows.append(row)
        panels.append(panel(shown))
    report = {"mean": {k: round(sum(row[k] for row in rows) / len(rows), 4) for k in rows[0]}, "people": rows}
    (run / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    Image.fromarray(np.concatenate(panels[:SHOWN])).save(run / "sheet.jpg", quality=88)
    return report


def generate(model: OfflineModel, still: np.ndarray, audio_S: torch.Tensor, device: str) -> torch.Tensor:
    """Frames [T, 3, H, W] in -1..1 of whole blocks."""
    image_3HW = as_video(still[None], "cpu")[:, 0]
    with model.stream(image_3HW, StreamConfig()) as stream:
        stream.start_decoding()
        made = [stream.decode(block) for block in stream.blocks([audio_S])]
    return as_video(torch.cat(made), "cpu").movedim(1, 0).to(device)


@torch.no_grad()
def read_lips(reader: LipReader, made: torch.Tensor, true: torch.Tensor, truth: dict[str, np.ndarray]) -> dict[str, float]:
    """The same measures that drawn characters have, where they need no pose."""
    T = min(len(made), len(true))
    made, true = made[:T], true[:T]
    opening, width = (torch.from_numpy(truth[name][:T]) for name in ("opening", "width"))
    read, gate = ([r.cpu() for r in reader.read(x)] for x in (made, true))
    return {
        "gate": correlation(gate[0], opening),
        "open_corr": correlation(read[0], opening),
        "open_amplitude": metrics.amplitude_ratio(read[0], opening),
        "wide_corr": correlation(read[1], width),
        "sharpness": metrics.sharpness(made) / metrics.sharpness(true),
        "motion": metrics.motion_energy(made) / metrics.motion_energy(true),
        "block_flicker": metrics.edge_flicker(made.cpu(), metrics.BLOCK_FRAMES)[0],
    }


def panel(videos: list[torch.Tensor]) -> np.ndarray:
    """One person: frames at the same moments of each video, one row a video."""
    last = min(len(video) for video in videos) - 1
    at = torch.linspace(0, last, ACROSS).round().long()
    rows = [((video[at.to(video.device)].float().cpu() + 1) * 127.5).round().byte().permute(2, 0, 3, 1).flatten(1, 2) for video in videos]
    return torch.cat(rows).numpy()
