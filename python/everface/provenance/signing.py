"""Signs finished MP4 files: what made them, that no camera did, and the consent that the request named (C2PA).

On where the extra everface[provenance] is installed, off with EVERFACE_SIGNING=off.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everface.core import env
from everface.core.errors import BadInput, Unavailable
from everface.core.log import log

if TYPE_CHECKING:
    from everface.provenance.credentials import Credentials

NEEDED = ("c2pa", "cryptography")
MADE_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
REQUEST = "everface.request"  # our own assertion: what the request said
MOST_CONSENT = 2000  # characters


@dataclass(frozen=True)
class VideoSigner:
    """Signs with one key. Thread-safe."""

    credentials: Credentials

    def sign(self, source: Path, target: Path, consent: str = "") -> None:
        """Write the MP4 `source` with a signed manifest as `target`; the index stays in front. Raises OSError, Unavailable."""
        c2pa = library()
        try:
            with (
                self._open() as signer, c2pa.Builder(json.dumps(manifest(consent))) as builder,
                open(source, "rb") as video, open(target, "w+b") as signed,
            ):  # fmt: skip
                builder.sign(signer, "video/mp4", video, signed)
        except c2pa.C2paError as error:
            raise Unavailable(f"it cannot be signed ({error})") from None

    def check(self, folder: Path) -> None:
        """Open the key, so that one that C2PA refuses is reported before anything is rendered. Raises BadInput, which names `folder`."""
        c2pa = library()
        try:
            self._open().close()
        except c2pa.C2paError as error:
            raise BadInput(f"the signing key in {folder} cannot be used ({error}): see SECURITY.md") from None

    def _open(self) -> Any:
        c2pa = library()
        key = self.credentials
        return c2pa.Signer.from_info(c2pa.C2paSignerInfo(key.algorithm.encode(), key.chain_pem, key.key_pem, None))  # no time stamp: it would be asked for from the network


def library() -> Any:
    """c2pa-python, by its name, as it need not be installed. Raises ModuleNotFoundError."""
    return importlib.import_module("c2pa")


def find_signer() -> VideoSigner | None:
    """What signs this process's videos; None where nothing does. The first call says which in one log line.

    Raises BadInput for a key of the user's that cannot be used, Unavailable for one without the packages that it needs.
    """
    try:
        folder, chosen = env.signing_dir()
    except Unavailable as error:  # there is no home for a cache
        log.warning("videos are not signed: %s", error)
        return None
    return _find(folder, chosen)


@cache
def _find(folder: Path | None, chosen: bool) -> VideoSigner | None:
    if folder is None:
        log.info("videos are not signed, because EVERFACE_SIGNING is off")
        return None
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        if chosen:
            raise Unavailable(f"EVERFACE_SIGNING names a key, but the package {missing[0]} is missing: run pip install 'everface[provenance]'")
        log.info("videos are not signed, because everface[provenance] is not installed")
        return None
    from everface.provenance.credentials import KEY, generate_credentials, is_private, read_credentials

    if not chosen and not (folder / KEY).exists():
        try:
            generate_credentials(folder)
        except OSError as error:
            log.warning("videos are not signed, because no key can be written to %s (%s): set EVERFACE_SIGNING", folder, error.strerror)
            return None
    signer = VideoSigner(read_credentials(folder))
    if not is_private(folder):
        log.warning("others can read the signing key in %s: chmod 600 it", folder)
    signer.check(folder)
    log.info("videos are signed with %s in %s", "a generated key" if signer.credentials.generated else "the key", folder)
    return signer


def check_consent(text: str) -> str:
    """`text` if it can be a consent note. Raises BadInput."""
    if len(text) > MOST_CONSENT or not text.isprintable():
        raise BadInput(f"the consent note cannot be used: write one line of at most {MOST_CONSENT} characters")
    return text


def manifest(consent: str) -> dict[str, Any]:
    """What is signed, as C2PA's manifest definition."""
    request = {"label": REQUEST, "data": {"consent": consent}} if consent else None
    created = {"action": "c2pa.created", "digitalSourceType": MADE_BY_A_MODEL}
    return {
        "claim_generator_info": [{"name": "everface", "version": _version()}],
        "format": "video/mp4",
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}, *([request] if request else [])],
    }


def _version() -> str:
    try:
        return version("everface")
    except PackageNotFoundError:
        return "unknown"
