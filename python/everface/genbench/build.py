"""Makes sets. `build_set` draws the open sets `short` and `long`; `build_from` makes one of a user's images and voices.

The paper's set, which was not published, has 100 samples of about 10 s and 15 of more than 5 minutes: generated images of people, animated
and anthropomorphic figures, frontal and in profile, half and full body, with generated voices. Ours has the same numbers and durations. Its
figures are drawn, frontal, head and shoulders; its voices are espeak-ng's, in eleven languages. Both can be made by anybody, and the true
motion of a drawn mouth is known. The characters were in no training; Spanish and Italian voices neither.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from everface.core.config import SAMPLE_RATE
from everface.core.errors import BadInput
from everface.genbench.manifest import ID, BenchmarkSet, Sample, Tags, digest, read_manifest, write_manifest
from everface.media.audio import read_audio
from everface.train.evaluate.held_out import HELD_OUT_SEED
from everface.train.synthetic import voices
from everface.train.synthetic.characters import eyes_box, mouth_box, render, to_uint8
from everface.train.synthetic.identity import sample_identity
from everface.train.synthetic.motion import neutral
from everface.train.synthetic.sentences import TEXTS

IMAGE_SIZE = 512  # pixels, square; a model takes it down to its own size
PROMPT = "A drawn character faces the viewer and talks."
LICENSE = "Apache-2.0"  # that of everything that this project makes
SEED = 2_028_000  # of held-out characters; also of the texts
IMAGES, VOICES = (".png", ".jpg", ".jpeg", ".webp"), (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus")


class Composition(NamedTuple):
    """How many samples a set has, and how long they speak at least."""

    samples: int
    seconds: float


SETS = {"short": Composition(100, 10.0), "long": Composition(15, 310.0)}
Progress = Callable[[int, int], None]  # samples done, in all


def build_set(name: str, folder: Path, limit: int | None = None, progress: Progress | None = None) -> BenchmarkSet:
    """Make the set `name` in `folder`, which is created; with `limit` only its first samples, the same ones. Same machine, same files.

    Raises Unavailable without espeak-ng.
    """
    count, seconds = SETS[name]
    samples, many = [], min(limit or count, count)
    generator = torch.Generator().manual_seed(HELD_OUT_SEED + SEED + (name == "long"))
    id_NP = sample_identity(count, generator)
    for kind in ("images", "voices"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for i in range(many):
        sample = _draw(f"{name}-{i:03d}", i, seconds, id_NP[i], folder)
        samples.append(sample)
        if progress:
            progress(i + 1, many)
    write_manifest(folder, samples)
    return BenchmarkSet(folder, samples)


def _draw(id: str, index: int, seconds: float, id_P: torch.Tensor, folder: Path) -> Sample:
    """One sample: its image and its voice are written, if they are not there already."""
    image, voice = f"images/{id}.png", f"voices/{id}.wav"
    speaker = voices.VOICES[(index * 11) % len(voices.VOICES)]  # 11 and 26 have no common divisor: neighbors differ in language
    text, pcm_S = _speak(speaker, seconds, random.Random(f"{SEED} {id}"))
    voices.write_wav(folder / voice, torch.from_numpy(pcm_S))
    with torch.no_grad():
        rgb = to_uint8(render(id_P[None], neutral(1), IMAGE_SIZE)[0])
    Image.fromarray(rgb.permute(1, 2, 0).numpy()).save(folder / image)
    seen = "nothing" if speaker[:2] in voices.HELD_OUT else "voice"
    tags = Tags("drawn", "frontal", "head and shoulders", speaker, "synthetic", LICENSE, seen)
    sums = {"image": digest(folder / image), "voice": digest(folder / voice)}
    return Sample(id, image, voice, len(pcm_S) / SAMPLE_RATE, text, PROMPT, tags, drawn_face(), "drawn", sums)


def _speak(speaker: str, seconds: float, rng: random.Random) -> tuple[str, np.ndarray]:
    """Sentences of a language in random order, with pauses, until they last at least `seconds`; cut at 1.2 times as long."""
    texts, said, parts, samples = TEXTS[speaker[:2]].splitlines(), [], [], 0
    speed, pitch = rng.randint(125, 210), rng.randint(25, 80)
    while samples < seconds * SAMPLE_RATE:
        for text in rng.sample(texts, len(texts)):
            pcm_S, pause_S = voices.synthesize(text, speaker, speed, pitch), np.zeros(int(rng.uniform(0.1, 0.9) * SAMPLE_RATE), np.float32)
            said, parts, samples = [*said, text], [*parts, pcm_S, pause_S], samples + len(pcm_S) + len(pause_S)
            if samples >= seconds * SAMPLE_RATE:
                break
    pcm_S = np.concatenate(parts)[: int(1.2 * seconds * SAMPLE_RATE)]
    pcm_S *= 10 ** (voices.SPEECH_DB / 20) / np.sqrt(np.mean(np.square(pcm_S[np.abs(pcm_S) > 1e-3])))
    return " ".join(said), pcm_S.astype(np.float32)


def drawn_face(size: int = 320) -> tuple[float, float, float, float]:
    """The box of a drawn face as shares of the image: it holds eyes and mouth in every pose."""
    top, _, left, right = eyes_box(size)
    return left / size, top * 0.5 / size, right / size, mouth_box(size)[1] / size


def build_from(source: Path, folder: Path, limit: int | None = None) -> BenchmarkSet:
    """A set of the images and voices of `source`, which are copied. A voice gets the image of its own name, otherwise the images in turn;
    NAME.txt beside it is its text. Raises BadInput."""
    if not source.is_dir():
        raise BadInput(f"{source} is no folder: name one with images ({', '.join(IMAGES)}) and voices ({', '.join(VOICES)})")
    images = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGES)
    speech = sorted(path for path in source.iterdir() if path.suffix.lower() in VOICES)
    if not images or not speech:
        lacks = "images" if not images else "voices"
        raise BadInput(f"{source} has no {lacks}: put images ({', '.join(IMAGES)}) and voices ({', '.join(VOICES)}) into it")
    names = {path.stem: path for path in reversed(images)}
    for kind in ("images", "voices"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    samples = []
    for i, path in enumerate(speech[:limit]):
        picked, written = names.get(path.stem, images[i % len(images)]), path.with_suffix(".txt")
        id = path.stem if ID.fullmatch(path.stem) else f"sample-{i:03d}"
        if any(id == sample.id for sample in samples):
            id = f"{id}-{i:03d}"
        image, voice = f"images/{id}{picked.suffix.lower()}", f"voices/{id}{path.suffix.lower()}"
        shutil.copyfile(picked, folder / image)
        shutil.copyfile(path, folder / voice)
        duration_s = sum(map(len, read_audio(path))) / SAMPLE_RATE
        text = written.read_text().strip() if written.is_file() else ""
        sums = {"image": digest(folder / image), "voice": digest(folder / voice)}
        samples.append(Sample(id, image, voice, duration_s, text, sha256=sums))
    write_manifest(folder, samples)
    return read_manifest(folder)


def open_set(name: str, cache: Path, limit: int | None = None, progress: Progress | None = None) -> BenchmarkSet:
    """The set `short` or `long`, made in `cache` unless it is there, or that of a manifest; with `limit` its first samples."""
    if name not in SETS:
        found = read_manifest(Path(name))
    else:
        folder, wanted = cache / name, min(limit or SETS[name].samples, SETS[name].samples)
        found = read_manifest(folder) if (folder / "manifest.jsonl").is_file() else None
        if found is None or len(found.samples) < wanted:
            found = build_set(name, folder, wanted, progress)
    return BenchmarkSet(found.folder, found.samples[:limit])
