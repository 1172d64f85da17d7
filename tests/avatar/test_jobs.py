"""The table of a batch: both formats, and every error names its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from everface.avatar.jobs import read_jobs
from everface.core.config import StreamConfig
from everface.core.errors import BadInput

STREAM = StreamConfig(seed=5, prompt="she smiles")


def test_csv_and_jsonl_say_the_same(tmp_path: Path) -> None:
    table, lines = tmp_path / "a.csv", tmp_path / "a.jsonl"
    table.write_text(
        '\ufeffimage,audio, out ,prompt,seed,size\r\nface.png,a.wav,,,,\r\n\r\nface.png,"b, c.wav",x.mp4,"a ""cat"", walking",7,704x384\r\n'
    )
    lines.write_text(
        '{"image": "face.png", "audio": "a.wav", "seed": null}\n\n'
        '{"image": "face.png", "audio": "b, c.wav", "out": "x.mp4", "prompt": "a \\"cat\\", walking", "seed": 7, "size": "704x384"}\n'
    )
    first, second = (read_jobs(path, STREAM) for path in (table, lines))
    assert [(j.image, j.audio, j.out, j.stream) for j in first] == [(j.image, j.audio, j.out, j.stream) for j in second]
    assert [j.line for j in first] == [2, 4] and [j.line for j in second] == [1, 3]
    assert first[0].out == "face-a.mp4" and first[0].stream == STREAM and first[0].image == tmp_path / "face.png"
    assert first[1].stream == StreamConfig(seed=7, prompt='a "cat", walking', size=(384, 704)) and first[1].audio.name == "b, c.wav"


WRONG = {
    "unknown column": ("csv", "image,audio,speed\na,b,c\n", "line 1 of .* unknown column 'speed'"),
    "missing column": ("csv", "image,out\na,b\n", "line 1 of .* no column 'audio'"),
    "column twice": ("csv", "image,audio,image\na,b,c\n", "line 1 of .* twice"),
    "too many cells": ("csv", "image,audio\na,b\na,b,c\n", "line 3 of .* has 3 cells for 2 columns"),
    "no audio": ("csv", "image,audio\na,b\na,\n", "line 3 of .* has no audio"),
    "open quote": ("csv", 'image,audio\na,"b\n', "is not CSV"),
    "no jobs": ("csv", "image,audio\n", "has no jobs"),
    "nothing": ("csv", "", "has no jobs"),
    "no JSON": ("jsonl", '{"image": "a", "audio": "b"}\n{"image"\n', "line 2 of .* is not JSON"),
    "deep JSON": ("jsonl", "[" * 100_000 + "\n", "line 1 of .* is not JSON"),
    "no object": ("jsonl", "[1]\n", "line 1 of .* is no object"),
    "unknown key": ("jsonl", '{"image": "a", "audio": "b", "voice": "c"}\n', "unknown key 'voice'"),
    "a number": ("jsonl", '{"image": 3, "audio": "b"}\n', "has 3 as image"),
    "a bad seed": ("csv", "image,audio,seed\na,b,-1\n", "line 2 of .* has '-1' as seed"),
    "a true seed": ("jsonl", '{"image": "a", "audio": "b", "seed": true}\n', "has True as seed"),
    "a long seed": ("csv", f"image,audio,seed\na,b,{2**63}\n", "line 2 of .* outside 0"),
    "a bad size": ("csv", "image,audio,size\na,b,big\n", "line 2 of .* 'big' is not a size"),
    "an odd size": ("csv", "image,audio,size\na,b,700x384\n", "line 2 of .* nearest is 704x384"),
    "a folder as out": ("csv", "image,audio,out\na,b,../x.mp4\n", "line 2 of .* as out"),
    "another format": ("csv", "image,audio,out\na,b,x.avi\n", "line 2 of .* as out"),
    "a hidden out": ("csv", "image,audio,out\na,b,.x.mp4\n", "line 2 of .* as out"),
    "the same out": ("csv", "image,audio,out\na,b,x.mp4\nc,d,X.mp4\n", "line 3 of .* as line 2 does"),
    "the same pair": ("csv", "image,audio\na,b\na,b\n", "line 3 of .* as line 2 does"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_sentence_with_its_line(case: str, tmp_path: Path) -> None:
    kind, text, message = WRONG[case]
    path = tmp_path / f"jobs.{kind}"
    path.write_text(text)
    with pytest.raises(BadInput, match=message) as caught:
        read_jobs(path, STREAM)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00image")
    for name, message in (("a.csv", "not UTF-8"), ("b.csv", "no table of jobs at"), ("c.txt", r"name a .csv or .jsonl")):
        with pytest.raises(BadInput, match=message):
            read_jobs(tmp_path / name, STREAM)
