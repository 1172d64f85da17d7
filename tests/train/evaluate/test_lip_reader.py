"""The lip reader on disk."""

from __future__ import annotations

import pytest
import torch

from everface.core.errors import BadWeights
from everface.train.evaluate.lip_reader import LipReader


def test_reader_survives_the_disk(reader, clip, tmp_path):
    reader.save(tmp_path / "reader.safetensors")
    for a, b in zip(LipReader.load(tmp_path / "reader.safetensors").read(clip), reader.read(clip)):
        assert torch.equal(a, b)
    assert 100_000 < sum(p.numel() for p in reader.parameters()) < 150_000
    (tmp_path / "reader.safetensors").write_bytes(b"not weights")
    with pytest.raises(BadWeights, match="train_lip_reader"):
        LipReader.load(tmp_path / "reader.safetensors")
