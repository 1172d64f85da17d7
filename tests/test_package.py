"""The package as its users get it: a source distribution that builds and tests, a wheel built from it, and that wheel at work outside of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from tests.test_house import ROOT, SYMLINKS, walk

pytestmark = pytest.mark.slow

SDIST = "from setuptools import build_meta; build_meta.build_sdist(__import__('sys').argv[1])"
# Files that setuptools adds.
GENERATED = {"PKG-INFO", "setup.cfg"}
RENDER = """
import sys
from pathlib import Path

import everface
from everface import Avatar, StreamConfig
from everface.core import native
import torch

checkout, target = Path(sys.argv[1]), Path(sys.argv[2])
assert Path(everface.__file__).is_relative_to(target), everface.__file__
assert not [p for p in map(Path, sys.path) if p.is_relative_to(checkout / "python") or p == checkout], sys.path
with Avatar() as avatar, avatar.open(target / "everface" / "default" / "ada.png", StreamConfig(seed=7)) as session:
    session.push_audio(torch.zeros(8000))
    session.end_segment()
    frames = sum(len(block.frames_THW3) for block in session.frames())
print(frames, "frames,", "native" if native.find() else "pure")
"""


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Output of a command that must succeed, without this checkout in its environment."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CXX")} | variables
    done = subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def sources() -> list[str]:
    """Files of this tree that a commit would hold, or that came with a source distribution."""
    if (ROOT / ".git").exists():
        listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
        return [path for path in listed if (ROOT / path).exists() or (ROOT / path).is_symlink()]
    return [str(path.relative_to(ROOT)) for path in walk(ROOT)]


def packaged(path: str) -> str:
    """Where a file of the repository stands in a source distribution."""
    homes = {PurePosixPath(link).name: link for link in SYMLINKS}
    folder, _, rest = path.partition("/")
    return f"{homes[folder]}/{rest}" if folder in homes else path


def build_wheel(source: Path, out: Path, **variables: str) -> tuple[Path, str]:
    command = (sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-build-isolation", "--no-cache-dir", "-w", out, source)
    said = run(*command, cwd=source, **variables)
    [wheel] = out.glob("*.whl")
    return wheel, said


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built from a copy of the tree: a build leaves files beside its sources."""
    pytest.importorskip("setuptools")
    pytest.importorskip("pip")
    tree = tmp_path_factory.mktemp("tree")
    for path in sources():
        copy = tree / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).is_symlink():
            copy.symlink_to((ROOT / path).readlink())
        else:
            copy.write_bytes((ROOT / path).read_bytes())
    out = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-c", SDIST, out, cwd=tree)
    [archive] = out.glob("everface-*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [root] = folder.iterdir()
    return root


def test_sdist_holds_every_source(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        assert all(member.isfile() or member.isdir() for member in archive)
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    held = {path for path in held if ".egg-info/" not in path} - GENERATED
    assert held == {packaged(path) for path in sources() if path not in SYMLINKS} - GENERATED


@pytest.mark.long
def test_house_rules_hold_in_the_sdist(unpacked: Path) -> None:
    said = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_house.py", cwd=unpacked)
    assert " passed" in said and "failed" not in said


def test_wheel_works_outside_of_the_checkout(unpacked: Path, tmp_path: Path) -> None:
    missing = run(sys.executable, "-B", "-W", "ignore", "-c", "import setup; print(*setup.missing_tools())", cwd=unpacked)
    kind = "pure" if missing.strip() else "native"
    wheel, _ = build_wheel(unpacked, tmp_path / "wheel", CMAKE_BUILD_TYPE="None")  # without optimization, as the compiler takes longest

    names = zipfile.ZipFile(wheel).namelist()
    package = {packaged(p).removeprefix("python/") for p in sources() if packaged(p).startswith("python/everface/") and p not in SYMLINKS}
    assert package <= set(names) and {"everface/py.typed", "everface/kernels/launch.py", "everface/default/dit.safetensors"} <= package
    assert sum(name.endswith("dist-info/licenses/LICENSE") for name in names) == 1
    assert {name.split("/")[0].split("-")[0] for name in names} == {"everface"}
    assert any(name.startswith("everface/_native.") for name in names) == (kind == "native")
    assert ("everface/sdk/include/everface.h" in names) == ("everface/sdk/lib/libeverface.so" in names) == (kind == "native")

    target = tmp_path / "target"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", "--target", target, wheel, cwd=tmp_path)
    # -S leaves out the .pth file of an editable install, which would put the checkout on the path.
    python = (sys.executable, "-S")
    path = os.pathsep.join([str(target), *(p for p in sys.path if p.endswith("-packages"))])
    assert run(*python, target / "bin" / "everface", "--version", cwd=tmp_path, PYTHONPATH=path).startswith("everface ")
    said = run(*python, "-c", RENDER, ROOT, target, cwd=tmp_path, PYTHONPATH=path)
    assert said.splitlines()[-1] == f"13 frames, {kind}"


def test_wheel_without_a_compiler_is_pure_and_says_so(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    wheel, said = build_wheel(unpacked, tmp_path / "wheel", PATH=str(tmp_path / "empty"))
    assert wheel.name.endswith("-py3-none-any.whl")
    [line] = [line for line in said.splitlines() if "built without everface._native" in line]
    assert line.strip() == "everface: built without everface._native, as this machine lacks cmake, a C++ compiler"
