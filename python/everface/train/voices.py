"""Speech for the default model: espeak-ng says short texts in twelve voices; a causal rule says how the mouth should move.

Sound is mono float32 at 16 kHz, 640 samples per video frame (25 per second). All Spanish and Italian voices are held out.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
import wave
from pathlib import Path

import numpy as np
import soxr
import torch
from torch import Tensor

from everface.core.errors import BadInput, Unavailable
from everface.train.characters import NEUTRAL_WIDE

RATE = 16000
HOP = 640  # samples per video frame
VOICES = ("en-us", "en-us+m3", "en-us+f2", "en-gb", "en-gb+f4", "en-gb+m7", "de", "fr", "es", "es+f2", "it", "it+f3")
RATIO_MEAN_DB, RATIO_SCALE_DB, WIDE_GAIN = -10.7, 3.0, 1.45  # the width rule's centre, steepness and gain: speech fills 0..1
HELD_OUT = ("es", "it")
TEXTS = {
    "en": """The morning train was late again, so we walked along the river.
Could you please open the window? It is far too warm in here.
My grandmother keeps seven blue bowls on the kitchen shelf.
Yes, I think so. No, wait, perhaps not.
We were away a year ago, and nothing has changed since.
She sells sea shells, and he peels sweet green peas.
Oh! What a wonderful idea, tell me more about it.
The quick brown fox jumps over the lazy dog.
One, two, three, four, five, six, seven, eight, nine, ten.
Please leave your message after the tone, and we will call you back.
A small boat moved slowly out of the foggy harbour.
How many apples would you like to buy today?
I have never seen such a bright moon above the mountains.
Pack my box with five dozen liquor jugs.
When the sunlight strikes raindrops in the air, they act as a prism.
Nobody knew where the music came from, but everybody danced.
Put the butter, the bread and the milk on the table.
Really? You must be joking! That is impossible.
The old clock in the hall struck twelve and stopped.
Hello and welcome, my name is Robin and I will be your guide.
Few people know who owns the house at the end of the road.
Each spring the farmers plant beans, beets and peas in neat rows.
Mama made some more marmalade on Monday morning.
Go straight ahead, turn left at the church, and then ask again.
The weather tomorrow will be cloudy, with a little rain in the evening.
Why do you always whisper when you talk about money?
Bob bought a big box of purple paper balloons.
This machine learns from examples, not from rules.
Thank you very much indeed, it was a great pleasure to meet you.
The children laughed, shouted, and ran into the cold water.
An ounce of prevention is worth a pound of cure.
Sixty-six slippery snakes slid silently down the slope.
Let us begin with something simple, and see how far we get.
I owe you an answer: the answer is always more questions.
Our plane leaves at a quarter to nine from gate forty-two.
Who would have thought that a teapot could cause so much trouble?
Wait a moment. I am coming. Do not go without me!
The voice was calm, warm and clear, like a cello in an empty room.
Every picture in this book was drawn by hand.
Good night, sleep well, and see you in the morning.""",
    "de": """Guten Morgen, wie geht es Ihnen heute?
Der alte Mann ging langsam über die Brücke nach Hause.
Wir haben gestern Abend viel zu lange geredet.
Bitte öffnen Sie das Fenster, es ist sehr warm hier.
Fünf kleine Vögel sitzen auf dem Dach und singen.
Ich weiß nicht, ob er morgen kommen kann.
Ach so! Das habe ich mir schon gedacht.
Die Blumen im Garten blühen rot, gelb und blau.
Eins, zwei, drei, vier, fünf, sechs, sieben, acht.
Am Wochenende fahren wir mit dem Zug ans Meer.
Möchten Sie lieber Kaffee oder Tee trinken?
Es war einmal ein König, der hatte drei schöne Töchter.""",
    "fr": """Bonjour, je suis très heureux de vous rencontrer.
Le petit chat dort sur le vieux fauteuil rouge.
Où avez-vous trouvé cette belle photo de la mer?
Nous avons marché toute la nuit sous la pluie.
Un, deux, trois, quatre, cinq, six, sept, huit.
Il fait beau aujourd'hui, allons nous promener au parc.
Je voudrais une baguette et deux croissants, s'il vous plaît.
Ah bon? Je ne le savais pas du tout!
Les oiseaux chantent tôt le matin au printemps.
Elle a ouvert la porte, puis elle a souri.
Mon frère habite une maison bleue près du pont.
Merci beaucoup, et à bientôt j'espère.""",
    "es": """Buenos días, me alegro mucho de verte otra vez.
El perro duerme debajo de la mesa de la cocina.
Mañana vamos a la playa con toda la familia.
¿Cuánto cuesta este libro de color amarillo?
Uno, dos, tres, cuatro, cinco, seis, siete, ocho.
No sé por qué la puerta está siempre abierta.
Mi abuela cuenta historias muy largas y muy bonitas.
¡Qué sorpresa! Nadie me lo había dicho.
El tren de las nueve llega hoy con mucho retraso.
Quisiera un café con leche y un vaso de agua.
Las montañas se ven azules al caer la tarde.
Gracias por todo, nos vemos muy pronto.""",
    "it": """Buongiorno a tutti e benvenuti nella nostra città.
La luna piena illumina il mare e le barche.
Vorrei un gelato al limone e una bottiglia d'acqua.
Ieri sera abbiamo mangiato una pizza molto buona.
Uno, due, tre, quattro, cinque, sei, sette, otto.
Dove hai messo le chiavi della macchina?
Mio nonno suona il violino ogni domenica mattina.
Non è vero! Io non ho mai detto questo.
I bambini giocano nel cortile fino al tramonto.
Il cielo è grigio, forse più tardi pioverà.
Che bella idea, andiamo subito a vedere.
Grazie mille e arrivederci alla prossima volta.""",
}


def make_speech(folder: Path, seed: int = 0, clips_per_voice: int = 6) -> list[Path]:
    """Write clips of about 24 s for each of `VOICES` as 16-bit 16 kHz WAV; 6 per voice make 29 minutes. Returns the paths.

    Each clip is six sentences at one speed (125-210 words per minute) and pitch (25-80), with pauses of 0.1-0.9 s; half the clips
    begin and end in up to 1.5 s of silence, half carry a noise floor of -70 to -52 dB. Speech is brought to -21 dB rms.
    Raises Unavailable without espeak-ng.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chance, paths = random.Random(seed), []
    for voice in VOICES:
        texts = TEXTS[voice[:2]].splitlines()
        for k in range(clips_per_voice):
            speed, pitch = chance.randint(125, 210), chance.randint(25, 80)
            sound = [_silence(chance.uniform(0.4, 1.5))] if chance.random() < 0.5 else []
            for text in chance.sample(texts, 6):
                sound += [_say(text, voice, speed, pitch), _silence(chance.uniform(0.1, 0.9))]
            sound += [_silence(chance.uniform(0.4, 1.5))] if chance.random() < 0.5 else []
            pcm_S = np.concatenate(sound)
            pcm_S *= 10 ** (-21 / 20) / np.sqrt(np.mean(np.square(pcm_S[np.abs(pcm_S) > 1e-3])))
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
