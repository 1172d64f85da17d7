"""The house rules, held by reading the source: floors, sizes, environment, pickle, ignored checks, names, what no file may mention, links.

Every rule is a function from a source to the sentences that say what is wrong with it, and is first shown a bad one.
"""

from __future__ import annotations

import ast
import io
import os
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST = 400  # lines of a Python file

FLOORS = {
    "core": 0,
    "kernels": 1,
    "networks": 2,
    "runtime": 2,
    "weights": 3,
    "media": 3,
    "provenance": 3,
    "models": 4,
    "live": 4,
    "avatar": 5,
    "client": 5,
    "serve": 6,
    "engine": 6,
    "integrations": 6,
    "train": 6,
    "parity": 6,
    "doctor": 6,
    "": 6,  # everface/__init__.py, the public face
    "soak": 7,  # above serve, which it starts
    "genbench": 7,  # above train: its characters and its lip reader
    "cli": 8,
    "__main__": 9,
}
SYMLINKS = {"python/everface/kernels": "../../kernels", "python/everface/runtime": "../../runtime"}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
PICKLING_CALLS = {"torch.load", "torch.save"}
IGNORE = re.compile(r"#\s*(type:\s*ignore|pyright:\s*ignore|noqa)\b(\[[\w\s,-]+\]|:\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*)?(.*)")
WHOLE_FILE = re.compile(r"#\s*(pyright:(?!\s*ignore)|ruff:\s*noqa|mypy:)")
BAD_NAMES = re.compile(r"^(utils?|helpers?|common|misc)$|_(utils?|helpers?|v\d+)$")
# Written in pieces, so that this file does not contain what it forbids.
FORBIDDEN = re.compile(
    "|".join(
        [
            r"(?<![\w.~-])/" + r"work(?![\w-])",
            r"(?<![\w])" + r"\.\./sha" + "red",
            r"sha" + "red/(facts|golden)",
            r"/opt/" + "(wheels|pypi)",
            *(re.escape(".".join(host)) for host in (("py" + "pi", "org"), ("python" + "hosted", "org"))),
            *(re.escape(".".join(host)) for host in (("download", "py" + "torch"), ("npm" + "js", "org"), ("ana" + "conda", "org"))),
        ]
    ).encode()
)


def walk(root: Path) -> Iterator[Path]:
    """Files and links of the tree as it would be committed; links are not followed."""
    for here, folders, files in os.walk(root):
        links = [f for f in folders if (Path(here) / f).is_symlink()]
        yield from (Path(here) / f for f in files + links if f != ".git" and not f.endswith((".pyc", ".partial")))
        built = {"out", "build", "dist", "__pycache__"}
        hidden = {f for f in folders if f.startswith(".") and f not in (".ci", ".github")}
        folders[:] = [f for f in folders if f not in built | hidden and not f.endswith(".egg-info")]


def _module(path: str) -> str | None:
    """Dotted name of a source of the package, from its path below the root. None for tests, bench, examples."""
    parts = Path(path).with_suffix("").parts
    if parts[0] in ("kernels", "runtime"):
        return ".".join(("everface", *parts))
    return ".".join(parts[1:]) if parts[:2] == ("python", "everface") else None


def _room(module: str) -> str:
    """everface.networks.transformer.dit -> model; everface -> the public face."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__init__" else ""


def _imported(source: str, module: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything of everface that the source imports, wherever it stands, by any spelling."""
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            for a in node.names:
                is_room = full == "everface" and a.name in FLOORS
                yield node.lineno, f"{full}.{a.name}" if is_room or full != "everface" else full
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield node.lineno, first.value


def climbs(path: str, source: str) -> list[str]:
    """Imports that do not go strictly down the floors. Within a room anything goes."""
    module = _module(path)
    if module is None:
        return []
    here, wrong = _room(module), []
    for line, name in _imported(source, module):
        there = _room(name)
        if name.split(".")[0] != "everface" or there == here:
            continue
        if there not in FLOORS or here not in FLOORS:
            wrong.append(f"{path}:{line} {here or 'everface'} -> {there or 'everface'}: a room without a floor")
        elif FLOORS[there] >= FLOORS[here]:
            wrong.append(f"{path}:{line} {here} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[there]})")
    return wrong


def too_long(path: str, source: str) -> list[str]:
    lines = source.count("\n") + (not source.endswith("\n"))
    return [f"{path} has {lines} lines, more than {LONGEST}"] if lines > LONGEST else []


def reads_environment(path: str, source: str) -> list[str]:
    """The environment is read in core/env.py and nowhere else in the package."""
    if _module(path) in (None, "everface.core.env"):
        return []
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    wrong = []
    for node in ast.walk(ast.parse(source)):
        used = isinstance(node, ast.Attribute) and node.attr in names
        fetched = isinstance(node, ast.ImportFrom) and node.module == "os" and any(a.name in names for a in node.names)
        if isinstance(node, ast.expr | ast.stmt) and (used or fetched):
            wrong.append(f"{path}:{node.lineno} reads the environment: ask everface.core.env")
    return wrong


def unpickles(path: str, source: str) -> list[str]:
    """No pickle in any form; only the converter of official checkpoints may call torch.load."""
    if _module(path) in (None, "everface.weights.convert"):
        return []
    wrong = []
    for node in ast.walk(ast.parse(source)):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [a.name for a in node.names if a.name.split(".")[0] in PICKLES]
        elif isinstance(node, ast.ImportFrom):
            full = node.module or ""
            found = [f"{full}.{a.name}" for a in node.names if full.split(".")[0] in PICKLES or f"{full}.{a.name}" in PICKLING_CALLS]
        elif isinstance(node, ast.Attribute):
            found = [name for name in [ast.unparse(node)] if name in PICKLING_CALLS]
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found = [] if isinstance(node.value, ast.Constant) and node.value.value is False else ["allow_pickle"]
        if isinstance(node, ast.expr | ast.stmt | ast.keyword):
            wrong += [f"{path}:{node.lineno} uses {name}: safetensors only" for name in found]
    return wrong


def ignores_silently(path: str, source: str) -> list[str]:
    """A check is turned off for one line by naming it and saying why; for a whole file, with a comment above that says why."""
    wrong, lines = [], source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type != tokenize.COMMENT:
            continue
        if WHOLE_FILE.search(token.string) and not re.match(r"#(?!.*(pyright|ruff|mypy):)", lines[line - 2].strip() if line > 1 else ""):
            wrong.append(f"{path}:{line} turns checks off for the whole file without a comment above that says why")
        for ignore in IGNORE.finditer(token.string):
            if not ignore[2] or len(re.findall(r"[A-Za-z]\w*", ignore[3])) < 2:
                wrong.append(f"{path}:{line} {token.string!r}: name the rule and say why, as in '# noqa: SIM115 the caller closes it'")
    return wrong


def badly_named(path: str) -> list[str]:
    bad = [p for p in Path(path).parts if BAD_NAMES.search(Path(p).stem)]
    return [f"{path}: {p} says nothing about what is inside" for p in bad]


def mentions(path: str, content: bytes) -> list[str]:
    """Paths of a machine it was written on, or host names of package registries."""
    return [f"{path} mentions {hit.group().decode()!r}" for hit in FORBIDDEN.finditer(content)]


def strange_links(root: Path) -> list[str]:
    """Two links in a repository; in a source distribution, which has a PKG-INFO, two plain folders instead."""
    if (root / "PKG-INFO").is_file():
        links = [f"{p.relative_to(root)} is a link" for p in walk(root) if p.is_symlink()]
        return links + [f"{p} is missing" for p in SYMLINKS if not (root / p).is_dir()]
    found = {str(p.relative_to(root)): os.readlink(p) for p in walk(root) if p.is_symlink()}
    return [f"{p} -> {found.get(p)}, should be {SYMLINKS.get(p)}" for p in SYMLINKS | found if found.get(p) != SYMLINKS.get(p)]


def _sources() -> list[tuple[str, str]]:
    files = (p for p in walk(ROOT) if p.suffix == ".py" and not p.is_symlink())
    return [(str(p.relative_to(ROOT)), p.read_text()) for p in files]


@pytest.mark.parametrize("rule", [climbs, too_long, reads_environment, unpickles, ignores_silently])
def test_every_source_keeps(rule: Callable[[str, str], list[str]]) -> None:
    sources = _sources()
    assert "tests/test_house.py" in dict(sources)
    assert {"everface.core.env", "everface.kernels.__init__", "everface.runtime.__init__"} <= {_module(path) for path, _ in sources}
    assert [w for path, source in sources for w in rule(path, source)] == []


def test_every_file_is_well_named_and_mentions_nothing_local() -> None:
    files = [p for p in walk(ROOT) if not p.is_symlink()]
    assert ROOT / "Makefile" in files
    wrong = [w for p in files for w in badly_named(str(p.relative_to(ROOT)))]
    wrong += [w for p in files for w in mentions(str(p.relative_to(ROOT)), p.read_bytes())]
    assert wrong == []


def test_two_symlinks_and_no_more() -> None:
    assert strange_links(ROOT) == []


BAD_IMPORTS = {
    "runtime/stage.py": "import everface.networks.transformer.dit",
    "python/everface/networks/transformer/dit.py": "from everface import runtime",
    "kernels/fused/flow_step.py": "from ...core import log\nfrom ...networks import text",
    "python/everface/core/native.py": "def f():\n    from everface.kernels.launch import tiles",
    "python/everface/media/video.py": "from ..weights import load",
    "python/everface/train/distill.py": "from everface.train import teacher\nfrom everface import cli",
    "python/everface/avatar/steps.py": "from everface import Avatar",
    "python/everface/serve/app.py": "import importlib\nimportlib.import_module('everface.train.teacher')",
    "python/everface/attic/old.py": "import everface.core",
}
GOOD_IMPORTS = {
    "runtime/stage.py": "from everface.core.errors import BadInput\nfrom .transport import base\nfrom everface.runtime import messages\nimport torch",
    "python/everface/__init__.py": "from everface.avatar.avatar import Avatar\nfrom .core import config",
    "python/everface/cli.py": "from everface import __version__\nfrom everface.train import vae",
    "tests/test_x.py": "from everface.cli import main",
}


@pytest.mark.parametrize("path", BAD_IMPORTS)
def test_climbing_is_seen(path: str) -> None:
    assert len(climbs(path, BAD_IMPORTS[path])) == 1


@pytest.mark.parametrize("path", GOOD_IMPORTS)
def test_going_down_is_allowed(path: str) -> None:
    assert climbs(path, GOOD_IMPORTS[path]) == []


@pytest.mark.parametrize("source", ["import os\nos.environ['A'] = '1'", "from os import getenv", "import os as o\no.getenv('A')"])
def test_reading_the_environment_is_seen(source: str) -> None:
    assert len(reads_environment("runtime/stage.py", source)) == 1
    assert reads_environment("python/everface/core/env.py", source) == reads_environment("tests/test_x.py", source) == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "import torch\ntorch.load('x')", "from torch import load", "np.load(p, allow_pickle=True)"],
)
def test_pickle_is_seen(source: str) -> None:
    assert len(unpickles("python/everface/weights/load.py", source)) == 1
    assert unpickles("python/everface/weights/convert.py", source) == []


BAD_IGNORES = [
    "x = f()  # " + "type: ignore",
    "x = f()  # " + "type: ignore[arg-type]",
    "x = f()  # " + "pyright: ignore because it is wrong",
    "import a  # " + "noqa: F401",
    "import a  # " + "noqa: F401, E402 needed",
    '"""Doc."""\n# ' + "pyright: reportArgumentType=false\nx = 1",
]
GOOD_IGNORES = [
    "x = f()  # " + "pyright: ignore[reportArgumentType]  the stub of f lacks None",
    "import a  # " + "noqa: F401, E402 it registers itself",
    "# Triton reads constants its own way.\n# " + "pyright: reportArgumentType=false\nx = 1",
    's = "# " "noqa"\nt = """# type: ignore"""',
]


def test_ignores_without_a_reason_are_seen() -> None:
    assert [len(ignores_silently("a.py", source)) for source in BAD_IGNORES] == [1] * len(BAD_IGNORES)
    assert [w for source in GOOD_IGNORES for w in ignores_silently("a.py", source)] == []


def test_length_is_counted() -> None:
    assert len(too_long("tests/test_x.py", "x = 1\n" * (LONGEST + 1))) == 1
    assert too_long("tests/test_x.py", "x = 1\n" * LONGEST) == []


def test_names_are_judged() -> None:
    bad = ["python/everface/utils.py", "kernels/common/a.py", "runtime/cache_v2.py", "bench/plot_helpers.py", "tests/helper.py"]
    assert [len(badly_named(p)) for p in bad] == [1] * len(bad)
    assert badly_named("python/everface/weights/names.py") == badly_named("kernels/video/causal_conv3d.py") == []


def test_mentions_are_found() -> None:
    bad = ["see /" + "work/notes", "../sha" + "red/x", "https://py" + "pi.org/simple", "/opt/" + "wheels/a.whl"]
    assert [len(mentions("a.md", b.encode())) for b in bad] == [1] * len(bad)
    assert mentions("a.md", b"framework/x, at work/home, ./works, shared memory, PyTorch") == []


def test_a_third_link_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "python" / "everface"
    folder.mkdir(parents=True)
    for name in ("kernels", "runtime"):
        (tmp_path / name).mkdir()
        (folder / name).symlink_to(SYMLINKS[f"python/everface/{name}"])
    assert strange_links(tmp_path) == []
    (folder / "extra").symlink_to("../../kernels")
    assert len(strange_links(tmp_path)) == 1
    (folder / "runtime").unlink()
    assert len(strange_links(tmp_path)) == 2


def test_a_source_distribution_has_folders_for_links(tmp_path: Path) -> None:
    (tmp_path / "PKG-INFO").touch()
    for path in SYMLINKS:
        (tmp_path / path).mkdir(parents=True)
    assert strange_links(tmp_path) == []
    (tmp_path / "python" / "everface" / "runtime").rmdir()
    assert strange_links(tmp_path) == ["python/everface/runtime is missing"]
    (tmp_path / "python" / "everface" / "runtime").symlink_to("kernels")
    assert strange_links(tmp_path) == ["python/everface/runtime is a link"]
