"""The examples run as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]


def test_talk_turns_audio_into_frames() -> None:
    face = ROOT / "python" / "everface" / "default" / "ada.png"
    t = np.arange(int(1.3 * 16_000)) / 16_000
    pcm_bytes = (8000 * np.sin(2 * np.pi * 180 * t) * (np.sin(2 * np.pi * 3 * t) > 0)).astype("<i2").tobytes()
    done = subprocess.run([sys.executable, ROOT / "examples" / "talk.py", face], input=pcm_bytes, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode()
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, 128, 128, 3)
    assert len(frames) == 33  # ceil(1.3 s * 25)
    assert frames.std() > 20
