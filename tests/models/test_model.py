"""Live Avatar's side of a session: when the attention sink is refreshed, and what is not accepted as a result."""

from __future__ import annotations

import pytest
import torch

from everface.core.config import Deployment
from everface.core.errors import BadInput
from everface.models import LIVE_AVATAR
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS, build_conditioner
from everface.models.live_avatar.model import LiveAvatar
from everface.models.live_avatar.names import not_finite, role_specs
from everface.models.live_avatar.sink import SinkRefresh
from everface.runtime.registry import load_model, path_of

LATENT = torch.ones(16, 1, 4, 4)


def test_it_is_registered() -> None:
    assert load_model(path_of(LIVE_AVATAR)) is LiveAvatar


def test_the_image_encoder_can_stay_on_the_cpu() -> None:
    conditioner = build_conditioner(DEFAULT_WEIGHTS, None, Deployment(device="meta", image_encoder="cpu"))
    assert conditioner.device.type == "cpu" == next(conditioner.vae.parameters()).device.type


def test_roles() -> None:
    assert [role.name for role in role_specs(3)] == ["step0", "step1", "step2", "decode"]
    with pytest.raises(BadInput, match="does nothing"):
        role_specs(0)


def test_the_sink_is_waited_for_and_set_once() -> None:
    sink = SinkRefresh(4)
    assert [sink.depends_on(i) for i in (0, 3, 4, 9)] == [None, None, 0, 0]
    sink.result(0, {"clean": LATENT})
    assert sink.depends_on(4) is None and sink.update(3) is None
    update = sink.update(4)
    assert update is not None and torch.equal(update["sink"], LATENT)
    assert sink.update(5) is None and sink.depends_on(6) is None


def test_an_interrupted_first_block_keeps_the_first_sink(caplog: pytest.LogCaptureFixture) -> None:
    sink = SinkRefresh(4)
    assert sink.update(4) is None and "keeps its first sink" in caplog.text
    assert sink.depends_on(5) is None


@pytest.mark.parametrize("at", [None, 4])
def test_no_refresh(at: int | None) -> None:
    sink = SinkRefresh(at)
    sink.skip()
    sink.result(0, {})
    assert sink.update(4) is None and sink.depends_on(4) is None


def test_a_missing_latent_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="without its clean latent"):
        SinkRefresh(4).result(0, {})


def test_values_that_are_not_finite_name_their_role() -> None:
    assert not_finite({}) is None and not_finite({"finite": torch.tensor([1, 1])}) is None
    assert "role 1 of the pipeline" in (not_finite({"finite": torch.tensor([1, 0, 1])}) or "")
