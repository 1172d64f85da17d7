"""Speech with phonemes: the sentences and voices of the drawn characters, spoken by the library of espeak-ng, which reports every phoneme.

Files are those of `synthetic.voices.make_speech`, and beside each WAV a JSON list of [start in seconds, phoneme], in IPA, with "_" for silence. (espeak-ng has
names of its own, too, of which some are different sounds in different languages.)
"""

from __future__ import annotations

import ctypes
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from ctypes.util import find_library
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from everface.core.config import SAMPLE_RATE
from everface.core.errors import BadInput, Unavailable
from everface.train.synthetic.sentences import TEXTS
from everface.train.synthetic.voices import HELD_OUT, LONGEST_PAUSE_S, SPEECH_DB, VOICES, is_held_out, read_wav, write_wav

RATE, PITCH, PHONEME, PHONEME_EVENTS_IPA, SYNCHRONOUS, UTF8 = 1, 3, 7, 3, 2, 1  # numbers of espeak-ng's speak_lib.h
Phonemes = list[tuple[float, str]]
# Of espeak-ng's languages in Latin letters; not Danish, whose phonemes it reports at other times than it speaks them
LANGUAGES = (
    "af", "ca", "cs", "de", "en-gb", "en-us", "eo", "et", "eu", "fi", "fr", "hr", "ht", "hu", "is", "la", "lb", "lt", "ms", "mt", "nb", "nl",
    "pap", "pl", "pt", "pt-br", "ro", "sk", "sl", "sq", "sv", "sw", "tr",
)  # fmt: skip
VARIANTS = ("", "+m1", "+m3", "+m5", "+m7", "+f1", "+f2", "+f3", "+f4", "+f5")
HELD_OUT_CLIPS = 6  # of each held-out voice
OTHER_NAMES = re.compile("[A-WYZ0-9@&]")  # in espeak-ng's own names of phonemes, never in IPA's
SHORTEST_PAUSE_S = 0.07  # what has no name and is shorter belongs to the phoneme before
FILE_NAMES = {"en-gb": "en"}  # the library looks voices up by file, the program by language too


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int), ("uid", ctypes.c_uint), ("text_position", ctypes.c_int), ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int), ("sample", ctypes.c_int), ("user", ctypes.c_void_p), ("id", _Id),
    )  # fmt: skip


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@lru_cache(maxsize=1)
def _library() -> tuple[ctypes.CDLL, int]:
    name = find_library("espeak-ng")
    if name is None:
        raise Unavailable("Speech with phonemes needs the library libespeak-ng, which was not found; install the package espeak-ng.")
    library = ctypes.CDLL(name)
    return library, library.espeak_Initialize(SYNCHRONOUS, 0, None, PHONEME_EVENTS_IPA)


def speak(text: str, voice: str, speed: int, pitch: int) -> tuple[np.ndarray, Phonemes]:
    """One sentence at 16 kHz, mono float32, and the phonemes in IPA with the seconds at which they begin. Not thread-safe."""
    import soxr

    library, rate = _library()
    audio, phonemes = list[bytes](), Phonemes()

    def receive(samples, count: int, events) -> int:  # ctypes' pointers
        if count > 0:
            audio.append(ctypes.string_at(samples, 2 * count))
        k = 0
        while events[k].type != 0:
            if events[k].type == PHONEME:
                phonemes.append((events[k].sample / rate, events[k].id.string.decode("utf-8", "replace")))
            k += 1
        return 0

    callback = _CALLBACK(receive)
    library.espeak_SetSynthCallback(callback)
    language, plus, variant = voice.partition("+")
    name = FILE_NAMES.get(language, language) + plus + variant
    if library.espeak_SetVoiceByName(name.encode()):
        raise Unavailable(f"espeak-ng has no voice {voice}; install the package espeak-ng-data.")
    library.espeak_SetParameter(RATE, speed, 0)
    library.espeak_SetParameter(PITCH, pitch, 0)
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 1, 0, UTF8, None, None)
    library.espeak_Synchronize()
    pcm_S = np.frombuffer(b"".join(audio), np.int16).astype(np.float32) / 32768
    return soxr.resample(pcm_S, rate, SAMPLE_RATE).astype(np.float32), _pauses(phonemes, len(pcm_S) / rate)


def _pauses(phonemes: Phonemes, end_s: float) -> Phonemes:
    """Without those that have no name, of which long ones are silence."""
    ends = [*(t for t, _ in phonemes[1:]), end_s]
    return [(t, name or "_") for (t, name), end in zip(phonemes, ends, strict=True) if name or end - t >= SHORTEST_PAUSE_S]


def make_phoneme_speech(folder: Path, seed: int = 0, clips_per_voice: int = 5, voices: tuple[str, ...] = VOICES) -> list[Path]:
    """Write clips of six sentences for each voice, WAV and JSON. Returns the WAVs. Raises Unavailable without espeak-ng."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, paths = random.Random(seed), []
    for voice in voices:
        texts = TEXTS[voice[:2]].splitlines()
        for k in range(clips_per_voice):
            paths.append(folder / f"{_stem(voice)}_{k:02d}.wav")
            _write_clip(paths[-1], voice, lambda: rng.sample(texts, 6), rng)  # noqa: B023 called at once
    return paths


def make_multilingual_speech(folder: Path, seed: int, clips: int) -> list[Path]:
    """The same of any of LANGUAGES in many voices, never those held out. Half of the sentences are words of all languages in any order, so that
    more sounds follow each other than the sentences have."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, paths = random.Random(seed), []
    sentences = [text for language, texts in TEXTS.items() if language not in HELD_OUT for text in texts.splitlines()]
    words = [word for text in sentences for word in text.split()]

    def sentence() -> str:
        return rng.choice(sentences) if rng.random() < 0.5 else " ".join(rng.choices(words, k=rng.randint(3, 11)))

    for k in range(clips):
        voice = rng.choice(LANGUAGES) + rng.choice(VARIANTS)
        paths.append(folder / f"{_stem(voice)}_x{k:04d}.wav")
        _write_clip(paths[-1], voice, lambda: [sentence() for _ in range(6)], rng)
    return paths


def make_both_sides(folder: Path, seed: int, clips: int) -> list[Path]:
    """So many multilingual clips to learn from, and some of each held-out voice."""
    return make_multilingual_speech(folder, seed, clips) + make_phoneme_speech(folder, seed, HELD_OUT_CLIPS, HELD_OUT)


def _stem(voice: str) -> str:
    return voice.replace("+", "_")


def _write_clip(path: Path, voice: str, choose: Callable[[], list[str]], rng: random.Random) -> None:
    """Six sentences at one speed and pitch."""
    speed, pitch = rng.randint(125, 210), rng.randint(25, 80)
    write_clip(path, _spoken(choose, voice, speed, pitch), rng)


def _spoken(choose: Callable[[], list[str]], voice: str, speed: int, pitch: int) -> Iterator[tuple[np.ndarray, Phonemes]]:
    for text in choose():
        yield speak(text, voice, speed, pitch)


def write_clip(path: Path, spoken: Iterable[tuple[np.ndarray, Phonemes]], rng: random.Random) -> None:
    """Sentences at 16 kHz with their phonemes, and pauses between them, as one WAV and JSON."""
    parts, labels, at = [_silence(rng.uniform(0.2, LONGEST_PAUSE_S))] if rng.random() < 0.5 else [], [(0.0, "_")], 0.0
    at += sum(map(len, parts)) / SAMPLE_RATE
    for pcm_S, phonemes in spoken:
        pause = _silence(rng.uniform(0.9, LONGEST_PAUSE_S) if rng.random() < 1 / 6 else rng.uniform(0.1, 0.9))
        labels += [(at + t, name) for t, name in phonemes] + [(at + len(pcm_S) / SAMPLE_RATE, "_")]
        parts += [pcm_S, pause]
        at += (len(pcm_S) + len(pause)) / SAMPLE_RATE
    pcm_S = np.concatenate(parts)
    pcm_S *= 10 ** (SPEECH_DB / 20) / np.sqrt(np.mean(np.square(pcm_S[np.abs(pcm_S) > 1e-3])))
    write_wav(path, torch.from_numpy(pcm_S.astype(np.float32)))
    path.with_suffix(".json").write_text(json.dumps([[round(t, 4), name] for t, name in labels]))


def read_phoneme_speech(folder: Path, held_out: bool) -> list[tuple[torch.Tensor, Phonemes]]:
    """All clips of one side of the split: mono float32 at 16 kHz, and phonemes. Raises BadInput for phonemes that are not IPA."""
    paths = [path for path in sorted(folder.glob("*.wav")) if is_held_out(path) == held_out]
    return [(read_wav(p), _read_phonemes(p.with_suffix(".json"))) for p in paths]


def _read_phonemes(path: Path) -> Phonemes:
    phonemes = [(float(t), str(name)) for t, name in json.loads(path.read_text())]
    if any(OTHER_NAMES.search(name) for _, name in phonemes if not name.startswith("(")):
        raise BadInput(f"{path} has phonemes by espeak-ng's own names, as an earlier version wrote them: make the speech again")
    return phonemes


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)
