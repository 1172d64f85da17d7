"""A transformer that begins with what another has learned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.train.miniature import SMALL_DIT, small_dit

from everface.core.errors import BadInput
from everface.networks.transformer.dit import DiT
from everface.train.pretrain.dit_files import adapt_dit, new_dit

WIDER = replace(SMALL_DIT, in_dim=32, out_dim=32, cond_dim=32, audio_dim=24)
FIRST_CONV = "casual_audio_encoder.encoder.conv1_local.conv.weight"


def test_blocks_are_taken_and_what_reads_latents_is_fresh() -> None:
    held, fresh = small_dit().state_dict(), new_dit(WIDER, 3).state_dict()
    made = adapt_dit(held, WIDER, 3)
    DiT(WIDER).load_state_dict(made, strict=True)
    blocks = [name for name in made if name.startswith("blocks.")]
    assert blocks and all(torch.equal(made[name], held[name]) for name in blocks)
    assert all(torch.equal(made[name], fresh[name]) for name in ("patch_embedding.weight", "head.head.weight", "frame_packer.proj_2x.weight"))
    assert torch.equal(made[FIRST_CONV][:, :12], held[FIRST_CONV]) and not made[FIRST_CONV][:, 12:].any()


def test_weights_of_another_width_are_refused() -> None:
    with pytest.raises(BadInput, match="begin from weights of the same width"):
        adapt_dit(small_dit().state_dict(), replace(WIDER, dim=64, ffn_dim=96), 3)


def test_a_pose_of_more_channels_begins_as_the_old_one() -> None:
    held, wider = small_dit(cond_dim=4 * 3).state_dict(), replace(small_dit().cfg, cond_dim=4 * 5)
    old, new = (weights["cond_encoder.weight"].unflatten(1, (4, -1)) for weights in (held, adapt_dit(held, wider, 3)))
    assert torch.equal(new[:, :, :3], old) and not new[:, :, 3:].any()
