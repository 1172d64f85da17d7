"""Manifests: read back as written; every fault is one sentence with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everface.core.errors import BadInput
from everface.genbench.manifest import BenchmarkSet, Sample, digest, read_manifest, write_manifest

GOOD = {"id": "a", "image": "0.png", "voice": "0.wav", "duration_s": 5.0}


def test_what_was_written_is_read(small_set: BenchmarkSet) -> None:
    assert read_manifest(small_set.folder) == small_set
    assert read_manifest(small_set.folder / "manifest.jsonl").samples == small_set.samples


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "line 2 is not a sample"),
        (json.dumps({**GOOD, "id": 7}), "line 2 is not a sample (Expected `str`, got `int` - at `$.id`)"),
        (json.dumps({**GOOD, "sound": "x"}), "unknown field `sound`"),
        (json.dumps({"id": "a"}), "missing required field `image`"),
        (json.dumps({**GOOD, "id": "../a"}), "which is no file name"),
        (json.dumps({**GOOD, "id": "s-0"}), "line 2 has the id 's-0' of line 1"),
        (json.dumps({**GOOD, "duration_s": 0}), "give seconds above 0"),
        (json.dumps({**GOOD, "image": "/etc/passwd"}), "use a relative path"),
        (json.dumps({**GOOD, "voice": "../0.wav"}), "a voice '../0.wav' outside of its folder"),
        (json.dumps({**GOOD, "voice": "none.wav"}), "names the voice 'none.wav', which is missing"),
        (json.dumps({**GOOD, "sha256": {"image": "0" * 64}}), "the file was changed"),
        (json.dumps({**GOOD, "face": [0.5, 0, 0.4, 1]}), "left < right"),
        (json.dumps({**GOOD, "truth": "felt"}), "use 'drawn' or ''"),
    ],
)
def test_every_fault_names_its_line(small_set: BenchmarkSet, line: str, fault: str) -> None:
    write_manifest(small_set.folder, small_set.samples[:1])
    path = small_set.folder / "manifest.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(BadInput) as error:
        read_manifest(path)
    assert fault in str(error.value) and "line 2" in str(error.value) and "line 1 " not in str(error.value)


def test_several_faults_are_several_sentences(small_set: BenchmarkSet) -> None:
    path = small_set.folder / "manifest.jsonl"
    path.write_text("1\n" * 10)
    with pytest.raises(BadInput, match=r"line 1 is .*line 8 is .* 2 more\."):
        read_manifest(path)


def test_no_manifest_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no manifest"):
        read_manifest(tmp_path)
    write_manifest(tmp_path, [])
    with pytest.raises(BadInput, match="no samples"):
        read_manifest(tmp_path)


def test_a_digest_is_checked(small_set: BenchmarkSet) -> None:
    sample: Sample = small_set.samples[0]
    sample.sha256 = {"image": digest(small_set.image(sample)), "voice": digest(small_set.voice(sample))}
    write_manifest(small_set.folder, [sample])
    assert read_manifest(small_set.folder).samples == [sample]
