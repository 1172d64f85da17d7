"""Ctrl-C or SIGTERM in the middle of a render: a real signal to a real process; the file it leaves plays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from everface.media.video import probe_video
from everface.train.synthetic.voices import write_wav


@pytest.mark.parametrize(("number", "placement"), [(signal.SIGINT, "inline"), (signal.SIGINT, "2"), (signal.SIGTERM, "2")])
def test_it_leaves_a_playable_file_and_no_process(small_model: Path, face: Path, tmp_path: Path, number: int, placement: str) -> None:
    sound, out = tmp_path / "long.wav", tmp_path / "x.mp4"
    write_wav(sound, 0.1 * torch.randn(16_000 * 300, generator=torch.Generator().manual_seed(0)))
    command = [sys.executable, "-m", "everface", "render", str(face), str(sound), "-o", str(out), "--weights", str(small_model)]
    # A test run in the background inherits an ignored SIGINT, and so would its children; a terminal's programs do not.
    process = subprocess.Popen(
        [*command, "--placement", placement], stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    hidden = tmp_path.glob(".*")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(p.stat().st_size > 60_000 for p in hidden):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.2)
        hidden = tmp_path.glob(".*")
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)  # as a terminal or a service manager does: to the whole group
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number and "interrupted" in said and str(out) in said and "Traceback" not in said
    info = probe_video(out)
    assert info.frames >= 25 and info.fps == pytest.approx(25)
    assert info.audio_duration_s is not None and abs(info.audio_duration_s - info.duration_s) <= 0.04
    assert not [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["long.wav", "x.mp4"]
