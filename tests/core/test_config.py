"""Configurations: values that cannot be used are refused when the configuration is made."""

from __future__ import annotations

import pytest

from everface.core.config import Deployment, StreamConfig, check_size
from everface.core.errors import BadInput


def test_a_size_that_cannot_be_used_is_refused_with_the_nearest() -> None:
    sizes = {(50, 100): "128x64", (1, 1): "64x64", (385, 705): "704x384", (64, 9999): "2048x64", (0, 0): "64x64"}
    for size, nearest in sizes.items():
        with pytest.raises(BadInput, match=nearest):
            check_size(*size)
        with pytest.raises(BadInput, match="multiples of 64"):
            StreamConfig(size=size)
    assert check_size(2048, 64) == (2048, 64) == StreamConfig(size=(2048, 64)).size


@pytest.mark.parametrize("bad", [{"sampler": "five"}, {"compat": "none"}])
def test_an_unknown_choice_of_a_stream_is_refused(bad: dict[str, str]) -> None:
    with pytest.raises(BadInput, match="choose one of"):
        StreamConfig(**bad)  # pyright: ignore[reportArgumentType]  a wrong value on purpose


@pytest.mark.parametrize(
    "bad",
    [
        {"attention": "none"}, {"dtype": "fp4"}, {"frames": "disk"}, {"frames": "device", "placement": "2"},
        {"dtype": "fp8-attention", "attention": "cudnn"},  # which reads keys of 16 bits only
    ],
)  # fmt: skip
def test_a_deployment_that_cannot_be_is_refused(bad: dict[str, str]) -> None:
    with pytest.raises(BadInput, match="choose"):
        Deployment(**bad)  # pyright: ignore[reportArgumentType]  a wrong value on purpose
