"""Between the stages: the student learns where the teacher's long path ends, for the noise that it began with.

Four Euler steps of an undistilled model take the likeliest way out of any noise: what is rare, as a blink, is lost in the first. The
teacher's many steps find it. So the teacher follows clips from noise to their end and keeps where it stood at the student's levels;
the student, causal and at one level throughout, then learns from each such place to foretell the end. CausVid (arXiv 2412.07772) and
Self-Forcing (arXiv 2506.08009) start their students so; distribution matching, which prefers the likely too, finds the rest in place.

    everface train ode RUN --clips DIR --student DIT --teacher DIT
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from everface.core.config import DiTConfig
from everface.core.errors import BadInput
from everface.core.log import log
from everface.model.schedule import euler, sigmas
from everface.train.clips import Clips
from everface.train.forcing import MOTION_LATENTS, Window, WindowModel, draw_noise, draw_window, region_weight
from everface.train.loop import descend, new_dit, split_clips
from everface.train.plans import TINY, Ode
from everface.train.spread import Ranks, ranks
from everface.train.teacher import PLACES, velocity

LEAST = 0.05  # a student's level below it is no place to learn from: the end is a hundredth away
VALID = 2  # paths files to measure on
SAY_EVERY = 20


class Paths(NamedTuple):
    """What one file of paths holds. x_SB16Fhw: the teacher's latents at the student's levels, from pure noise on; x0 of the window: their end."""

    window: Window
    x_SB16Fhw: torch.Tensor


def train_ode(
    run_dir: Path, clips_dir: Path, student: Path, teacher: Path, plan: Ode, config: DiTConfig = TINY, device: str = "cpu"
) -> Path:
    """Make what is missing of the paths, `run_dir/paths`, train, and return the path of the averaged weights, `run_dir/dit.safetensors`.

    Resumes. Paths that are there are taken as they are: another teacher or plan wants another folder.
    """
    clips, _ = split_clips(clips_dir, plan.held_out)
    _, blocks, _ = plan.curriculum[-1]
    if blocks * config.block_frames > clips.latents_N16Thw.shape[2] - 2:
        raise BadInput(f"paths of {blocks} blocks are longer than the clips of {clips_dir}: set a shorter curriculum")
    with ranks(device) as among:
        files = make_paths(run_dir / "paths", clips, teacher, plan, config, among)
        dit = new_dit(config, plan.seed, student).to(among.device)
        model, levels = WindowModel(dit, again=plan.checkpoint), student_levels(plan)
        h, w = clips.latents_N16Thw.shape[-2:]
        weight = region_weight(h, w, plan.mouth, plan.eyes).to(among.device)
        unseen, seen = files[:VALID], files[VALID:]

        def loss_of(number: int, _blocks: int, _batch: int) -> torch.Tensor:
            epoch, at = divmod(number, len(seen))
            order = random.Random(plan.seed * 49_979_687 + epoch).sample(seen, len(seen))
            paths, dice = read_paths(order[at], among.device), random.Random(plan.seed * 7_919_003 + number)
            return path_loss(model, paths, levels, [dice.randrange(len(levels)) for _ in paths.x_SB16Fhw[0]], weight)

        @torch.no_grad()
        def validate() -> float:
            """Loss on paths that are not trained on, over all levels."""
            held = [read_paths(file, among.device) for file in unseen]
            each = [path_loss(model, p, levels, [s] * p.x_SB16Fhw.shape[1], weight).item() for p in held for s in range(len(levels))]
            return sum(each) / len(each)

        return descend(run_dir, plan, dit, loss_of, validate, among)


def student_levels(plan: Ode) -> list[float]:
    return [level for level in sigmas(plan.steps, plan.shift) if level >= LEAST]


def path_levels(plan: Ode) -> list[float]:
    """The teacher's noise levels from 1 to 0: `teacher_steps` of its own sampler and the student's between them."""
    return sorted({*sigmas(plan.teacher_steps, plan.shift), *student_levels(plan)}, reverse=True)


@torch.no_grad()
def make_paths(folder: Path, clips: Clips, teacher: Path, plan: Ode, config: DiTConfig, among: Ranks) -> list[Path]:
    """Files of one batch of paths each; what file n holds depends on (seed, n) only. Ranks share them out."""
    folder.mkdir(parents=True, exist_ok=True)
    _, blocks, batch = plan.curriculum[-1]
    files = [folder / f"{n:05d}.safetensors" for n in range(max(VALID + 1, plan.paths // batch))]
    missing = [n for n in range(among.rank, len(files), among.world) if not files[n].exists()]
    if missing:
        dit = new_dit(config, 0, teacher).eval().to(among.device)
        model = WindowModel(among.shard(dit, plan.shard_over) if plan.shard and among.world > 1 else dit, full=True)
    for done, n in enumerate(missing):
        rng = random.Random(plan.seed * 15_487_469 + n)
        window = draw_window(clips, batch, blocks, config.block_frames, rng, among.device, PLACES)
        paths = follow(model, window, plan, torch.Generator().manual_seed(plan.seed * 1_000_003 + n))
        write_paths(files[n], paths)
        if done % SAY_EVERY == 0:
            log.info("the teacher's paths: %d of %d files", n + 1, len(files))
    among.total(0.0)  # nobody reads a file that another has not written
    return files


def follow(model: WindowModel, window: Window, plan: Ode, generator: torch.Generator) -> Paths:
    """The teacher's way from noise, Euler step by Euler step; of window.x0_B16Fhw nothing but the shape is read."""
    wanted, kept = student_levels(plan), []
    x = draw_noise(window.x0_B16Fhw.shape, generator, plan.noise_correlation).to(window.x0_B16Fhw)
    for now, following in pairwise(path_levels(plan)):
        if now in wanted:
            kept.append(x)
        x = euler(x, velocity(model, x, window, now, plan.guidance), now, following)
    return Paths(replace(window, x0_B16Fhw=x), torch.stack(kept))


def path_loss(model: WindowModel, paths: Paths, levels: list[float], of: list[int], weight_hw: torch.Tensor) -> torch.Tensor:
    """Weighted mean squared velocity error; clip b stands at level `of[b]`, all its blocks alike, and its target leads to the path's end."""
    window, x_SB = paths
    x = torch.stack([x_SB[s, b] for b, s in enumerate(of)])
    sigma_B = torch.tensor([levels[s] for s in of], device=x.device)
    target = (x - window.x0_B16Fhw) / sigma_B.view(-1, 1, 1, 1, 1)
    v = model(x, replace(window, sigma_Bn=sigma_B[:, None].expand(-1, len(window.sink_distances))))
    return (weight_hw * (v.float() - target).square()).mean()


def write_paths(file: Path, paths: Paths) -> None:
    """float16; of the motion frames the first two, as at a stream's start the others repeat the second."""
    window, x_SB = paths
    tensors = {
        "x": x_SB, "x0": window.x0_B16Fhw, "reference": window.reference_B16_1hw, "motion": window.motion_B16Thw[:, :, :2],
        "features": window.features_BLCF,
    }  # fmt: skip
    whole = {name: t.half().contiguous().cpu() for name, t in tensors.items()}
    places = torch.tensor([window.first_frame, *window.sink_distances])
    partial = file.with_suffix(".partial")
    save_file(whole | {"places": places}, partial)
    partial.rename(file)


def read_paths(file: Path, device: str) -> Paths:
    held = load_file(file, device=device)
    first, *distances = held.pop("places").tolist()
    x, x0, reference, motion, features = (held[name].float() for name in ("x", "x0", "reference", "motion", "features"))
    motion = torch.cat([motion, motion[:, :, 1:].expand(-1, -1, MOTION_LATENTS - 2, -1, -1)], dim=2)
    sigma = torch.ones(len(x0), len(distances), device=x0.device)
    return Paths(Window(x0, sigma, reference, motion, features, first, tuple(distances)), x)
