"""Folders of clips that cannot be trained on: one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from everface.core.errors import BadInput
from everface.train.data.clips import read_clips, write_shard


def test_clips_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in (1, 0):
        write_shard(tmp_path / f"{name}.safetensors", [torch.full((2,), name)] * 2, [torch.full((3,), name)] * 2)
    clips = read_clips(tmp_path)
    assert len(clips) == 4 and clips.latents_N16Thw[:, 0].tolist() == [0, 0, 1, 1]


def test_a_folder_without_clips_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(BadInput, match="holds no clips"):
            read_clips(folder)
    save_file({"dit": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(BadInput, match="other tensors"):
        read_clips(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"RIFF")
    with pytest.raises(BadInput, match="cannot be read"):
        read_clips(tmp_path)
