"""Distribution matching: how a sample should move so that it looks like the teacher's, and how the fake score learns what it looks like.

Samples are noised to a level that teacher and fake both see; each foretells the clean clip. Where the fake, which knows the student's
samples, foretells something else than the teacher, which knows the truth, there the student is wrong (DMD2, arXiv 2405.14867):

    d = (fake_x0 - real_x0) / mean |x0 - real_x0|            dL/dx0 = d / number of elements
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache

import torch

from everface.model.schedule import sink_distance
from everface.train.data.clips import Clips
from everface.train.distill.rollout import PAST, VIDEO_FRAMES, Course, Scene, schedule_of
from everface.train.pretrain.plans import Stage2
from everface.train.pretrain.teacher import velocity
from everface.train.pretrain.windows import MOTION_LATENTS, Window, WindowModel, draw_noise, draw_place, shifted

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(noised x_B..., sigma_B) -> velocity, noise - clean."""
PERTURBATION = 0.1  # noise on a perturbed reference, of a latent's standard deviation of 1
LEAST = 1e-3  # of the normaliser


@torch.no_grad()
def dmd_gradient(x0_B: torch.Tensor, real: Velocity, fake: Velocity, sigma_B: torch.Tensor, noise_B: torch.Tensor) -> torch.Tensor:
    """d above, like x0 [B, ...]: the way in which to go down. The normaliser is each sample's own."""
    sigma = sigma_B.view(-1, *[1] * (x0_B.dim() - 1)).to(x0_B)
    x = (1 - sigma) * x0_B + sigma * noise_B
    real_x0, fake_x0 = (x - sigma * v(x, sigma_B) for v in (real, fake))
    size = (x0_B - real_x0).abs().flatten(1).mean(1).clamp(min=LEAST).view(sigma.shape)
    return (fake_x0 - real_x0) / size


def fake_loss(fake: WindowModel, x0_B16Fhw: torch.Tensor, window: Window, sigma: float, noise: torch.Tensor) -> torch.Tensor:
    """Flow matching on the student's samples, at one noise level."""
    v = velocity(fake, (1 - sigma) * x0_B16Fhw + sigma * noise, window, sigma)
    return (v - (noise - x0_B16Fhw)).square().mean()


def draw_level(plan: Stage2, rng: random.Random) -> float:
    """The level at which scores are compared: uniform, shifted, kept off both ends."""
    return min(max(shifted(rng.random(), plan.shift), plan.lowest), plan.highest)


def score_noise(x0: torch.Tensor, plan: Stage2, rng: random.Random) -> torch.Tensor:
    return draw_noise(x0.shape, torch.Generator().manual_seed(rng.getrandbits(63)), plan.noise_correlation).to(x0)


def draw_course(plan: Stage2, iteration: int) -> Course:
    """Of one iteration: where the stream stands, at which step all blocks leave, whether they start from the truth.

    A step below the lowest level at which scores are compared is no exit: what leaves it is what came to it, but for a hundredth, and
    that is all of a gradient that the student would get. (The paper draws among all four; the last begins at 0.009.)
    """
    rng = random.Random(plan.seed * 15_485_863 + iteration)
    leave = rng.randrange(sum(level >= plan.lowest for level in schedule_of(plan).sigmas[: plan.steps]))
    first = draw_place(rng, plan.near, (1 - plan.near) / 2, plan.reach)
    start = rng.randint(1, leave) if leave and rng.random() < plan.truth_start else 0
    return Course(first, plan.blocks, leave, start)


@lru_cache(maxsize=4)
def order(seed: int, epoch: int, count: int) -> list[int]:
    rows = list(range(count))
    random.Random(seed * 32_452_843 + epoch).shuffle(rows)
    return rows


def draw_scene(clips: Clips, plan: Stage2, course: Course, block_frames: int, text_dim: int, number: int, device: str) -> Scene:
    """Scene `number` of the run: clips go round in an order that is shuffled anew each time, so ranks never take the same one."""
    epoch, at = divmod(number, len(clips))
    row, rng = order(plan.seed, epoch, len(clips))[at], random.Random(plan.seed * 49_979_687 + number)
    z = clips.latents_N16Thw[row].to(device, torch.float32)
    moving, frames = z.shape[1] - 2, course.blocks * block_frames
    offset = rng.randint(0, moving - frames)
    features = clips.features_NLCF[row][..., VIDEO_FRAMES * offset : VIDEO_FRAMES * (offset + frames) + PAST].to(device, torch.float32)
    reference, other = z[:, :1], rng.randint(2, moving + 1)
    if course.first_block >= 4 and rng.random() < 0.6:  # the sink has been refreshed by then
        reference = z[:, other : other + 1]
    if rng.random() < plan.perturb:
        g = torch.Generator().manual_seed(rng.getrandbits(63))
        reference = z[:, other : other + 1] + PERTURBATION * torch.randn(reference.shape, generator=g).to(z)
    motion = torch.cat([z[:, :2], z[:, 1:2].expand(-1, MOTION_LATENTS - 2, -1, -1)], dim=1)
    truth = z[:, 2 + offset : 2 + offset + frames]
    return Scene(reference, motion, torch.zeros(1, text_dim, device=device), features, rng.getrandbits(31), truth)


def window_of(scene: Scene, course: Course, x0_16Fhw: torch.Tensor, block_frames: int) -> Window:
    """The scene as the scores see it: a clip with the same reference and sound, at the same place."""
    indices = range(course.first_block, course.first_block + course.blocks)
    distances = tuple(sink_distance(scene.seed, index, course.exit_step) for index in indices)
    sigma = torch.zeros(1, course.blocks, device=x0_16Fhw.device)
    first = block_frames * course.first_block
    given = scene.reference_16_1hw[None], scene.motion_16Thw[None], scene.features_LCT[None]
    return Window(x0_16Fhw[None].float(), sigma, *given, first, distances)


