"""Fits what tells images unlike those of the training (networks/familiarity.py) to the clips' reference images."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.networks.familiarity import FILE, KNOWN_SHARE, PARTS, Familiarity, normalized
from everface.weights.store import write_safetensors

AXES = 16
FITTED = 0.75
ODD_ONES = 3  # of each image
LEAST, MOST = 8, 2000  # images


def leave_familiarity(run_dir: Path, references_NChw: Tensor) -> None:
    """Write it beside weights that were trained on clips of these reference images, by their one-frame latents; not for fewer than LEAST."""
    if len(references_NChw) >= LEAST:
        write_familiarity(run_dir, fit_familiarity(references_NChw.cpu()))


def fit_familiarity(latents_NChw: Tensor, seed: int = 1) -> Familiarity:
    """latents_NChw: one-frame latents of training images, LEAST or more, in random order. Repeatable by seed."""
    latents = latents_NChw[:MOST].float()
    mean_C, std_C = latents.mean((0, 2, 3)), latents.std((0, 2, 3)).clamp(min=1e-4)
    x = normalized(latents, mean_C, std_C)
    fitted, held_out = x.split([round(len(x) * FITTED), len(x) - round(len(x) * FITTED)])
    tensors = {"latent.mean": mean_C, "latent.std": std_C, "offset": torch.zeros(()), "scale": torch.ones(())}
    with torch.random.fork_rng(devices=[]):  # svd_lowrank draws from the global generator
        torch.manual_seed(seed)
        for part, samples in zip(PARTS, (fitted, odd_ones(fitted, torch.Generator().manual_seed(seed))), strict=True):
            tensors |= {f"{part}.{name}": tensor for name, tensor in principal_axes(samples).items()}
    ratio = Familiarity(tensors).log_ratio(held_out)
    return Familiarity({**tensors, "offset": ratio.quantile(KNOWN_SHARE), "scale": ratio.std().clamp(min=1e-4)})


def odd_ones(x_NChw: Tensor, generator: torch.Generator) -> Tensor:
    """ODD_ONES latents of each image that are not framed as it is, each by another way, drawn by the generator."""
    h, w = x_NChw.shape[2:]

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, max(low + 1, high), (1,), generator=generator))

    def resized(part_Chw: Tensor) -> Tensor:
        return F.interpolate(part_Chw[None], (h, w), mode="nearest")[0]

    def corner(part: int) -> tuple[slice, slice]:
        top, left = pick(0, h - h // part), pick(0, w - w // part)
        return slice(top, top + h // part), slice(left, left + w // part)

    def smaller(one: Tensor) -> Tensor:
        small = F.avg_pool2d(one[None], 2)
        return F.pad(small, (w // 4, w - w // 2 - w // 4, h // 4, h - h // 2 - h // 4), mode="replicate")[0]

    ways = (
        lambda one: one.flip(1),
        lambda one: one.rot90(1, (1, 2)) if h == w else one.flip(1, 2),
        lambda one: one.roll((pick(h // 4, h - h // 4), pick(w // 4, w - w // 4)), (1, 2)),
        lambda one: one.flatten(1)[:, torch.randperm(h * w, generator=generator)].view_as(one),
        lambda one: resized(one[:, h // 4 : h - h // 4, w // 4 : w - w // 4]),
        lambda one: resized(one[(slice(None), *corner(4))]),
        lambda one: one.mean((1, 2), keepdim=True).expand_as(one),
        smaller,
    )
    return torch.stack([ways[way](one) for one in x_NChw for way in torch.randperm(len(ways), generator=generator)[:ODD_ONES].tolist()])


def principal_axes(x_NChw: Tensor) -> dict[str, Tensor]:
    """The Gaussian of probabilistic PCA: its mean, AXES axes or fewer, the variance along them and across."""
    x_ND = x_NChw.flatten(1)
    mean = x_ND.mean(0)
    away = x_ND - mean
    count, size = away.shape
    k = min(AXES, count - 1, size - 1)
    _, values, axes_DK = torch.svd_lowrank(away, q=min(2 * k, count, size), niter=4)
    variance = (values[:k].square() / (count - 1)).clamp(min=1e-6)
    rest = (away.square().sum() / (count - 1) - variance.sum()) / (size - k)
    shape = x_NChw.shape[1:]
    return {"mean": mean.view(shape), "axes": axes_DK[:, :k].T.reshape(k, *shape), "variance": variance, "rest": rest.clamp(min=1e-6)}


def write_familiarity(folder: Path, familiarity: Familiarity) -> Path:
    """Write folder/familiarity.safetensors: means and axes as float16, numbers that scale as float32."""
    path = folder / FILE
    kept = {n: t.half() if n.endswith(("mean", "axes")) and t.dim() > 1 else t for n, t in familiarity.tensors.items()}
    write_safetensors(path, {n: (t.dtype, tuple(t.shape)) for n, t in kept.items()}, lambda name: kept[name], {})
    return path
