"""Speech for the default model: espeak-ng says short texts in many voices; a causal rule says how the mouth should move.

Sound is mono float32 at 16 kHz, 640 samples per video frame (25 per second). All Spanish and Italian voices are held out.
Files hold the voice alone, so that the rule hears nothing else; music and noise are laid under it later (`beds`).
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

from everface.core.errors import BadInput, Unavailable
from everface.train.synthetic.characters import NEUTRAL_WIDE
from everface.train.synthetic.sentences import TEXTS

RATE = 16000
HOP = 640  # samples per video frame
VOICES = (
    "en-us", "en-us+m3", "en-us+f2", "en-gb", "en-gb+f4", "en-gb+m7", "en-gb-scotland+m1", "en-029+f1",
    "de", "de+f3", "fr", "fr+m4", "pt", "pt-br+f2", "nl", "nl+f4", "pl", "pl+f1", "sv", "sv+f5", "tr+f2", "fi+m2",
    "es", "es+f2", "it", "it+f3",
)  # fmt: skip
SPEECH_DB = -21.0  # rms of every voice while it speaks
LONGEST_PAUSE_S = 2.5
RATIO_MEAN_DB, RATIO_SCALE_DB, WIDE_GAIN = -10.7, 3.0, 1.45  # the width rule's centre, steepness and gain: speech fills 0..1
HELD_OUT = ("es", "it")


def make_speech(folder: Path, seed: int = 0, clips_per_voice: int = 5, voices: tuple[str, ...] = VOICES) -> list[Path]:
    """Write clips of about 25 s for each voice as 16-bit 16 kHz WAV; 5 for each of `VOICES` make 54 minutes. Returns the paths.

    Each clip is six sentences at one speed (125-210 words per minute) and pitch (25-80), with pauses of 0.1-0.9 s, every sixth
    up to `LONGEST_PAUSE_S`; half the clips begin and end in up to 2.5 s of silence, half carry a noise floor of -70 to -52 dB.
    Speech is brought to `SPEECH_DB` rms. Raises Unavailable without espeak-ng.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chance, paths = random.Random(seed), []
    for voice in voices:
        texts = TEXTS[voice[:2]].splitlines()
        for k in range(clips_per_voice):
            speed, pitch = chance.randint(125, 210), chance.randint(25, 80)
            sound = [_silence(chance.uniform(0.4, LONGEST_PAUSE_S))] if chance.random() < 0.5 else []
            for text in chance.sample(texts, 6):
                pause_s = chance.uniform(0.9, LONGEST_PAUSE_S) if chance.random() < 1 / 6 else chance.uniform(0.1, 0.9)
                sound += [_say(text, voice, speed, pitch), _silence(pause_s)]
            sound += [_silence(chance.uniform(0.4, LONGEST_PAUSE_S))] if chance.random() < 0.5 else []
            pcm_S = np.concatenate(sound)
            pcm_S *= 10 ** (SPEECH_DB / 20) / np.sqrt(np.mean(np.square(pcm_S[np.abs(pcm_S) > 1e-3])))
            if chance.random() < 0.5:
                noise = np.random.default_rng(chance.randrange(1 << 30)).standard_normal(len(pcm_S))
                pcm_S = pcm_S + 10 ** (chance.uniform(-70, -52) / 20) * noise
            path = folder / f"{voice.replace('+', '_')}_{k:02d}.wav"
            write_wav(path, torch.from_numpy(pcm_S.astype(np.float32)))
            paths.append(path)
    return paths


def held_out(path: Path) -> bool:
    """Whether a clip of make_speech belongs to the judge and must never be trained on."""
    return Path(path).name[:2] in HELD_OUT


def read_wav(path: Path) -> Tensor:
    """A 16-bit mono 16 kHz WAV file, as make_speech writes it. Returns pcm_S float32 in -1..1."""
    with wave.open(str(path), "rb") as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
            raise BadInput(f"{path} is not 16-bit mono sound at {RATE} Hz; make it again with make_speech.")
        return torch.from_numpy(np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768)


def write_wav(path: Path, pcm_S: Tensor) -> None:
    """Write mono 16 kHz sound in -1..1 as 16-bit WAV."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((pcm_S.clamp(-1, 1) * 32767).round().to(torch.int16).numpy().tobytes())


def mouth_targets(pcm_S: Tensor) -> tuple[Tensor, Tensor]:
    """How a drawn mouth says this sound. Frame n hears samples below 640 (n + 1) only. Returns open_T, wide_T (0..1).

    open: clip((dB + 42) / 28, 0, 1) of the 40 ms rms, one pole with attack 0.65 and release 0.45 per frame.
    wide: a logistic of the energy ratio in dB, 1.6-3.6 kHz over 0.2-1.0 kHz, of the last 80 ms (Hann), drawn to `NEUTRAL_WIDE`
    in silence, stretched by `WIDE_GAIN` about it, one pole of 0.3 per frame: front vowels and hisses spread the mouth, dark
    vowels round it.
    """
    T = len(pcm_S) // HOP
    pcm_S = pcm_S[: T * HOP].double()
    level_T = 10 * torch.log10(pcm_S.view(T, HOP).square().mean(1) + 1e-10)
    window_TS = torch.cat([pcm_S.new_zeros(HOP), pcm_S]).unfold(0, 2 * HOP, HOP) * torch.hann_window(2 * HOP, dtype=torch.float64)
    power_TF = torch.fft.rfft(window_TS).abs().square()
    hertz_F = torch.arange(power_TF.shape[1]) * RATE / (2 * HOP)

    def band(lo: float, hi: float) -> Tensor:
        return power_TF[:, (hertz_F >= lo) & (hertz_F < hi)].sum(1) + 1e-6

    ratio_T = 10 * torch.log10(band(1600, 3600) / band(200, 1000))
    voiced_T = ((level_T + 44) / 12).clamp(0, 1)
    spread_T = NEUTRAL_WIDE + WIDE_GAIN * voiced_T * (torch.sigmoid((ratio_T - RATIO_MEAN_DB) / RATIO_SCALE_DB) - 0.5)
    open_T, wide_T = torch.zeros(T), torch.zeros(T)
    opening, wide = 0.0, NEUTRAL_WIDE
    for n, (goal, spread) in enumerate(zip(((level_T + 42) / 28).clamp(0, 1).tolist(), spread_T.tolist())):
        opening += (0.65 if goal > opening else 0.45) * (goal - opening)
        wide += 0.3 * (spread - wide)
        open_T[n], wide_T[n] = opening, min(max(wide, 0.0), 1.0)
    return open_T, wide_T


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE), np.float32)


def _say(text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """One sentence by espeak-ng at 16 kHz, mono float32."""
    import soxr  # only whoever makes speech needs it: a machine with a GPU, which trains, may lack it

    program = shutil.which("espeak-ng")
    if program is None:
        raise Unavailable("Speech for training needs the program espeak-ng, which is not here; install the package espeak-ng.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "say.wav"
        command = [program, "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(path), "--stdin"]
        subprocess.run(command, input=text.encode(), check=True, capture_output=True)
        with wave.open(str(path), "rb") as file:
            rate = file.getframerate()
            pcm_S = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    return soxr.resample(pcm_S, rate, RATE).astype(np.float32)
