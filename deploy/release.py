"""`make release`: source distribution, wheel, bill of materials and checksums of the last commit, in dist/.

Both packages are built twice, in two folders, and must be the same bits; then the wheel is installed into a fresh environment and renders.
The packages that everface needs are those of the interpreter that runs this.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

from deploy.sbom import write_sbom

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "deploy" / "requirements.txt"
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2]))"
RENDER = """
import sys, torch, everface
assert everface.__file__.startswith(sys.prefix), everface.__file__
from everface.avatar.demo import IMAGE
with everface.Avatar() as avatar, avatar.open(IMAGE) as session:
    session.push_audio(torch.zeros(8000))
    session.end_segment()
    print(sum(len(block.frames_THW3) for block in session.frames()), "frames")
"""


def main(out: Path) -> None:
    epoch = int(run("git", "log", "-1", "--format=%ct", cwd=ROOT))
    if run("git", "status", "--porcelain", cwd=ROOT):
        print("the tree has changes that are not committed, which a release does not hold", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="everface-release-") as folder:
        first, second = (build(Path(folder) / name, epoch) for name in ("first", "second-time"))
        for a, b in zip(first, second, strict=True):
            if a.name != b.name or digest(a) != digest(b):
                sys.exit(f"{a.name} is not reproducible: {digest(a)} and {digest(b)}")
        check(first[1], Path(folder) / "environment")
        out.mkdir(parents=True, exist_ok=True)
        files = [Path(shutil.copy(path, out)) for path in first]
    version = files[1].name.split("-")[1]
    sbom = out / f"everface-{version}.cdx.json"
    sbom.write_text(json.dumps(write_sbom(version, LOCK, epoch, {path.name: digest(path) for path in files}), indent=1) + "\n")
    sums = "".join(f"{digest(path)}  {path.name}\n" for path in sorted([*files, sbom]))
    (out / "SHA256SUMS").write_text(sums)
    print(sums, end="")


def build(folder: Path, epoch: int) -> tuple[Path, Path]:
    """The source distribution of the last commit, and the wheel made from it."""
    tree, out = folder / "tree", folder / "out"
    out.mkdir(parents=True)
    extract(subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout, tree)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"SOURCE_DATE_EPOCH": str(epoch)}
    env["CXXFLAGS"] = env["CFLAGS"] = f"-ffile-prefix-map={folder}=."
    name = run(sys.executable, "-c", BUILD, "sdist", str(out), cwd=tree, env=env).splitlines()[-1]
    sdist = out / name
    sdist.write_bytes(normalized(sdist.read_bytes(), epoch))
    extract(gzip.decompress(sdist.read_bytes()), folder / "unpacked")
    source = folder / "unpacked" / name.removesuffix(".tar.gz")
    return sdist, out / run(sys.executable, "-c", BUILD, "wheel", str(out), cwd=source, env=env).splitlines()[-1]


def extract(archive: bytes, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="tar")


def normalized(archive: bytes, epoch: int) -> bytes:
    """A source distribution with its files in order and without the times and the user of the machine that made it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as old, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname, member.pax_headers = epoch, 0, 0, "", "", {}
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return gzip.compress(packed.getvalue(), mtime=epoch)


def check(wheel: Path, folder: Path) -> None:
    """Install the wheel into a fresh environment beside the packages of this one, and render."""
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=ROOT)
    python = folder / "bin" / "python"
    site = Path(run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder))
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel), cwd=folder)
    shared = [path for path in sys.path if path.endswith("-packages")] or [sysconfig.get_path("purelib")]
    (site / "packages.pth").write_text("\n".join(shared) + "\n")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    print(run(str(python), "-m", "everface", "--version", cwd=folder, env=env))
    print(run(str(python), "-c", RENDER, cwd=folder, env=env))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Its output without the last line's end. Ends this program where it fails."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)[:200]} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout.strip()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "dist"))
