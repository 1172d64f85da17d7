"""Sets are made the same every time, and of a user's files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from everface.core.errors import BadInput, Unavailable
from everface.genbench.build import SETS, build_from, build_set, open_set
from everface.genbench.manifest import BenchmarkSet, digest, read_manifest
from everface.train.synthetic import voices

speaks = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): digest(path) for path in folder.rglob("*") if path.is_file()}


@speaks
def test_a_set_is_the_same_every_time_and_its_beginning_too(tmp_path: Path) -> None:
    build_set("short", tmp_path / "a", 3)
    build_set("short", tmp_path / "b", 2)
    a, b = files(tmp_path / "a"), files(tmp_path / "b")
    assert {name: b[name] for name in b if name != "manifest.jsonl"}.items() <= a.items()
    found = read_manifest(tmp_path / "a")  # checks the digests
    assert [sample.id for sample in found.samples] == ["short-000", "short-001", "short-002"]
    assert len({sample.tags.language[:2] for sample in found.samples}) == 3
    assert all(10 <= sample.duration_s <= 12 and sample.truth == "drawn" and sample.text for sample in found.samples)
    assert len({sample.sha256["image"] for sample in found.samples}) == 3
    assert Image.open(tmp_path / "a/images/short-000.png").size == (512, 512)


@speaks
def test_a_named_set_is_made_once(tmp_path: Path) -> None:
    made: list[int] = []
    open_set("short", tmp_path, 2, lambda done, many: made.append(done))
    assert len(open_set("short", tmp_path, 1, lambda done, many: made.append(done)).samples) == 1
    assert made == [1, 2]
    assert (SETS["short"].samples, SETS["long"].samples) == (100, 15) and SETS["long"].seconds > 300


def test_without_espeak_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voices.shutil, "which", lambda name: None)
    with pytest.raises(Unavailable, match="espeak-ng"):
        build_set("short", tmp_path, 1)


def test_a_set_of_own_files(small_set: BenchmarkSet, tmp_path: Path) -> None:
    source = tmp_path / "own"
    source.mkdir()
    for i, name in enumerate(("ann", "bob", "no image of its own")):
        shutil.copyfile(small_set.folder / f"{i % 2}.wav", source / f"{name}.wav")
        if i < 2:
            shutil.copyfile(small_set.folder / f"{1 - i}.png", source / f"{name}.png")
    (source / "ann.txt").write_text("Hello.\n")
    made = build_from(source, tmp_path / "made")
    assert [sample.id for sample in made.samples] == ["ann", "bob", "sample-002"]
    assert [sample.text for sample in made.samples] == ["Hello.", "", ""]
    assert made.samples[0].duration_s == pytest.approx(5) and made.samples[0].truth == "" and made.samples[0].face is None
    assert digest(made.image(made.samples[0])) == digest(small_set.folder / "1.png") == digest(made.image(made.samples[2]))
    assert read_manifest(tmp_path / "made") == made


def test_a_folder_without_voices_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(BadInput, match="has no voices"):
        build_from(tmp_path, tmp_path / "out")
    with pytest.raises(BadInput, match="no folder"):
        build_from(tmp_path / "none", tmp_path / "out")
