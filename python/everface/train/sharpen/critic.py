"""The critic that a decoder is trained with: a network that tells decoded crops from true ones, patch by patch.

Legend: B crops, T frames, H and W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

STRIDE, PAST = 4, 4  # pixels from one patch to the next; frames that a crop has more than the critic has answers


class Critic(nn.Module):
    """[B, 3, PAST + T, H, W] -> [B, 1, T, H / STRIDE, W / STRIDE], above 0 for what it takes for true. A patch has five frames, of 22x22 pixels; spectral norm
    keeps it from winning."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv3d(into, out, kernel, stride, (0, 1, 1)))
            for into, out, kernel, stride in (
                (3, width, (3, 4, 4), (1, 2, 2)),
                (width, 2 * width, (3, 4, 4), (1, 2, 2)),
                (2 * width, 4 * width, (1, 3, 3), 1),
                (4 * width, 1, (1, 3, 3), 1),
            )
        )

    def forward(self, video_B3THW: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            video_B3THW = F.leaky_relu(layer(video_B3THW), 0.2)
        return self.layers[-1](video_B3THW)


def critic_loss(critic: Critic, true_B3THW: Tensor, decoded_B3THW: Tensor) -> Tensor:
    """Hinge loss of the critic; 2 where it knows nothing."""
    return F.relu(1 - critic(true_B3THW)).mean() + F.relu(1 + critic(decoded_B3THW.detach())).mean()


def fooling_loss(critic: Critic, decoded_B3THW: Tensor, weight_B11HW: Tensor) -> Tensor:
    """What the decoder shall lower: the critic's doubt, where `weight_B11HW` says it matters."""
    answers = critic(decoded_B3THW)
    return -(answers * F.interpolate(weight_B11HW[:, :, 0], answers.shape[-2:], mode="area")[:, :, None]).mean()


def balanced_gradient(rebuilding: Tensor, fooling: Tensor, decoded_B3THW: Tensor, share: float) -> Tensor:
    """The gradient at the decoded pixels, of a leaf: the reconstruction loss's, and the fooling loss's scaled to `share` of its norm."""
    first, second = (torch.autograd.grad(loss, decoded_B3THW)[0] for loss in (rebuilding, fooling))
    return first + share * first.norm() / second.norm().clamp(min=1e-12) * second
