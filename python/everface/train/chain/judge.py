"""A look at what there is: held-out people as they are, through the codec, and made by the model from one image, a held-out voice and the true
motion of the face.

With the true motion a video can be compared with the truth pixel by pixel: how far mouth and eyes agree with it, and how far they move. What the
audio leaves open is left out; `train.chain.evaluate` judges that, by readers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from everface.core.config import Deployment, StreamConfig
from everface.networks.audio.causal_encoder import PAST_FRAMES
from everface.networks.motion import FACE
from everface.train.chain.codec import reconstruct
from everface.train.chain.frames import HELD_OUT, as_video, paths, read_frames, read_rest
from everface.train.data.vae_files import read_vae
from everface.train.evaluate import metrics
from everface.train.evaluate.offline_stream import OfflineModel
from everface.train.synthetic.characters import eyes_box, mouth_box

ACROSS, SHOWN = 6, 16
SPEAKS = 0.05  # deviation of the openings of a clip with speech, of those that are judged


def judge(run: Path, frames: Path, model: Path | None, device: str) -> dict[str, Any]:
    """Write run/report.json and run/sheet.jpg. Without a model only the codec is judged. Returns the report."""
    vae, held_out = read_vae(run / "vae").to(device), paths(frames / HELD_OUT)
    offline = OfflineModel(model, Deployment()) if model else None  # as it will run: on a CPU
    rows, panels = [], []
    for path, (decoded, true) in zip(held_out, reconstruct(vae, held_out, device)):
        decoded, true = (x[0].detach().movedim(1, 0).clamp(-1, 1) for x in (decoded, true))  # [T, 3, H, W]
        row = {f"codec_{name}": value for name, value in compare(decoded, true).items()}
        shown = [true, decoded]
        rest = read_rest(path)
        if offline and rest["opening"].std() > SPEAKS:
            made = generate(offline, read_frames(path)[0], rest).to(device)
            shown.append(made)
            row |= compare(made, true)
        rows.append(row)
        panels.append(panel(shown))
    names = dict.fromkeys(name for row in rows for name in row)
    report = {"mean": {k: round(float(np.mean([row[k] for row in rows if k in row])), 4) for k in names}, "people": rows}
    (run / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    Image.fromarray(np.concatenate(panels[:SHOWN])).save(run / "sheet.jpg", quality=88)
    return report


def generate(model: OfflineModel, still: np.ndarray, rest: dict[str, np.ndarray]) -> torch.Tensor:
    """Frames [T, 3, H, W] in -1..1 of whole blocks, of a clip whose head is still. rest: of `read_rest`."""
    image_3HW = as_video(still[None], "cpu")[:, 0]
    face_CT = torch.from_numpy(rest["features"][0, -len(FACE) :, PAST_FRAMES:]).float()
    with model.stream(image_3HW, StreamConfig()) as stream:
        stream.start_decoding()
        made = [stream.decode(block) for block in stream.blocks([torch.from_numpy(rest["audio"])], face_CT)]
    return as_video(torch.cat(made), "cpu").movedim(1, 0)


def compare(made: torch.Tensor, true: torch.Tensor) -> dict[str, float]:
    """PSNR of the video, and for mouth and eyes PSNR and `metrics.deviation`, and what needs the truth's video only."""
    T = min(len(made), len(true))
    made, true = made[:T], true[:T]
    row = {"psnr": metrics.psnr(made, true)}
    for name, box in (("mouth", mouth_box(true.shape[-1])), ("eyes", eyes_box(true.shape[-1]))):
        pair = metrics.crop(made, box), metrics.crop(true, box)
        agreement, gain = metrics.deviation(*pair)
        row |= {f"{name}_psnr": metrics.psnr(*pair), f"{name}_agreement": agreement, f"{name}_gain": gain}
    return row | {
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
