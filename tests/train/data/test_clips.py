"""Folders of clips that cannot be trained on: one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from everface.core.errors import BadInput
from everface.train.data import clips as clips_module
from everface.train.data.clips import read_clips, split_clips, write_shard


def test_clips_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in (1, 0):
        write_shard(tmp_path / f"{name}.safetensors", [torch.full((2,), name)] * 2, [torch.full((3,), name)] * 2)
    clips = read_clips(tmp_path)
    assert len(clips) == 4 and clips.latents_N16Thw[:, 0].tolist() == [0, 0, 1, 1]


def test_nobody_is_held_out_and_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of one video are of one person; a drawn clip is a person of its own."""
    monkeypatch.setattr(clips_module, "MIN_TRAINING_CLIPS", 1)
    for name in ("film-aa-0000", "film-aa-0001", "film-bb-0000", "00000"):
        write_shard(tmp_path / f"{name}.safetensors", [torch.full((2,), len(name))] * 2, [torch.zeros(3)] * 2)
    training, held_out = split_clips(tmp_path, 3)  # two that are drawn, one of the first video
    assert len(held_out) == 3 and training.latents_N16Thw[:, 0].tolist() == [12, 12]
    for name in ("00000", "film-bb-0000"):
        (tmp_path / f"{name}.safetensors").unlink()
    with pytest.raises(BadInput, match="of other videos"):
        split_clips(tmp_path, 1)
    assert len(split_clips(tmp_path, 0)[0]) == 4


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
