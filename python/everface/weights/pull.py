"""Fetch a model's weights from the Hugging Face hub: the files of several repositories into one folder, a fixed commit of each.

The commit of `main` is resolved once and recorded in `pulled.json` in that folder, with size and sha256 of every file; later
runs fetch exactly that commit. Every file is checked against its record once it is there; after that no network is needed.
HF_HUB_OFFLINE is respected. A license that forbids commercial use has to be accepted before anything is fetched.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
from huggingface_hub import constants

from everface.core import env
from everface.core.errors import BadInput, BadWeights, Unavailable
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


class Part(NamedTuple):
    """What a model takes from one repository, and the folder below the model's that it goes to."""

    repo: str
    patterns: list[str]
    into: str = ""


@dataclass(frozen=True)
class Release:
    """The published files of a model. `restriction`: what its license forbids, as a sentence that names it; "" for none."""

    parts: tuple[Part, ...]
    restriction: str = ""


RELEASES = {
    "live-avatar": Release(tuple(Part(repo, patterns) for repo, patterns in PATTERNS.items())),
    "livetalk-1.3b": Release(
        (
            Part("GAIR/LiveTalk-1.3B-V0.1", [layout.LIVE_TALK_DIT]),
            Part("Wan-AI/Wan2.1-T2V-1.3B", [layout.TEXT, layout.VAE, f"{layout.TOKENIZER}/*"]),
            Part("facebook/wav2vec2-base-960h", ["config.json", layout.AUDIO_WEIGHTS[0]], layout.LIVE_TALK_AUDIO),
        ),
        "LiveTalk-1.3B is under CC BY-NC-SA 4.0 (https://creativecommons.org/licenses/by-nc-sa/4.0/), which forbids commercial use",
    ),
}


def pull(folder: Path | None = None, model: str = "live-avatar", accepts: Callable[[str], bool] = lambda _: False) -> Path:
    """Fetch the files of one of RELEASES, or what is missing of them, and verify them; the hub shows its progress bars.

    Returns the folder, ready for `open_checkpoint`; by default one of the model's name in the cache. `accepts` is asked with a sentence
    that names a license which forbids something. Raises BadInput if it is not accepted, Unavailable without network or disk, BadWeights for a
    file that is not the published one. An interrupted pull goes on with the files that it had not finished.
    """
    if model not in RELEASES:
        raise BadInput(f"there is no model {model!r} to pull: choose one of {', '.join(RELEASES)}")
    release, folder = RELEASES[model], folder or env.cache_dir() / model
    if release.restriction and not accepts(release.restriction):
        raise BadInput(f"{release.restriction}: nothing was downloaded; to accept it, pass --accept-license")
    with locked(folder / RECORD):
        for part in release.parts:
            _pull_part(part, folder / part.into)
    return folder


def _pull_part(part: Part, folder: Path) -> None:
    repo = part.repo
    entry = _read_record(folder).get(repo) or _resolve(part, folder)
    missing = [name for name, f in entry["files"].items() if not _has_size(folder / name, f)]
    if entry["verified"] and not missing:
        return
    if missing:
        _fetch(part, entry, missing, folder)
    for name, expected in entry["files"].items():
        if not _has_size(folder / name, expected) or expected["sha256"] not in (None, hash_file(folder / name)):
            raise BadWeights(f"{folder / name} is not the published file (wrong size or sha256); delete it and pull again")
    _write_record(folder, repo, entry | {"verified": True})


def _fetch(part: Part, entry: dict[str, Any], missing: list[str], folder: Path) -> None:
    repo = part.repo
    _refuse_offline(f"{folder} lacks {missing[0]} of {repo}")
    log.info("pulling %s at %s", repo, entry["commit"])
    _write_record(folder, repo, entry | {"verified": False})
    for torn in folder.glob(".cache/huggingface/download/**/*.incomplete"):  # of an earlier pull, which the hub does not go on with
        torn.unlink(missing_ok=True)
    _check_disk(folder, repo, sum(entry["files"][name]["bytes"] for name in missing))
    with _hub(repo):
        huggingface_hub.snapshot_download(
            repo,
            revision=entry["commit"],
            local_dir=folder,
            allow_patterns=part.patterns,
            max_workers=1,  # so that an interruption costs one file
        )


def _resolve(part: Part, folder: Path) -> dict[str, Any]:
    """Ask the hub, once, which commit `main` is now and what files it has, and record it."""
    repo = part.repo
    _refuse_offline(f"{folder} has nothing of {repo}")
    with _hub(repo):
        info = huggingface_hub.HfApi().model_info(repo, revision="main", files_metadata=True)
    wanted = [f for f in info.siblings or [] if any(fnmatch.fnmatch(f.rfilename, p) for p in part.patterns)]
    if not wanted or not info.sha:
        raise Unavailable(f"{repo} has none of the files that this model needs; see its page on the hub")
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
            f"cannot fetch {repo} ({type(error).__name__}: {reason}); check network and disk and pull again, finished files are kept"
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
