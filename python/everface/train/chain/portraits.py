"""The portraits of a model of rendered people: three people and one drawn character, none of whom is in any training set.

    python -m everface.train.chain.portraits heads.npz portraits

`everface train bundle --portraits` takes the folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from everface.train.bundle import CHARACTERS, draw_portrait
from everface.train.heads.clips import REST
from everface.train.heads.renderer import Pose, Renderer

PEOPLE = {"ada": 2_000_000_115, "ben": 2_000_000_015, "mia": 2_000_000_123}  # seeds of people, chosen from contact sheets by eye
DRAWN = {"lou": CHARACTERS["mia"]}


def draw_portraits(assets: Path, size: int = 384) -> dict[str, Image.Image]:
    """Images with shut mouths by name. Needs EGL."""
    renderer, images = Renderer(assets, size), {}
    for name, seed in PEOPLE.items():
        renderer.show(seed)
        images[name] = Image.fromarray(renderer.draw(Pose(REST)))
    return images | {name: draw_portrait(seed, size) for name, seed in DRAWN.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m everface.train.chain.portraits", description="Draw the portraits of a model of rendered people.")
    parser.add_argument("assets", type=Path, help="the npz of everface.train.heads.assets")
    parser.add_argument("out", type=Path, help="the folder to write, one PNG a portrait")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, image in draw_portraits(args.assets).items():
        image.save(args.out / f"{name}.png")
        print(args.out / f"{name}.png")


if __name__ == "__main__":
    main()
