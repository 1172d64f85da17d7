"""Images that are unlike those of the training are told from those that are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.train.miniature import write_clips

from everface.core.errors import BadWeights
from everface.networks.familiarity import FILE, Familiarity
from everface.train.data.clips import read_clips
from everface.train.data.familiarity import fit_familiarity, leave_familiarity, odd_ones, write_familiarity
from everface.weights.files import open_file

FRAME = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(9))  # what all known latents share: how they are framed


def known(count: int, seed: int) -> torch.Tensor:
    """Latents [N, 4, 8, 8] with one composition, and three traits that vary."""
    g = torch.Generator().manual_seed(seed)
    traits = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    amounts = torch.randn(count, 3, 1, 1, 1, generator=g)
    return 2 * FRAME + 0.5 * (amounts * traits).sum(1) + 0.3 * torch.randn(count, 4, 8, 8, generator=g)


def test_known_images_are_within_and_others_beyond() -> None:
    familiarity = fit_familiarity(known(120, seed=1))
    within = [familiarity.distance(one) for one in known(100, seed=2)]
    assert sum(distance > 0 for distance in within) < 10
    g = torch.Generator().manual_seed(3)
    others = {"mirrored": FRAME.flip(2) * 2, "flat": torch.zeros(4, 8, 8), "noise": torch.randn(4, 8, 8, generator=g), "moved": known(1, 4)[0].roll(2, 1)}
    assert all(familiarity.distance(latent) > 1 for latent in others.values()), {n: familiarity.distance(z) for n, z in others.items()}


def test_it_is_the_same_from_a_file(tmp_path: Path) -> None:
    familiarity = fit_familiarity(known(80, seed=1))
    assert torch.equal(fit_familiarity(known(80, seed=1)).tensors["known.axes"], familiarity.tensors["known.axes"])
    path = write_familiarity(tmp_path, familiarity)
    assert path.name == FILE and path.stat().st_size < 2.2 * sum(t.numel() for t in familiarity.tensors.values()) + 2000
    held, image = Familiarity(open_file(path)), known(1, seed=7)[0]
    assert held.distance(image) == pytest.approx(familiarity.distance(image), abs=0.05)


def test_other_files_are_refused(tmp_path: Path) -> None:
    tensors = load_file(write_familiarity(tmp_path, fit_familiarity(known(40, seed=1))))
    with pytest.raises(BadWeights, match=r"lacks other\.rest"):
        Familiarity({name: tensor for name, tensor in tensors.items() if name != "other.rest"})
    with pytest.raises(BadWeights, match="do not fit each other"):
        Familiarity(tensors | {"known.axes": tensors["known.axes"][:, :2]})
    with pytest.raises(BadWeights, match=r"latents \[4, 8, 8\], not \[4, 9, 8\]"):
        Familiarity(tensors).distance(torch.zeros(4, 9, 8))


def test_the_reference_images_of_clips_are_their_first_latents(tmp_path: Path) -> None:
    clips = read_clips(write_clips(tmp_path / "clips", 24))
    leave_familiarity(tmp_path, clips.latents_N16Thw[:7, :, 0])
    assert not (tmp_path / FILE).exists()
    leave_familiarity(tmp_path, clips.latents_N16Thw[:, :, 0])
    fitted = fit_familiarity(clips.latents_N16Thw[:, :, 0])
    assert torch.equal(load_file(tmp_path / FILE)["known.mean"], fitted.tensors["known.mean"].half())


def test_odd_ones_are_none_of_those_they_come_from() -> None:
    x = known(12, seed=1)
    odd = odd_ones(x, torch.Generator().manual_seed(1))
    assert odd.shape == (36, 4, 8, 8) and odd.isfinite().all()
    assert min((one - other).abs().max() for one in odd for other in x) > 0.1
