"""One word, one meaning: over the public names of the package."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.test_house import ROOT, walk

# Words that the field does not use for these things, and what it says instead. See the glossary in CONTRIBUTING.md.
PRIVATE = {
    "desk": "scheduler", "intake": "audio buffer", "ledger": "in-flight blocks", "carrier": "transport", "hop": "channel", "giver": "sender",
    "taker": "receiver", "wire": "serialization", "parcel": "packet", "tombstone": "cancelled", "quantise": "quantize", "quantised": "quantized",
    "coded": "quantized", "codes": "quantized values", "picture": "image", "sound": "audio", "viewer": "session", "seat": "slot state",
    "heard": "audio", "epoch": "turn", "trial": "simulation", "virtual": "simulation", "spread": "sharding", "descent": "optimizer", "beds": "background",
    "canvas": "rasterizer", "unseen": "held out", "footage": "video", "film": "video", "anew": "again", "foretell": "forecast", "mend": "fix",
}  # fmt: skip
# "hop" is the field's own word for the step of a short-time transform; epochs are training's; psutil names its virtual memory.
ALLOWED = {("hop", "networks/audio"), ("hop", "core/config.py"), ("epoch", "train/"), ("virtual", "doctor/"), ("virtual", "cache_pool.py")}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in walk(ROOT):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".py" and not path.is_symlink() and name.startswith(("kernels/", "runtime/", "python/everface/")):
            yield name, ast.parse(path.read_text())


def names(tree: ast.Module) -> Iterator[str]:
    """Public names that a source defines: classes, functions, their arguments, fields and module variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def words(name: str) -> set[str]:
    """read_audio, ReadAudio -> {read, audio}."""
    return {w.lower() for w in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)}


def private_words(path: str, tree: ast.Module) -> list[str]:
    found = {(name, word) for name in names(tree) if not name.startswith("_") for word in words(name) & PRIVATE.keys()}
    wrong = {(name, word) for name, word in found if not any(word == w and part in path for w, part in ALLOWED)}
    return [f"{path}: {name}: say {PRIVATE[word]}" for name, word in sorted(wrong)]


def test_a_private_word_is_seen() -> None:
    bad = ast.parse("class SoundReader:\n    hop_ms: float\ndef give(picture_HW3): ...")
    assert len(private_words("runtime/x.py", bad)) == 3
    assert words("HTTPServer2") == {"http", "server2"}
    assert not private_words("python/everface/train/x.py", ast.parse("def one_epoch(step): ..."))


def test_public_names_are_the_fields() -> None:
    assert [w for path, tree in sources() for w in private_words(path, tree)] == []


def test_a_class_name_means_one_class() -> None:
    homes: dict[str, set[str]] = defaultdict(set)
    for path, tree in sources():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(path)
    assert len(homes) > 100
    assert {name: sorted(found) for name, found in homes.items() if len(found) > 1} == {}


def test_module_names_are_not_private_either() -> None:
    stems = {Path(path).stem for path, _ in sources()}
    assert not {stem for stem in stems if words(stem) & (PRIVATE.keys() - {"epoch"})}
