"""What a GPU machine needs of this repository, as one archive: what git holds but for bench/gpu_tree.exclude.

    python -m bench.tree build/gpu-tree.tar.gz
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXCLUDE = "bench/gpu_tree.exclude"
MOST_MB = 40.0


def listed(*options: str) -> set[str]:
    """Paths that `git ls-files` prints and that are there."""
    done = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True, check=True)
    return {path for path in done.stdout.split("\0") if path and ((ROOT / path).exists() or (ROOT / path).is_symlink())}


def gpu_tree() -> list[str]:
    """Files that git tracks or would track, without those that are excluded."""
    return sorted(listed("--cached", "--others", "--exclude-standard") - listed("--cached", "--ignored", f"--exclude-from={EXCLUDE}"))


def megabytes(paths: list[str]) -> float:
    return sum((ROOT / path).lstat().st_size for path in paths) / 1e6


def main() -> int:
    archive, paths = Path(sys.argv[1]), gpu_tree()
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as out:
        for path in paths:
            out.add(ROOT / path, arcname=path, recursive=False)
    whole = megabytes(sorted(listed("--cached", "--others", "--exclude-standard")))
    size = megabytes(paths)
    print(f"{archive}: {len(paths)} files of {size:.1f} MB (the whole tree has {whole:.1f}), packed {archive.stat().st_size / 1e6:.1f} MB")
    return int(size > MOST_MB)


if __name__ == "__main__":
    sys.exit(main())
