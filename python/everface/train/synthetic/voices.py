"""Speech for training: espeak-ng reads short texts in many voices.

Audio is mono float32 at 16 kHz. All Spanish and Italian voices are held out. The files hold only the voice, because the mouth's motion is
computed from them; music and noise are mixed in later (`background`).
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from everface.core.config import SAMPLE_RATE
from everface.core.errors import BadInput, Unavailable
from everface.train.synthetic.sentences import TEXTS

VOICES = (
    "en-us", "en-us+m3", "en-us+f2", "en-gb", "en-gb+f4", "en-gb+m7", "en-gb-scotland+m1", "en-029+f1",
    "de", "de+f3", "fr", "fr+m4", "pt", "pt-br+f2", "nl", "nl+f4", "pl", "pl+f1", "sv", "sv+f5", "tr+f2", "fi+m2",
    "es", "es+f2", "it", "it+f3",
)  # fmt: skip
SPEECH_DB = -21.0  # rms of every voice while it speaks
LONGEST_PAUSE_S = 2.5
HELD_OUT = ("es", "it")


def make_speech(folder: Path, seed: int = 0, clips_per_voice: int = 5, voices: tuple[str, ...] = VOICES) -> list[Path]:
    """Write clips of about 25 s for each voice as 16-bit 16 kHz WAV; 5 for each of `VOICES` make 54 minutes. Returns the paths.

    Each clip is six sentences at one speed (125-210 words per minute) and pitch (25-80), with pauses of 0.1-0.9 s, every sixth up to
    `LONGEST_PAUSE_S`. Half of the clips begin with up to 2.5 s of silence, half end with it, half have a noise floor of -70 to -52 dB.
    Speech is scaled to `SPEECH_DB` rms. Raises Unavailable without espeak-ng.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng, paths = random.Random(seed), []
    for voice in voices:
        texts = TEXTS[voice[:2]].splitlines()
        for k in range(clips_per_voice):
            speed, pitch = rng.randint(125, 210), rng.randint(25, 80)
            parts = [_silence(rng.uniform(0.4, LONGEST_PAUSE_S))] if rng.random() < 0.5 else []
            for text in rng.sample(texts, 6):
                pause_s = rng.uniform(0.9, LONGEST_PAUSE_S) if rng.random() < 1 / 6 else rng.uniform(0.1, 0.9)
                parts += [synthesize(text, voice, speed, pitch), _silence(pause_s)]
            parts += [_silence(rng.uniform(0.4, LONGEST_PAUSE_S))] if rng.random() < 0.5 else []
            pcm_S = np.concatenate(parts)
            pcm_S *= 10 ** (SPEECH_DB / 20) / np.sqrt(np.mean(np.square(pcm_S[np.abs(pcm_S) > 1e-3])))
            if rng.random() < 0.5:
                noise = np.random.default_rng(rng.randrange(1 << 30)).standard_normal(len(pcm_S))
                pcm_S = pcm_S + 10 ** (rng.uniform(-70, -52) / 20) * noise
            path = folder / f"{voice.replace('+', '_')}_{k:02d}.wav"
            write_wav(path, torch.from_numpy(pcm_S.astype(np.float32)))
            paths.append(path)
    return paths


def is_held_out(path: Path) -> bool:
    """Whether a clip of make_speech is for evaluation and must never be trained on."""
    return Path(path).name[:2] in HELD_OUT


def read_wav(path: Path) -> Tensor:
    """A 16-bit mono 16 kHz WAV file, as make_speech writes it. Returns pcm_S float32 in -1..1."""
    with wave.open(str(path), "rb") as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (SAMPLE_RATE, 1, 2):
            raise BadInput(f"{path} is not 16-bit mono audio at {SAMPLE_RATE} Hz; make it again with make_speech.")
        return torch.from_numpy(np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768)


def write_wav(path: Path, pcm_S: Tensor) -> None:
    """Write mono 16 kHz audio in -1..1 as 16-bit WAV."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes((pcm_S.clamp(-1, 1) * 32767).round().to(torch.int16).numpy().tobytes())


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def resample_wav(path: Path) -> np.ndarray:
    """A 16-bit mono WAV file of any rate at 16 kHz, float32."""
    import soxr  # only needed to make speech: a training machine may lack it

    with wave.open(str(path), "rb") as file:
        rate = file.getframerate()
        pcm_S = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    return soxr.resample(pcm_S, rate, SAMPLE_RATE).astype(np.float32)


def synthesize(text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """One sentence by espeak-ng at 16 kHz, mono float32."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise Unavailable("Speech for training needs the program espeak-ng, which was not found; install the package espeak-ng.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "say.wav"
        command = [program, "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(path), "--stdin"]
        subprocess.run(command, input=text.encode(), check=True, capture_output=True)
        return resample_wav(path)
