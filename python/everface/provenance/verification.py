"""Checks a video's signature: signed and unchanged, changed since, or not signed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everface.core.errors import BadInput, Unavailable
from everface.provenance.signing import REQUEST, library

SIGNED, TAMPERED, UNSIGNED, UNTRUSTED = "signed", "tampered", "unsigned", "untrusted"
EXIT_CODES = {SIGNED: 0, TAMPERED: 1, UNSIGNED: 3, UNTRUSTED: 4}
SENTENCES = {
    SIGNED: "signed, and unchanged since",
    TAMPERED: "TAMPERED WITH: it was changed after it was signed, or its signature is damaged",
    UNSIGNED: "not signed: it never was, or its signature was removed",
    UNTRUSTED: "signed, and unchanged since, but not by a key that you trust",
}
NOBODYS = "signingCredential.untrusted"  # the one problem of an intact file that is signed by a key without a known root


@dataclass(frozen=True)
class Verdict:
    """What a file's signature says. Everything but `state` and `problems` is as the file has it, and worth as much as `state` says."""

    state: str
    signer: str = ""
    serial: str = ""
    maker: str = ""
    consent: str = ""
    trusted: bool = False
    problems: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.state]

    def lines(self) -> list[str]:
        """For people."""
        vouched = "" if self.trusted else ", which anybody can make: --trust says whose you accept"
        known = {"signed by": f"{self.signer}, certificate {self.serial}{vouched}" if self.serial else "", "made with": self.maker}
        known |= {"consent": self.consent, "problems": ", ".join(self.problems)}
        return [SENTENCES[self.state], *(f"  {name:<10} {text}" for name, text in known.items() if text)]


def verify(path: Path, trust: Path | None = None) -> Verdict:
    """Check an MP4. `trust`: PEM file of root certificates; other signers are UNTRUSTED then. Raises BadInput, Unavailable."""
    try:
        c2pa = library()
    except ModuleNotFoundError as error:
        raise Unavailable(f"verify needs the package {error.name}: run pip install 'everface[provenance]'") from None
    if not path.is_file():
        raise BadInput(f"there is no file {path}: check the path")
    try:
        settings: dict[str, Any] = {"verify": {"remote_manifest_fetch": False, "verify_trust": True}}
        if trust is not None:
            settings["trust"] = {"trust_anchors": trust.read_text()}
        with (
            c2pa.Context.from_dict(settings) as context, open(path, "rb") as video,
            c2pa.Reader("video/mp4", video, context=context) as reader,
        ):  # fmt: skip
            return judge(json.loads(reader.json()), trust is not None)
    except (OSError, UnicodeError) as error:
        raise BadInput(f"{path} or the certificates cannot be read ({error}): check names and permissions") from None
    except c2pa.C2paError as error:
        if "ManifestNotFound" in f"{type(error).__name__} {error}":
            return Verdict(UNSIGNED)
        return Verdict(TAMPERED, problems=(str(error)[:200],))


def judge(report: dict[str, Any], by_trust: bool) -> Verdict:
    """From c2pa's report of a file. `by_trust`: a signer without a trusted root counts."""
    active = report["manifests"][report["active_manifest"]]
    problems = {status["code"] for status in report.get("validation_status", [])}
    trusted = NOBODYS not in problems
    if problems - {NOBODYS}:
        state = TAMPERED
    else:
        state = UNTRUSTED if by_trust and not trusted else SIGNED
    signature, makers = active.get("signature_info", {}), active.get("claim_generator_info", [])
    request = next((a["data"] for a in active.get("assertions", []) if a["label"] == REQUEST), {})
    return Verdict(
        state,
        _text(signature.get("common_name") or signature.get("issuer")),
        _text(signature.get("cert_serial_number")),
        _text(" ".join(f"{m.get('name', '')} {m.get('version', '')}".strip() for m in makers)),
        _text(request.get("consent") if isinstance(request, dict) else ""),
        trusted,
        tuple(sorted(problems - {NOBODYS})),
    )


def _text(value: Any) -> str:
    """One printable line, as files come from strangers."""
    return "".join(sign if sign.isprintable() else "?" for sign in str(value or ""))[:2000]
