"""How unlike the images of its training an image is, by the latent that the codec makes of it.

Two Gaussians in a few principal directions (probabilistic PCA) stand for the latents of training images and for latents that are not framed like
them: the same ones shifted, turned, zoomed, shuffled, blank. What counts is the ratio of their likelihoods. The density of training images alone
does not tell: the latent of a gray square is likelier than that of a face (Nalisnick et al., 2019; the ratio is Ren et al., 2019).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from everface.core.errors import BadWeights

FILE = "familiarity.safetensors"  # beside the weights
KNOWN_SHARE = 0.99  # of training images: their distance is 0 or less
PARTS = ("known", "other")
NAMES = ("latent.mean", "latent.std", "offset", "scale", *(f"{part}.{name}" for part in PARTS for name in ("mean", "axes", "variance", "rest")))


class Familiarity:
    """Read-only, so thread-safe.

    tensors: of NAMES. `latent.mean` and `latent.std` [C] per channel; for each part the mean [C, h, w], k orthonormal axes [k, C, h, w], the
    variance [k] along them and that of each remaining direction, `rest`; `offset` and `scale` turn the log ratio into `distance`.
    Raises BadWeights for others.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        if missing := [name for name in NAMES if name not in tensors]:
            raise BadWeights(f"{FILE} lacks {missing[0]}: train it again, or delete it and no image is judged")
        self.tensors = {name: tensors[name].float() for name in NAMES}
        shape = self.tensors["known.mean"].shape
        fits = len(shape) == 3 and all(self.tensors[f"{part}.axes"].shape[1:] == self.tensors[f"{part}.mean"].shape == shape for part in PARTS)
        if not fits or self.tensors["latent.mean"].shape != shape[:1]:
            raise BadWeights(f"the parts of {FILE} do not fit each other: train it again, or delete it and no image is judged")

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the latents that it judges."""
        _, h, w = self.tensors["known.mean"].shape
        return h, w

    def distance(self, latent_Chw: Tensor) -> float:
        """Of an image's one-frame latent, [C, *size]. 0 or less for KNOWN_SHARE of training images; the unit is their standard deviation."""
        t = self.tensors
        if latent_Chw.shape != t["known.mean"].shape:
            raise BadWeights(f"{FILE} is of latents {list(t['known.mean'].shape)}, not {list(latent_Chw.shape)}: it belongs to other weights")
        x = normalized(latent_Chw.float()[None].cpu(), t["latent.mean"], t["latent.std"])
        return ((self.log_ratio(x) - t["offset"]) / t["scale"]).item()

    def log_ratio(self, x_NChw: Tensor) -> Tensor:
        """[N]: negative where known is likelier. `x_NChw` is normalized and of the fitted size."""
        known, other = (self._surprise(x_NChw.flatten(1), part) for part in PARTS)
        return known - other

    def _surprise(self, x_ND: Tensor, part: str) -> Tensor:
        """Twice the negative log likelihood per dimension, but for a constant."""
        mean, axes, variance, rest = (self.tensors[f"{part}.{name}"] for name in ("mean", "axes", "variance", "rest"))
        away = x_ND - mean.flatten()
        along = away @ axes.flatten(1).T
        outside = away.square().sum(1) - along.square().sum(1)
        size, k = x_ND.shape[1], len(variance)
        return ((along.square() / variance).sum(1) + outside / rest + variance.log().sum() + (size - k) * rest.log()) / size


def normalized(latents_NChw: Tensor, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """Latents with mean 0 and standard deviation 1 per channel."""
    return (latents_NChw - mean_C[:, None, None]) / std_C[:, None, None]
