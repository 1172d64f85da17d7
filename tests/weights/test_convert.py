"""`.pth` to safetensors: once, in a separate process, and nothing of a bad file is run or kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tests.weights.official import TINY, fill, vae_shapes

from everface.core.errors import BadWeights
from everface.weights import convert, layout
from everface.weights.convert import convert_cached
from everface.weights.files import open_file, read_metadata
from everface.weights.load import open_checkpoint
from everface.weights.store import fingerprint


class Intruder:
    """Unpickled without care, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def left_over(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_converted_once_and_again_when_changed(official: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, cache = official / layout.VAE, tmp_path / "cache"
    target = convert_cached(source, cache)
    back, wanted = open_file(target), fill(vae_shapes(TINY.vae), 9, torch.float32)
    assert back.keys() == wanted.keys() and all(torch.equal(back[name], wanted[name]) for name in wanted)
    assert read_metadata(target) == {"source_fingerprint": fingerprint(source)}
    stamp = target.stat().st_mtime_ns
    assert convert_cached(source, cache) == target and target.stat().st_mtime_ns == stamp
    assert caplog.text.count("converting") == 1
    torch.save({"a": torch.ones(2)}, source)
    target = convert_cached(source, cache)
    assert list(open_file(target)) == ["a"]
    target.write_bytes(target.read_bytes()[:-1])
    assert list(open_file(convert_cached(source, cache))) == ["a"]


def test_old_form_and_shared_storage(tmp_path: Path) -> None:
    both = torch.arange(6.0).reshape(2, 3)
    state = {"a": both, "b": both[1], "c": both.T.to(torch.bfloat16)}
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    back = open_file(convert_cached(tmp_path / "old.pth", tmp_path))
    assert all(torch.equal(back[name], state[name]) and back.dtype(name) == state[name].dtype for name in state)


def test_code_is_refused_and_not_run(tmp_path: Path, refusal) -> None:
    source, cache, trap = tmp_path / "bad.pth", tmp_path / "cache", tmp_path / "trap"
    torch.save({"a": torch.ones(2), "b": Intruder(trap)}, source)
    with pytest.raises(BadWeights) as caught:
        convert_cached(source, cache)
    refusal(caught.value, str(source), "code")
    assert not trap.exists() and left_over(cache) == []


@pytest.mark.parametrize("content", ["truncated", "text", "empty", "list", "nested", "absent"])
def test_other_files_are_refused(tmp_path: Path, refusal, content: str) -> None:
    source, cache = tmp_path / "bad.pth", tmp_path / "cache"
    torch.save({"list": [torch.ones(2)], "nested": {"model": {"a": torch.ones(2)}}}.get(content, {"a": torch.ones(999)}), source)
    if content == "truncated":
        source.write_bytes(source.read_bytes()[:-700])
    if content in ("text", "empty"):
        source.write_text("no weights" if content == "text" else "")
    if content == "absent":
        source.unlink()
    with pytest.raises(BadWeights) as caught:
        if content in ("absent", "nested"):
            convert_cached(source, cache)
        else:  # what the other process does, without the wait for it to start
            convert.write_converted(source, cache / "x.safetensors")
    refusal(caught.value, str(source))
    assert left_over(cache) == []


def test_reader_that_dies(official: Path, tmp_path: Path, refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert.sys, "executable", "/bin/false")
    with pytest.raises(BadWeights) as caught:
        convert_cached(official / layout.VAE, tmp_path / "cache")
    refusal(caught.value, layout.VAE, "status 1")
    assert left_over(tmp_path / "cache") == []


def test_older_sound_weights_are_converted(official: Path, cache: Path) -> None:
    (official / layout.AUDIO / "model.safetensors").unlink()
    torch.save({"lm_head.bias": torch.ones(2)}, official / layout.AUDIO / "pytorch_model.bin")
    assert list(open_checkpoint(official, cache=cache).audio()) == ["lm_head.bias"]
