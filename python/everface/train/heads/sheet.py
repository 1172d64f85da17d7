"""A contact sheet of people, to be looked at before anything is trained.

    python -m everface.train.heads.sheet heads.npz sheet.jpg --people 24 --seed 1
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from everface.train.heads.renderer import Pose, Renderer


def both(name: str, value: float) -> dict[str, float]:
    return {f"{name}_L": value, f"{name}_R": value}


EXPRESSIONS = (
    Pose(),
    Pose({"jawOpen": 0.55, **both("mouthLowerDown", 0.25), **both("browOuterUp", 0.2)}, (0.03, 0.18, 0.02)),
    Pose({"mouthFunnel": 0.7, "jawOpen": 0.22, "mouthPucker": 0.3}, (0.0, -0.22, 0.0)),
    Pose({**both("mouthSmile", 0.7), **both("cheekSquint", 0.5), **both("eyeSquint", 0.3), **both("mouthUpperUp", 0.2), "jawOpen": 0.05}, (-0.03, 0.1, -0.06)),
    Pose({**both("eyeBlink", 1.0), **both("mouthPress", 0.3)}, (0.08, -0.1, 0.03)),
    Pose({**both("mouthStretch", 0.4), "jawOpen": 0.14, **both("browDown", 0.4), "eyeLookOut_L": 0.5, "eyeLookIn_R": 0.5}, (0.0, 0.35, 0.0)),
)  # fmt: skip


def draw_sheet(assets: Path, people: int, seed: int, size: int = 256, across: int = 2, expressions: int = len(EXPRESSIONS)) -> tuple[np.ndarray, float]:
    """(image, seconds of processor time a frame): `across` people a row, each in so many expressions."""
    renderer, rows, taken, frames = Renderer(assets, size), [], 0.0, 0
    for n in range(people):
        renderer.show(seed + n)
        start = time.process_time()
        rows.append(np.concatenate([renderer.draw(pose) for pose in EXPRESSIONS[:expressions]], 1))
        taken, frames = taken + time.process_time() - start, frames + expressions
    rows += [np.zeros_like(rows[0])] * (-len(rows) % across)
    return np.concatenate([np.concatenate(rows[k : k + across], 1) for k in range(0, len(rows), across)]), taken / frames


def main() -> None:
    from PIL import Image

    parser = argparse.ArgumentParser(prog="python -m everface.train.heads.sheet", description="Draw a contact sheet of people.")
    parser.add_argument("assets", type=Path, help="the npz of everface.train.heads.assets")
    parser.add_argument("out", type=Path, help="the image to write")
    parser.add_argument("--people", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, default=256, help="pixels of one frame")
    parser.add_argument("--across", type=int, default=2, help="people a row")
    parser.add_argument("--expressions", type=int, default=len(EXPRESSIONS))
    parser.add_argument("--scale", type=float, default=1.0, help="of the written image")
    args = parser.parse_args()
    image, seconds = draw_sheet(args.assets, args.people, args.seed, args.size, args.across, args.expressions)
    picture = Image.fromarray(image)
    if args.scale != 1:
        picture = picture.resize((round(image.shape[1] * args.scale), round(image.shape[0] * args.scale)), Image.Resampling.LANCZOS)
    picture.save(args.out, quality=88)
    print(f"{args.out}: {args.people} people, {1 / seconds:.1f} frames per second of a core, the preparation of a person not counted")


if __name__ == "__main__":
    main()
