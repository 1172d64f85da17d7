"""LoRA in training is the LoRA that is merged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from tests.train.miniature import SMALL_DIT, STAGE2, small_dit

from everface.networks.transformer.dit import DiT
from everface.train.distill.lora import add_adapters, without_adapters
from everface.train.distill.stage2 import train_stage2
from everface.train.pretrain.window_model import WindowModel
from everface.weights.lora import check_targets, read_lora


def test_a_lora_trains_beside_frozen_weights_and_merges_as_the_official_one(start: tuple[Path, Path, Path], tmp_path: Path) -> None:
    plan = replace(STAGE2, lora_rank=4, lora_alpha=2.0, lr=1e-2)
    path = train_stage2(tmp_path / "lora", *start, plan, SMALL_DIT)
    base, lora = load_file(start[1]), read_lora(path, alpha=2.0)
    check_targets(lora, base, {n: tuple(t.shape) for n, t in base.items()})
    assert lora.rank == 4 and path.name == "lora.safetensors"

    adapted = add_adapters(small_dit(0), 4, 2.0, seed=plan.seed)
    adapted.load_state_dict(load_file(path), strict=False)
    merged = DiT(SMALL_DIT).eval()
    merged.load_state_dict({n: lora.merge(n, t) for n, t in base.items()})
    features = torch.randn(1, 12, 17, generator=torch.Generator().manual_seed(0))
    outs = []
    for dit in (adapted, merged, small_dit(0)):
        audio = dit.casual_audio_encoder.encode_block(features[..., 5:], features[..., :5])
        text_kv = dit.text_kv(dit.embed_text(torch.zeros(1, 8)))
        x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            outs.append(dit(x, dit.time(600.0), text_kv, audio, dit.new_cache(8, 8), 0, 9))
    torch.testing.assert_close(outs[0], outs[1], atol=2e-5, rtol=1e-4)
    assert (outs[0] - outs[2]).abs().max() > 1e-4
    with without_adapters(adapted):
        model = WindowModel(adapted)
        assert not any(m.enabled for m in model.modules() if hasattr(m, "lora_A"))
