"""How a model treats portraits that nobody made for it, such as photographs.

    python -m everface.train.evaluate.portraits out face.jpg other.png --audio speech.wav --landmarks shape_predictor_68_face_landmarks.dat

There is no truth to compare with, so the sheet is what counts, to be looked at: per portrait the image as the model gets it, the codec's picture
of it, and frames of a stream. The figures beside it say where to look. Faces are found, and lips read, by dlib (the extra `face`; the landmarks'
weights are a package of their own, such as Debian's libdlib-data); without it images are cropped around their center.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from everface.avatar.avatar import Avatar
from everface.core.config import SAMPLE_RATE, StreamConfig
from everface.core.errors import BadInput, EverfaceError
from everface.core.log import log, start_log
from everface.media.audio import read_audio
from everface.media.face import can_find_faces
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS
from everface.models.live_avatar.model import LiveAvatar
from everface.networks.video.vae import VAE
from everface.train.engine.statistics import correlation
from everface.train.evaluate import metrics
from everface.train.evaluate.run import reconstruct
from everface.train.heads.clips import loudness
from everface.weights.load import load_into, open_checkpoint

SHOWN = 6  # frames of each portrait's stream on the sheet
FACE_EVERY = 5  # frames
INNER_LIPS, EYE_CORNERS = ((61, 67), (62, 66), (63, 65)), (36, 45)  # of dlib's 68 landmarks


@dataclass(frozen=True)
class PortraitFigures:
    """None: not measured, as without dlib, or with weights that have no `familiarity.safetensors`."""

    image: str
    distance: float | None  # above 0: unlike what the weights know (networks.familiarity)
    codec_psnr: float  # dB, of the image
    codec_detail: float  # mean absolute Laplacian of the codec's picture, over the image's
    detail: float  # the same of the stream's frames
    face_found: float | None  # share of the frames in which dlib finds one face
    lips_follow: float | None  # correlation of the inner lips' distance, by dlib, with the loudness of the audio


def evaluate_portraits(
    images: Sequence[Path], audio: Path, out: Path, weights: Path | None = None, seconds: float = 5.0, landmarks: Path | None = None
) -> list[PortraitFigures]:
    """Writes portraits.json, portraits.md and portraits.jpg to `out`. Raises BadInput for files that cannot be used."""
    if landmarks is not None and not landmarks.is_file():
        raise BadInput(f"{landmarks} is not there: install a package that has it, such as libdlib-data, or leave --landmarks out")
    out.mkdir(parents=True, exist_ok=True)
    pcm_S = torch.from_numpy(np.concatenate(list(read_audio(audio))))[: int(seconds * SAMPLE_RATE)]
    stream = StreamConfig(crop="face") if can_find_faces() else StreamConfig()
    rows, panels = list[PortraitFigures](), list[np.ndarray]()
    with Avatar(weights) as avatar:
        assert isinstance(avatar.model, LiveAvatar)
        conditioner, vae = avatar.model.conditioner, VAE(avatar.model.config.vae).eval()
        load_into(vae, open_checkpoint(weights or DEFAULT_WEIGHTS).vae())
        for path in images:
            image_3HW = avatar.fit(path, stream)
            with avatar.open(image_3HW, stream, path) as session:
                frames_THW3 = torch.cat([block.frames_THW3 for block in session.stream(pcm_S.split(SAMPLE_RATE // 2))])
            true, made = image_3HW[None], metrics.as_rgb(frames_THW3)
            coded = reconstruct(vae, true)
            found, follow = read_face(frames_THW3.numpy(), pcm_S, landmarks)
            distance = conditioner.distance(image_3HW, conditioner.image_state(image_3HW, whole=True)["reference"])
            rows.append(PortraitFigures(
                path.name, distance, metrics.psnr(coded, true), metrics.sharpness(coded) / metrics.sharpness(true),
                metrics.sharpness(made) / metrics.sharpness(true), found, follow,
            ))  # fmt: skip
            at = torch.linspace(0, len(made) - 1, SHOWN).round().long()
            panels.append(torch.cat([metrics.as_frames(x) for x in (true, coded, made[at])]).permute(1, 0, 2, 3).flatten(1, 2).numpy())
            log.info("%s", rows[-1])
    Image.fromarray(np.concatenate(panels)).save(out / "portraits.jpg", quality=88)
    (out / "portraits.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    (out / "portraits.md").write_text(table(rows))
    return rows


def read_face(frames_THW3: np.ndarray, pcm_S: torch.Tensor, landmarks: Path | None) -> tuple[float | None, float | None]:
    """(face_found, lips_follow) of a video and its audio."""
    if not can_find_faces():
        return None, None
    dlib = import_module("dlib")
    detector, predictor = dlib.get_frontal_face_detector(), dlib.shape_predictor(str(landmarks)) if landmarks else None
    boxes = [detector(frame, 1) for frame in frames_THW3[::FACE_EVERY]]
    found = sum(len(each) == 1 for each in boxes) / len(boxes)
    if predictor is None or not any(len(each) for each in boxes):
        return found, None
    box, gaps = next(each[0] for each in boxes if len(each)), []
    for n, frame in enumerate(frames_THW3):
        if n % FACE_EVERY == 0 and len(boxes[n // FACE_EVERY]):
            box = boxes[n // FACE_EVERY][0]
        points = np.array([(point.x, point.y) for point in predictor(frame, box).parts()], float)
        gap = sum(points[low, 1] - points[high, 1] for high, low in INNER_LIPS) / len(INNER_LIPS)
        gaps.append(gap / np.hypot(*(points[EYE_CORNERS[1]] - points[EYE_CORNERS[0]])))
    loud_T = torch.from_numpy(np.convolve(loudness(pcm_S[: len(pcm_S) // 640 * 640]), np.ones(3) / 3, "same"))
    frames = min(len(loud_T), len(gaps))
    return found, correlation(torch.tensor(gaps[:frames]), loud_T[:frames])


def table(rows: Sequence[PortraitFigures]) -> str:
    """As markdown."""
    lines = ["| image | distance | codec, dB | codec's detail | frames' detail | face found | lips follow loudness |", "|---" * 7 + "|"]
    for row in rows:
        name, *figures = asdict(row).values()
        lines.append(f"| {name} | {' | '.join('-' if value is None else f'{value:.2f}' for value in figures)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m everface.train.evaluate.portraits", description="Show how a model treats portraits.")
    parser.add_argument("out", type=Path, help="folder for portraits.jpg, .md and .json")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    parser.add_argument("--audio", type=Path, default=DEFAULT_WEIGHTS / "speech.wav", help="what they say (the bundled speech.wav)")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--weights", type=Path, help="folder of the model (the bundled one)")
    parser.add_argument("--landmarks", type=Path, metavar="FILE", help="dlib's weights for 68 landmarks, to read lips with")
    args = parser.parse_args()
    start_log()
    log.setLevel("INFO")
    try:
        evaluate_portraits(args.images, args.audio, args.out, args.weights, args.seconds, args.landmarks)
    except EverfaceError as error:
        raise SystemExit(f"everface: {error}") from None
    print((args.out / "portraits.md").read_text(), end="")


if __name__ == "__main__":
    main()
