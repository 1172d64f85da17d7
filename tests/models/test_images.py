"""Image tensors: what fits is used as it is, and every other kind is one sentence with the way to convert it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from everface import Avatar, StreamConfig
from everface.core.errors import BadInput
from everface.media.image import check_image

IMAGE = torch.linspace(-1, 1, 3 * 64 * 64).reshape(3, 64, 64)

REFUSED: dict[str, tuple[torch.Tensor, str]] = {
    "0..255": ((IMAGE + 1) * 127.5, "pass image / 127.5 - 1"),
    "bytes": (((IMAGE + 1) * 127.5).byte(), "pass image.float() / 127.5 - 1"),
    "half": (IMAGE.half(), "pass image.float()"),
    "double": (IMAGE.double(), "pass image.float()"),
    "channels last": (IMAGE.permute(1, 2, 0), "pass image.permute(2, 0, 1)"),
    "a batch": (IMAGE[None], "pass image[0]"),
    "gray": (IMAGE[0], "RGB as [3, H, W]"),
    "one channel": (IMAGE[:1], "RGB as [3, H, W]"),
    "transparent": (torch.zeros(4, 64, 64), "RGB as [3, H, W]"),
    "no axis": (torch.tensor(0.0), "RGB as [3, H, W]"),
    "empty": (torch.zeros(3, 0, 0), "resize it"),
    "another size": (torch.zeros(3, 128, 64), "64x128 cannot be used in a video of 64x64"),
    "not a number": (IMAGE.index_fill(1, torch.tensor([5]), torch.nan), "not finite"),
    "infinite": (IMAGE.index_fill(1, torch.tensor([5]), -torch.inf), "not finite"),
    "too much contrast": (1.2 * IMAGE, "image.clamp(-1, 1)"),
    "no memory": (torch.zeros(3, 64, 64, device="meta"), "in memory"),
    "sparse": (IMAGE.to_sparse(), "in memory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_image_of_another_kind_is_refused(case: str) -> None:
    image, words = REFUSED[case]
    with pytest.raises(BadInput) as caught:
        check_image(image, (64, 64))
    text = str(caught.value)
    assert words in text and "\n" not in text and len(text) < 300


def test_the_way_that_a_refusal_names_leads_there() -> None:
    bytes_3HW = ((IMAGE + 1) * 127.5).round().byte()
    for image in (bytes_3HW.float() / 127.5 - 1, IMAGE.permute(1, 2, 0).permute(2, 0, 1), (1.2 * IMAGE).clamp(-1, 1)):
        assert check_image(image, (64, 64)) is not None


def test_an_image_that_fits_is_used_as_it_is() -> None:
    assert torch.equal(check_image(IMAGE, (64, 64)), IMAGE)
    assert torch.equal(check_image(IMAGE, None), IMAGE)
    found = check_image(IMAGE.clone().requires_grad_(), (64, 64))
    assert torch.equal(found, IMAGE) and not found.requires_grad
    with pytest.raises(BadInput, match="nearest is 128x64"):
        check_image(torch.zeros(3, 60, 100), None)


def test_an_image_in_0_to_1_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    check_image(IMAGE, (64, 64))
    assert not caplog.text
    check_image((IMAGE + 1) / 2, (64, 64))
    assert len(caplog.records) == 1 and "image * 2 - 1" in caplog.text


def test_a_session_refuses_it_when_it_opens_and_when_it_changes(small_model: Path, face: Path) -> None:
    with Avatar(small_model) as avatar:
        good = avatar.fit(face, StreamConfig())
        others: list[Any] = [np.asarray(good), good.tolist(), None, b"face.png", 5]
        for image in [*((good + 1) * scale for scale in (127.5, 2)), good.byte(), *others]:
            with pytest.raises(BadInput):
                avatar.open(image)
        with avatar.open(good) as session:
            for image in [(good + 1) * 127.5, good.permute(1, 2, 0), *(other for other in others if other is not None)]:
                with pytest.raises(BadInput):
                    session.change(image=image)
            session.change(image=good)
