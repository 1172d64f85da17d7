"""A video's signature: it is there, it holds, and every change of the file breaks it."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from everface import cli
from everface.core.errors import BadInput, Unavailable
from everface.media.fragments import file_boxes
from everface.media.video import probe_video
from everface.media.video_writer import VideoWriter
from everface.provenance import credentials, signing
from everface.provenance.audit import log_video
from everface.provenance.signing import VideoSigner, check_consent, find_signer

pytest.importorskip("c2pa")

from everface.provenance.verification import SIGNED, TAMPERED, UNSIGNED, UNTRUSTED, verify

CONSENT = 'Ada Example, by letter of 1 May ("yes")'


def write(path: Path, signer: VideoSigner | None, frames: int = 30, consent: str = CONSENT) -> Path:
    sign = partial(signer.sign, consent=consent) if signer else None
    images = np.random.default_rng(0).integers(0, 255, (frames, 64, 64, 3), np.uint8)
    with VideoWriter(path, 64, 64, sign=sign) as writer:
        writer.write_audio(np.zeros(frames * 640, np.float32))
        writer.write(images)
    assert writer.signed is (signer is not None) and writer.saved == path
    return path


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signed")
    credentials.generate_credentials(folder / "key")
    return write(folder / "talk.mp4", VideoSigner(credentials.read_credentials(folder / "key")))


def names(path: Path) -> list[bytes]:
    with open(path, "rb") as file:
        return [name for name, *_ in file_boxes(file)]


def test_a_signed_video_is_whole_and_its_index_is_in_front(signed: Path) -> None:
    verdict = verify(signed)
    assert (verdict.state, verdict.consent, verdict.signer, verdict.trusted) == (SIGNED, CONSENT, credentials.GENERATED, False)
    assert "everface" in verdict.maker and verdict.problems == ()
    assert probe_video(signed).duration_s == pytest.approx(30 / 25, abs=0.05)
    boxes = names(signed)
    assert boxes.index(b"moov") < boxes.index(b"mdat") and b"uuid" in boxes
    assert list(signed.parent.glob(".everface*")) == []


def test_every_kind_of_change_breaks_it(signed: Path, tmp_path: Path) -> None:
    whole, path = signed.read_bytes(), tmp_path / "t.mp4"
    with open(signed, "rb") as file:
        boxes = {name: (begin, end) for name, begin, _, end in file_boxes(file)}

    def flip(at: int) -> None:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])

    for name, where in ((b"mdat", 0.0), (b"mdat", 0.5), (b"mdat", 1.0), (b"moov", 0.1), (b"moov", 0.5), (b"moov", 0.9)):
        begin, end = boxes[name]
        flip(begin + 8 + int((end - begin - 9) * where))
        assert verify(path).state == TAMPERED, (name, where)
    flip(whole.index(CONSENT.encode()) + 1)
    assert verify(path).state == TAMPERED
    begin, end = boxes[b"uuid"]
    for at in range(begin + 8, end, (end - begin) // 60):
        flip(at)
        assert verify(path) == verify(signed) or verify(path).state in (TAMPERED, UNSIGNED), at  # some of it is padding
    for changed in (whole[:-1], whole + b"junk", whole + b"\0\0\0\x10mdat12345678"):
        path.write_bytes(changed)
        assert verify(path).state == TAMPERED


def test_a_removed_signature_is_no_signature(signed: Path, tmp_path: Path) -> None:
    begin, end = next((b, e) for name, b, _, e in _boxes(signed) if name == b"uuid")
    whole = signed.read_bytes()
    path = tmp_path / "t.mp4"
    path.write_bytes(whole[:begin] + whole[end:])
    assert verify(path).state == UNSIGNED
    path.write_bytes(whole[: begin + 4] + b"free" + whole[begin + 8 :])
    assert verify(path).state == UNSIGNED


def _boxes(path: Path) -> list[tuple[bytes, int, int, int]]:
    with open(path, "rb") as file:
        return list(file_boxes(file))


def test_exit_codes_and_words(signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key_folder: Path) -> None:
    assert cli.main(["verify", str(signed)]) == 0
    out = capsys.readouterr().out
    assert "signed, and unchanged since" in out and CONSENT in out and "anybody can make" in out
    plain = write(tmp_path / "plain.mp4", None)
    assert cli.main(["verify", str(plain)]) == 3 and "not signed" in capsys.readouterr().out
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(signed.read_bytes()[:-1])
    assert cli.main(["verify", str(torn)]) == 1 and "TAMPERED" in capsys.readouterr().out
    assert cli.main(["verify", str(tmp_path / "none.mp4")]) == 2
    root, chain = signed.parent / "key" / "chain.pem", tmp_path / "root.pem"
    chain.write_bytes(b"-----BEGIN" + root.read_bytes().split(b"-----BEGIN")[2])
    assert cli.main(["verify", str(signed), "--trust", str(chain)]) == 0
    assert "anybody" not in capsys.readouterr().out
    credentials.generate_credentials(key_folder)
    assert verify(signed, key_folder / "chain.pem").state == UNTRUSTED
    assert cli.main(["verify", str(signed), "--trust", str(key_folder / "chain.pem")]) == 4


def test_without_a_key_one_is_generated_and_kept(key_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "everface")
    first = find_signer()
    assert first and first.credentials.generated and f"signed with a generated key in {key_folder}" in caplog.text
    assert (key_folder / "key.pem").stat().st_mode & 0o777 == 0o600
    signing._find.cache_clear()
    again = find_signer()
    assert again == first and list(key_folder.parent.iterdir()) == [key_folder]
    credentials.generate_credentials(key_folder)  # as another process does that comes second
    assert credentials.read_credentials(key_folder) == first.credentials


def test_signing_can_be_off_and_is_off_without_the_extra(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "everface")
    monkeypatch.setenv("EVERFACE_SIGNING", "off")
    assert find_signer() is None and "EVERFACE_SIGNING is off" in caplog.text
    monkeypatch.setattr(signing, "NEEDED", ("no_such_package",))
    monkeypatch.delenv("EVERFACE_SIGNING")
    assert find_signer() is None and "not installed" in caplog.text
    monkeypatch.setenv("EVERFACE_SIGNING", "/keys")
    with pytest.raises(Unavailable, match="pip install"):
        find_signer()


def test_a_key_that_cannot_be_used_is_refused_before_anything_is_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    monkeypatch.setenv("EVERFACE_SIGNING", str(folder))
    with pytest.raises(BadInput, match="cannot be read"):
        find_signer()
    credentials.generate_credentials(folder)
    assert find_signer()
    signing._find.cache_clear()
    credentials.generate_credentials(tmp_path / "other")
    (folder / "key.pem").write_bytes((tmp_path / "other" / "key.pem").read_bytes())
    with pytest.raises(BadInput, match="does not belong"):
        find_signer()
    (folder / "chain.pem").write_text("no certificate")
    with pytest.raises(BadInput, match="damaged"):
        find_signer()


def test_without_a_home_videos_are_not_signed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("EVERFACE_CACHE", "~nobody-has-this-name/cache")
    assert find_signer() is None and "videos are not signed: there is no cache" in caplog.text


def test_an_empty_folder_gets_a_key(key_folder: Path) -> None:
    key_folder.mkdir(parents=True)
    signer = find_signer()
    assert signer and signer.credentials.generated


def test_a_failure_to_sign_keeps_the_video(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with VideoWriter(tmp_path / "v.mp4", 64, 64, audio_rate_hz=None, sign=fail) as writer:
        writer.write(np.zeros((3, 64, 64, 3), np.uint8))
    assert not writer.signed and "not signed: No space left" in caplog.text
    assert [p.name for p in tmp_path.iterdir() if p.suffix] == ["v.mp4"] and verify(tmp_path / "v.mp4").state == UNSIGNED


def test_an_unfinished_video_is_signed_too(tmp_path: Path) -> None:
    signer = find_signer()
    assert signer
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "v.mp4", 64, 64, audio_rate_hz=None, sign=signer.sign) as writer:
        writer.write(np.zeros((3, 64, 64, 3), np.uint8))
        raise KeyboardInterrupt
    assert verify(tmp_path / "v.mp4").state == SIGNED


def test_a_consent_note_is_one_line() -> None:
    assert check_consent(CONSENT) == CONSENT
    for text in ("a\nb", "x" * 2001, "\x1b[2J"):
        with pytest.raises(BadInput, match="one line"):
            check_consent(text)


def test_the_audit_line_cannot_be_forged_by_a_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "everface.audit")
    log_video("a.mp4", 25, 7, True, 'yes"}\nmade {"video": "b.mp4"')
    [record] = caplog.records
    line = record.getMessage()
    assert "\n" not in line
    assert json.loads(line.removeprefix("made "))["consent"].startswith("yes")

