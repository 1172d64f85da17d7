"""Speech of voices that were made from recordings of people, with its phonemes: festival and flite, where they are installed.

espeak-ng computes every sound by formulas, so what has heard only its voices has never heard a throat. These are spoken from pieces of recordings (diphones,
units) or from statistics of them, and both programs report when each phoneme ends. Files are those of `motion.speech`.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from everface.core.errors import Unavailable
from everface.train.heads.motion.speech import Phonemes, write_clip
from everface.train.synthetic.sentences import TEXTS
from everface.train.synthetic.voices import HELD_OUT, resample_wav

SENTENCES = {  # in languages that the other voices have no sentences in
    "cs": """Dobrý den, jak se máte dnes ráno?
Pane profesore, mám doma tři nové knihy.
Na stole leží chléb, máslo a sklenice mléka.
Příští vlak odjíždí z druhého nástupiště.
Moje babička bydlí v malém domě u řeky.
Počasí bude zítra chladné, ale bez deště.
Prosím vás, kde je tady nejbližší lékárna?
Žádný učený z nebe nespadl, říkával můj otec.""",
    "ca": """Bon dia, com es diu aquest poble tan bonic?
Demà plourà molt a les muntanyes, però a la costa farà sol.
El noi menja xocolata i la noia llegeix el diari.
Vull comprar mig quilo de pomes i una ampolla d'aigua.
La meva àvia viu en una casa petita vora el riu.
Quina hora és? Em sembla que ja fem tard.
Gràcies per tot, ens veurem dijous al vespre.
Setze jutges d'un jutjat mengen fetge d'un penjat.""",
    "ru": """Добрый день, как ваши дела?
Сегодня утром мы пошли в лес за грибами.
Моя бабушка живёт в маленьком доме у реки.
Поезд опять опоздал, и мы пошли пешком.
Положите, пожалуйста, хлеб и масло на стол.
Завтра будет холодно, но без дождя.
Цыплёнок пьёт воду, а жираф ест щавель.
Спасибо большое, увидимся в четверг вечером.""",
}
SLOWER = (0.8, 1.25)  # durations of phonemes, against the voice's own
TIMEOUT_S = 120.0

# Phonemes of the voices that are not letters of IPA already
_ENGLISH = {
    "aa": "ɑ", "ae": "æ", "ah": "ʌ", "ao": "ɔ", "aw": "aʊ", "ax": "ə", "axr": "ɚ", "ay": "aɪ", "ch": "tʃ", "dh": "ð", "eh": "ɛ", "er": "ɚ", "ey": "eɪ",
    "hh": "h", "ih": "ɪ", "iy": "i", "jh": "dʒ", "ng": "ŋ", "ow": "oʊ", "oy": "ɔɪ", "r": "ɹ", "sh": "ʃ", "th": "θ", "uh": "ʊ", "uw": "u", "y": "j", "zh": "ʒ",
}  # fmt: skip
_ROMANCE = {"ax": "ə", "E": "ɛ", "O": "ɔ", "S": "ʃ", "Z": "ʒ", "L": "ʎ", "J": "ɲ", "tS": "tʃ", "dZ": "dʒ", "nf": "n", "ng": "ŋ", "r": "ɾ", "rr": "r"}
_CZECH = {
    "e": "ɛ", "c~": "tʃ", "s~": "ʃ", "z~": "ʒ", "r~*": "rʃ", "r~": "rʒ", "d~": "ɟ", "t~": "c", "n~": "ɲ", "n*": "ŋ", "N": "ŋ", "c": "ts", "dz~": "dʒ",
    "ch": "x",
}  # fmt: skip
_FINNISH = {"a": "ɑ", "@": "æ", "7": "ø", "N": "ŋ", "S": "ʃ", "T": "θ", "v": "ʋ"}
_RUSSIAN = {
    "a": "ɐ", "aa": "a", "ae": "ə", "ay": "ə", "y": "ɨ", "yy": "ɨ", "ur": "ʊ", "sch": "ɕ", "sh": "ʃ", "ch": "tɕ", "zh": "ʒ", "c": "ts", "h": "x",
}  # fmt: skip


@dataclass(frozen=True)
class Voice:
    """name: of the program's voice. phonemes: those that are not IPA's letters."""

    name: str
    language: str
    phonemes: dict[str, str]
    encoding: str = "latin-1"
    program: str = "festival"


VOICES = (
    Voice("awb", "en", _ENGLISH, program="flite"), Voice("rms", "en", _ENGLISH, program="flite"), Voice("slt", "en", _ENGLISH, program="flite"),
    Voice("kal_diphone", "en", _ENGLISH), Voice("ked_diphone", "en", _ENGLISH), Voice("cmu_us_slt_arctic_hts", "en", _ENGLISH),
    Voice("czech_dita", "cs", _CZECH, "iso8859-2"), Voice("czech_krb", "cs", _CZECH, "iso8859-2"), Voice("czech_machac", "cs", _CZECH, "iso8859-2"),
    Voice("czech_ph", "cs", _CZECH, "iso8859-2"), Voice("hy_fi_mv_diphone", "fi", _FINNISH), Voice("suo_fi_lj_diphone", "fi", _FINNISH),
    Voice("upc_ca_ona_hts", "ca", _ROMANCE), Voice("msu_ru_nsh_clunits", "ru", _RUSSIAN, "utf-8"),
    Voice("lp_diphone", "it", _ROMANCE), Voice("pc_diphone", "it", _ROMANCE),
)  # fmt: skip


def as_ipa(voice: Voice, phoneme: str) -> str:
    """A phoneme of the voice as `visemes.targets` reads it; "_" for silence."""
    name = re.sub(r"\d", "", phoneme) if voice.phonemes is _ROMANCE else phoneme
    if name in ("pau", "#", "##", "_", "sil", ""):
        return "_"
    if name not in voice.phonemes and voice.phonemes is _RUSSIAN:
        name = name[0]  # two letters: palatalized, or stressed
    sound = name.removesuffix(":")
    return voice.phonemes.get(sound, sound) + ("ː" if sound != name else "")


def make_recorded_speech(folder: Path, seed: int, clips_per_voice: int, voices: tuple[Voice, ...] = VOICES) -> list[Path]:
    """Write so many clips of six sentences of each voice, WAV and JSON. Returns the WAVs. Raises Unavailable without festival, flite or
    one of the voices."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = list[Path]()
    for voice in voices:
        rng = random.Random(f"{seed} {voice.name}")
        for k in range(clips_per_voice):
            spoken = speak(_choose(voice, rng), voice, rng.uniform(*SLOWER))
            paths.append(folder / f"{voice.language}_{voice.name}_{k:03d}.wav")
            write_clip(paths[-1], spoken, rng)
    return paths


def speak(texts: list[str], voice: Voice, slower: float) -> list[tuple[np.ndarray, Phonemes]]:
    """Sentences at 16 kHz, mono float32, and their phonemes with the seconds at which they begin. A sentence that the program cannot speak is left out."""
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        names = (_flite if voice.program == "flite" else _festival)(texts, voice, slower, folder)
        if not names:
            raise Unavailable(f"{voice.program} has no voice {voice.name}, or cannot speak with it; install it (docs/training/heads.md names the packages).")
        return [(resample_wav(folder / f"{n}.wav"), [(begin, as_ipa(voice, name)) for begin, name in phones]) for n, phones in names.items()]


def _choose(voice: Voice, rng: random.Random) -> list[str]:
    """Six sentences, half of them words in any order: of all languages in Latin letters, where the voice's are."""
    own = (TEXTS | SENTENCES)[voice.language].splitlines()
    others = own if voice.language == "ru" else [text for language, texts in TEXTS.items() if language not in HELD_OUT for text in texts.splitlines()]
    words = [word for text in others for word in text.split()]
    return [rng.choice(own) if rng.random() < 0.5 else " ".join(rng.choices(words, k=rng.randint(3, 11))) for _ in range(6)]


def _festival(texts: list[str], voice: Voice, slower: float, folder: Path) -> dict[int, Phonemes]:
    """One process for all of them, which ends at a sentence that the voice cannot speak; another one then speaks those after it. Writes N.wav."""
    begin = [f"(voice_{voice.name})", f"(Parameter.set 'Duration_Stretch {slower:.3f})"]
    out, first = dict[int, Phonemes](), 0
    while first < len(texts):
        script = list(begin)
        for n in range(first, len(texts)):
            clean = re.sub(r'["\\()]', " ", texts[n])
            script += [f'(set! said (SynthText "{clean}"))', f'(utt.save.segs said "{folder}/{n}.lab")', f'(utt.save.wave said "{folder}/{n}.wav")']
        (folder / "say.scm").write_bytes("\n".join(script).encode(voice.encoding, "ignore"))
        _run(["festival", "-b", str(folder / "say.scm")])
        while first < len(texts) and (folder / f"{first}.wav").exists():
            rows = [line.split() for line in (folder / f"{first}.lab").read_text(voice.encoding).splitlines() if line.strip() != "#"]
            out[first] = _begins([(float(row[0]), row[-1]) for row in rows])
            first += 1
        first += 1
    return out


def _flite(texts: list[str], voice: Voice, slower: float, folder: Path) -> dict[int, Phonemes]:
    """One process for each. Writes N.wav."""
    out = dict[int, Phonemes]()
    for n, text in enumerate(texts):
        ascii_text = text.encode("ascii", "ignore").decode()
        said = _run(["flite", "-voice", voice.name, "--setf", f"duration_stretch={slower:.3f}", "-psdur", "-o", str(folder / f"{n}.wav"), "-t", ascii_text])
        pairs = [row.rsplit(":", 1) for row in said.split()]
        out[n] = _begins([(float(end), name) for name, end in pairs])
    return out


def _begins(ends: list[tuple[float, str]]) -> Phonemes:
    """From when each phoneme ends to when it begins."""
    return [(before, name) for (_, name), before in zip(ends, [0.0, *(end for end, _ in ends)], strict=False)]


def _run(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        raise Unavailable(f"Speech of recorded voices needs the program {command[0]}, which was not found; install the package {command[0]}.")
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    return done.stdout.decode("utf-8", "replace")
