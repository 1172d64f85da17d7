"""What a rollout is of: the scene (who, audio, noise) and the course that all rollouts of an iteration share."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import torch

from everface.networks.transformer.schedule import Schedule, sigmas, sink_distance
from everface.train.data.clips import STILL_LATENTS, Clips
from everface.train.distill.plans import Stage2Plan
from everface.train.pretrain.noise import draw_position
from everface.train.pretrain.windows import REFRESH_BLOCKS, REFRESHED_SHARE, TrainingWindow, features_of, still_motion

PERTURBATION = 0.1  # noise on a perturbed reference, of a latent's standard deviation of 1


@dataclass(frozen=True)
class Scene:
    """One stream of F latent frames."""

    reference_16_1hw: torch.Tensor
    motion_16Thw: torch.Tensor
    text_LC: torch.Tensor
    features_LCT: torch.Tensor  # 5 past video frames, then 4 a latent frame
    seed: int  # of the noise and of the reference's distances
    truth_16Fhw: torch.Tensor | None = None  # for rollouts that start from it


@dataclass(frozen=True)
class Course:
    """What all rollouts of an iteration share, so that sharded ranks make the same calls."""

    first_block: int  # the rollout's position in its stream, where it begins with empty rings
    blocks: int
    exit_step: int
    start_step: int = 0  # above 0: from the truth, noised to this step's level


def sampler_schedule(plan: Stage2Plan) -> Schedule:
    return Schedule.from_sigmas(sigmas(plan.steps, plan.shift))


def draw_course(plan: Stage2Plan, iteration: int) -> Course:
    """Position, exit step and start step of one iteration.

    The exit step is never one below the lowest level at which scores are compared: such a step changes a sample by a hundredth, and so
    small would be the student's gradient. (The paper draws among all four; the last begins at 0.009.)
    """
    rng = random.Random(plan.seed * 15_485_863 + iteration)
    exit_step = rng.randrange(sum(level >= plan.min_sigma for level in sampler_schedule(plan).sigmas[: plan.steps]))
    first = draw_position(rng, plan.start_share, (1 - plan.start_share) / 2, plan.max_block)
    start = rng.randint(1, exit_step) if exit_step and rng.random() < plan.truth_start else 0
    return Course(first, plan.blocks, exit_step, start)


@lru_cache(maxsize=4)
def shuffled(seed: int, epoch: int, count: int) -> list[int]:
    """The order of the clips in one epoch."""
    rows = list(range(count))
    random.Random(seed * 32_452_843 + epoch).shuffle(rows)
    return rows


def draw_scene(clips: Clips, plan: Stage2Plan, course: Course, block_frames: int, text_dim: int, number: int, device: str) -> Scene:
    """Scene `number` of the run. Clips are shuffled in every epoch, and the number selects one, so ranks never take the same."""
    epoch, at = divmod(number, len(clips))
    row, rng = shuffled(plan.seed, epoch, len(clips))[at], random.Random(plan.seed * 49_979_687 + number)
    z = clips.latents_N16Thw[row].to(device, torch.float32)
    moving, frames = z.shape[1] - STILL_LATENTS, course.blocks * block_frames
    offset = rng.randint(0, moving - frames)
    features = features_of(clips.features_NLCF[row], offset, frames, device)
    reference, other = z[:, :1], rng.randint(STILL_LATENTS, moving + 1)
    if course.first_block >= REFRESH_BLOCKS and rng.random() < REFRESHED_SHARE and plan.refresh:  # the adaptive sink is refreshed by then
        reference = z[:, other : other + 1]
    if rng.random() < plan.perturb_reference:
        g = torch.Generator().manual_seed(rng.getrandbits(63))
        reference = z[:, other : other + 1] + PERTURBATION * torch.randn(reference.shape, generator=g).to(z)
    truth = z[:, STILL_LATENTS + offset : STILL_LATENTS + offset + frames]
    return Scene(reference, still_motion(z), torch.zeros(1, text_dim, device=device), features, rng.getrandbits(31), truth)


def window_of(scene: Scene, course: Course, x0_16Fhw: torch.Tensor, block_frames: int) -> TrainingWindow:
    """The scene as the scores see it: a clip with the same reference and audio, at the same position."""
    indices = range(course.first_block, course.first_block + course.blocks)
    distances = tuple(sink_distance(scene.seed, index, course.exit_step) for index in indices)
    sigma = torch.zeros(1, course.blocks, device=x0_16Fhw.device)
    first = block_frames * course.first_block
    given = scene.reference_16_1hw[None], scene.motion_16Thw[None], scene.features_LCT[None]
    return TrainingWindow(x0_16Fhw[None].float(), sigma, *given, first, distances)
