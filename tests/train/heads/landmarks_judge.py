"""An outside judge of a model of heads: dlib's 68 landmarks, which know nothing of this project, on the people that `everface.train.chain.evaluate` rendered.

    python -m tests.train.heads.landmarks_judge MODEL --people OUT/people

How far the inner lips are apart, how wide the mouth is and how far the lids are open, in the true and in the generated video, beside the renderer's own values. A
person whom dlib cannot read in the true video says nothing about the model. Needs the package dlib-bin, and Debian's libdlib-data with the landmarks' weights.
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from everface import Avatar, Deployment
from everface.train.chain.frames import as_video, read_frames, read_rest
from everface.train.data.clips import STILL_FRAMES
from everface.train.evaluate.run import stream_frames

LANDMARKS = Path("/usr/share/dlib/shape_predictor_68_face_landmarks.dat")
SHUT, OPEN = 0.6, 0.8  # of the median height of the lids' gap: a blink goes below one, and the next begins after the other
LOST = 25  # frames without a face after which a video is not read


def landmarks(frames_THW3: np.ndarray) -> np.ndarray | None:
    """Points [T, 68, 2] in pixels. A frame without a face has those of the frame before; None where there is none for `LOST` frames."""
    dlib: Any = import_module("dlib")
    detector, predictor, box, lost, points = dlib.get_frontal_face_detector(), dlib.shape_predictor(str(LANDMARKS)), None, 0, []
    for n, frame in enumerate(frames_THW3):
        if n % 5 == 0 or box is None:
            boxes = detector(frame, 0)
            box = max(boxes, key=lambda each: each.area()) if boxes else box
            lost = 0 if boxes else lost + (5 if box else 1)
            if lost >= LOST:
                return None
        points.append([(p.x, p.y) for p in predictor(frame, box).parts()] if box else [(np.nan, np.nan)] * 68)
    return np.array(points, float)


def read(points_T68x2: np.ndarray) -> dict[str, np.ndarray]:
    """Opening and width over the distance of the eyes' outer corners; height of the lids' gap over its width, mean of both eyes."""
    p = points_T68x2

    def apart(a: int, b: int) -> np.ndarray:
        return np.linalg.norm(p[:, a] - p[:, b], axis=1)

    eyes = apart(36, 45)
    opening = (p[:, 65:68, 1] - p[:, 61:64, 1]).mean(1) / eyes
    lids = ((apart(37, 41) + apart(38, 40)) / apart(36, 39) + (apart(43, 47) + apart(44, 46)) / apart(42, 45)) / 4
    return {"opening": opening, "width": apart(48, 54) / eyes, "lids": lids}


def blinks(lids_T: np.ndarray) -> int:
    """How often the lids shut."""
    count, shut = 0, False
    for value in lids_T / np.nanmedian(lids_T):
        count += int(not shut and value < SHUT)
        shut = bool(value < SHUT or (shut and value < OPEN))
    return count


def judge(avatar: Avatar, path: Path) -> dict[str, float] | None:
    """One person; None where dlib does not find the face."""
    rest, frames = read_rest(path), read_frames(path)
    made = stream_frames(avatar, as_video(frames[:1], "cpu")[:, 0], torch.from_numpy(rest["audio"])).numpy()
    T = min(len(made), len(frames) - STILL_FRAMES, len(rest["opening"]))
    true_points, made_points = landmarks(frames[STILL_FRAMES:][:T]), landmarks(made[:T])
    if true_points is None or made_points is None:
        return None
    row: dict[str, float] = {"renderer_blinks": blinks(1 - rest["blink"][:T])}
    for name, points in (("true", true_points), ("made", made_points)):
        seen = read(points)
        row[f"{name}_blinks"] = blinks(seen["lids"])
        for key in ("opening", "width"):
            known = np.isfinite(seen[key])
            row[f"{name}_{key}"] = float(np.corrcoef(seen[key][known], rest[key][:T][known])[0, 1])
            row[f"{name}_{key}_deviation"] = float(seen[key][known].std())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--people", type=Path, required=True, help="folder of clips that the evaluation rendered")
    parser.add_argument("--every", type=int, nargs=2, default=(1, 0), metavar=("N", "FIRST"), help="judge each N-th person, from this one on")
    args = parser.parse_args()
    with Avatar(args.model, None, Deployment(threads=1)) as avatar:
        for path in sorted(args.people.glob("*.npy"))[args.every[1] :: args.every[0]]:
            print(json.dumps({"person": path.stem} | (judge(avatar, path) or {"face": 0})), flush=True)


if __name__ == "__main__":
    main()
