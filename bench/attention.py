"""The attention that a step or a session runs with, by the name that its row has.

    auto, triton, gluon, cudnn, flash, flash-attn, xformers     `Deployment.attention`, in bfloat16
    triton-e4m3, gluon-e4m3                                     in 8 bits as well: dtype "fp8-attention"
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from everface.core.config import Deployment
from everface.core.errors import Unavailable
from everface.models.live_avatar.builders import select_attention
from everface.weights.quantize import FP8_ATTENTION

E4M3 = "-e4m3"
GEMMS = {"bf16": "bfloat16", "fp8": "fp8"}  # the dtype of a deployment by that of the GEMMs


def deployment(gemms: str, attention: str, device: str, sessions: int = 1) -> Deployment:
    """Inline on this device. Raises BadInput for an attention that does not exist."""
    dtype = FP8_ATTENTION if attention.endswith(E4M3) else GEMMS[gemms]
    return Deployment("inline", device, dtype, sessions=sessions, attention=attention.removesuffix(E4M3))


def parametrize(metafunc: pytest.Metafunc, gemms: Sequence[str] = tuple(GEMMS)) -> None:
    """A test with arguments `gemms` and `attention` becomes a row for each attention that --attention names. Attention in 8 bits comes with
    GEMMs in 8 bits only."""
    if not {"gemms", "attention"} <= set(metafunc.fixturenames):
        return
    names = metafunc.config.option.attention.split(",")
    chosen = [(g, name) for name in names for g in gemms if g == "fp8" or not name.endswith(E4M3)]
    metafunc.parametrize(("gemms", "attention"), chosen, ids=[f"{g}-{name}" for g, name in chosen])


def select(chosen: Deployment, head_dim: int) -> dict[str, str]:
    """What runs: for the record. Skips, with the reason, if the backend cannot serve here."""
    try:
        return {"attention_selected": select_attention(chosen, head_dim)}
    except Unavailable as error:
        pytest.skip(str(error))
