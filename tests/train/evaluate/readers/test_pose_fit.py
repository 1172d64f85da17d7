"""A fit finds the character, not another, and not one with a broken eye."""

from __future__ import annotations

import pytest
import torch
from tests.train.evaluate.conftest import SIZE

from everface.train.evaluate.readers.pose_fit import fit_psnr
from everface.train.synthetic.characters import eyes_box, render
from everface.train.synthetic.identity import sample_identity
from everface.train.synthetic.motion import neutral


def test_fit_finds_the_character_and_not_another():
    generator = torch.Generator().manual_seed(5)
    id_NP = sample_identity(2, generator)
    anim_NA = torch.tensor([[0.7, 0.3, 0.0, 0.6, 0.035, -0.02, 0.04], [0.1, 0.7, 0.0, 0.2, -0.04, 0.02, -0.04]])
    frames = render(id_NP[:1], anim_NA, SIZE)
    start_NA = neutral(2)
    start_NA[:, :2] = anim_NA[:, :2] + 0.1
    whole, eyes = fit_psnr(id_NP[0], frames, start_NA)
    assert whole > 32 and eyes > 30
    assert fit_psnr(id_NP[1], frames, start_NA)[0] < 20


@pytest.mark.parametrize("fault", ["one shut", "blurred"])
def test_a_broken_eye_costs_the_eyes_what_it_hardly_costs_the_face(fault):
    """What the bar of 5 dB must see: with the other eye as it should be, no pose explains this one."""
    id_NP = sample_identity(1, torch.Generator().manual_seed(7))
    anim_NA = neutral(2)
    whole = render(id_NP, anim_NA, SIZE)
    broken, half = whole.clone(), SIZE // 2
    if fault == "one shut":
        broken[..., half:] = render(id_NP, anim_NA + torch.eye(7)[2], SIZE)[..., half:]
    else:
        top, bottom, _, right = eyes_box(SIZE)
        broken[..., top:bottom, half:right] = torch.nn.functional.avg_pool2d(whole, 9, 1, 4)[..., top:bottom, half:right]
    codec = 0.045 * torch.randn(whole.shape, generator=torch.Generator().manual_seed(1))  # of 33 dB, the same for both
    (face, eyes), (other_face, other_eyes) = (fit_psnr(id_NP[0], x + codec, anim_NA) for x in (whole, broken))
    assert eyes - other_eyes > 6 and eyes - other_eyes > 1.5 * (face - other_face), (face, eyes, other_face, other_eyes)
