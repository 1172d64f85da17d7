"""A consent note from the request to the signed file, through the command line and through the server."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tests.serve.hosting import hosted
from tests.serve.test_videos import create, finished

from everface import cli

pytest.importorskip("c2pa")

from everface.provenance.verification import SIGNED, verify

CONSENT = "Ada Example, by letter"


def test_render_signs_and_notes(small_model: Path, face: Path, voice: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "everface.audit")
    out = tmp_path / "out.mp4"
    arguments = ["render", str(face), str(voice), "-o", str(out), "--weights", str(small_model), "--consent", CONSENT]
    assert cli.main([*arguments, "--sampler", "skip-null"]) == 0
    verdict = verify(out)
    assert (verdict.state, verdict.consent) == (SIGNED, CONSENT)
    [line] = [record.getMessage() for record in caplog.records if record.name == "everface.audit"]
    entry = json.loads(line.removeprefix("made "))
    assert entry == {"video": str(out), "frames": entry["frames"], "seed": 420, "signed": True, "consent": CONSENT}
    assert cli.main([*arguments[:5], "--force", "--consent", "a\nb"]) == 2


def test_the_server_signs_and_notes(tmp_path: Path) -> None:
    with hosted() as host:
        created = create(host, consent=CONSENT)
        assert created.status_code == 200 and created.json()["consent"] == CONSENT
        name = created.json()["id"]
        assert finished(host, name)["status"] == "completed"
        (tmp_path / "v.mp4").write_bytes(host.http.get(f"/v1/videos/{name}/content").content)
        assert create(host, consent="a\x00b").status_code == 400
    verdict = verify(tmp_path / "v.mp4")
    assert (verdict.state, verdict.consent) == (SIGNED, CONSENT)
