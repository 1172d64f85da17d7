"""Fetch the official weights from the Hugging Face hub: base model and LoRA into one folder, a fixed commit of each.

The commit of `main` is resolved once and recorded in `pulled.json` in that folder, with size and sha256 of every file; later
runs fetch exactly that commit. Every file is checked against its record once it is there; after that no network is needed.
HF_HUB_OFFLINE is respected.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants

from everface.core import env
from everface.core.errors import BadWeights, Unavailable
from everface.core.log import log
from everface.weights import layout
from everface.weights.store import hash_file, locked, write_text

PATTERNS = {
    "Wan-AI/Wan2.2-S2V-14B": [
        layout.CONFIG, layout.DIT_INDEX, layout.DIT_SHARDS, layout.TEXT, layout.VAE, f"{layout.TOKENIZER}/*",
        f"{layout.AUDIO}/*.json", f"{layout.AUDIO}/{layout.AUDIO_WEIGHTS[0]}",
    ],
    "Quark-Vision/Live-Avatar": [layout.LORA],
}  # fmt: skip
RECORD = "pulled.json"


def pull(folder: Path | None = None) -> Path:
    """Fetch base model (46 GB) and LoRA (1.4 GB), or what is missing of them, and verify them; the hub shows its progress bars.

    Returns the folder, ready for `open_checkpoint`; by default `live-avatar` in the cache. Raises Unavailable without network or
    disk, BadWeights for a file that is not the published one. An interrupted pull continues where it stopped.
    """
    folder = folder or env.cache_dir() / "live-avatar"
    with locked(folder / RECORD):
        for repo in PATTERNS:
            _pull_repository(repo, folder)
    return folder


def _pull_repository(repo: str, folder: Path) -> None:
    entry = _read_record(folder).get(repo) or _resolve(repo, folder)
    missing = [name for name, f in entry["files"].items() if not _has_size(folder / name, f)]
    if entry["verified"] and not missing:
        return
    if missing:
        _fetch(repo, entry, missing, folder)
    for name, expected in entry["files"].items():
        if not _has_size(folder / name, expected) or expected["sha256"] not in (None, hash_file(folder / name)):
            raise BadWeights(f"{folder / name} is not the published file (wrong size or sha256); delete it and pull again")
    _write_record(folder, repo, entry | {"verified": True})


def _fetch(repo: str, entry: dict[str, Any], missing: list[str], folder: Path) -> None:
    _refuse_offline(f"{folder} lacks {missing[0]} of {repo}")
    log.info("pulling %s at %s", repo, entry["commit"])
    _write_record(folder, repo, entry | {"verified": False})
    _check_disk(folder, repo, sum(entry["files"][name]["bytes"] for name in missing))
    with _hub(repo):
        huggingface_hub.snapshot_download(
            repo,
            revision=entry["commit"],
            local_dir=folder,
            allow_patterns=PATTERNS[repo],
        )


def _resolve(repo: str, folder: Path) -> dict[str, Any]:
    """Ask the hub, once, which commit `main` is now and what files it has, and record it."""
    _refuse_offline(f"{folder} has nothing of {repo}")
    with _hub(repo):
        info = huggingface_hub.HfApi().model_info(repo, revision="main", files_metadata=True)
    wanted = [f for f in info.siblings or [] if any(fnmatch.fnmatch(f.rfilename, p) for p in PATTERNS[repo])]
    if not wanted or not info.sha:
        raise Unavailable(f"{repo} has none of the files that Live Avatar needs; see its page on the hub")
    files = {f.rfilename: {"bytes": f.size or 0, "sha256": f.lfs.sha256 if f.lfs else None} for f in wanted}
    entry = {"commit": info.sha, "files": files, "verified": False}
    _write_record(folder, repo, entry)
    return entry


def _refuse_offline(why: str) -> None:
    if constants.HF_HUB_OFFLINE:
        raise Unavailable(f"{why} and HF_HUB_OFFLINE forbids to fetch it; unset that and pull again")


@contextmanager
def _hub(repo: str) -> Iterator[None]:
    """Around a call to the hub: any exception becomes one sentence."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise Unavailable(
            f"cannot fetch {repo} ({type(error).__name__}: {reason}); check network and disk and pull again, it continues"
        ) from error


def _has_size(path: Path, expected: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == expected["bytes"]


def _check_disk(folder: Path, repo: str, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Unavailable(f"{repo} needs {needed / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB free; name another folder")


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BadWeights(f"{path} is damaged ({error}); delete it and pull again") from None


def _write_record(folder: Path, repo: str, entry: dict[str, Any]) -> None:
    write_text(folder / RECORD, json.dumps(_read_record(folder) | {repo: entry}, indent=1))
