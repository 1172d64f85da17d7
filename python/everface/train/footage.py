"""`everface train data --manifest FILE`: films of real people become the clips that the trainers read.

The manifest is one JSON object a line, paths relative to it:

    {"video": "a.mp4", "sound": "a.wav", "caption": "a.txt"}

Without a sound the video's own is heard, without a caption there is none. Films are read once, a clip at a time: frames as a player shows
them at 25 a second, brought to the model's size from their middle; sound at 16 kHz, from the film's first frame on. A clip is 16 latents
long and shows the film's first frame as its still picture; a film is as many clips as it is long, of which the last, incomplete one is
left out. Captions go into the shards' metadata. A line that cannot be used is named, counted and left out; the next run tries it again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import torch
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from safetensors.torch import save_file

from everface.core.config import FPS, LATENT_STRIDE, SAMPLE_RATE, SAMPLES_PER_FRAME
from everface.core.errors import BadInput
from everface.core.log import log
from everface.media.image import fit_image
from everface.media.container import open_media
from everface.model.audio import PAST_FRAMES
from everface.model.features import LogMel
from everface.model.vae import VAE
from everface.runtime.audio_buffer import Intake
from everface.train.clips import MOVING_LATENTS, STILL_FRAMES
from everface.train.data import read_vae
from everface.train.descent import autocast
from everface.train.plans import PLANS

SHARD = 50  # clips
FRAMES = LATENT_STRIDE[0] * MOVING_LATENTS  # of a clip
MISSING_FRAMES = 2  # of sound at the very end that are taken for silence: encoders stop early
EARLY_S = 1e-3  # a frame that comes so little late is on time
Clip = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Film:
    """One line of the manifest. `key`: of its content, so that lines may be added and moved about."""

    video: Path
    sound: Path | None
    caption: str
    key: str


def encode_manifest(manifest: Path, folder: Path, vae_run: Path, count: int, minutes: float, tell: Callable[[str], object] = log.info) -> Path:
    """Fill folder/clips with shards, until there are `count` clips or the time is up; resumable. Returns folder/clips. `tell` hears of each
    line and of the whole.

    Raises BadInput for a manifest that cannot be read or of which no line can be used.
    """
    vae, clips = read_vae(vae_run), folder / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    try:
        lines = [(n, line) for n, line in enumerate(manifest.read_text().splitlines(), 1) if line.strip()]
    except (OSError, UnicodeError) as error:
        raise BadInput(f"cannot read the manifest {manifest}: {error}") from None
    ledger = clips / "films.jsonl"
    done = {row["key"]: row["clips"] for row in map(json.loads, ledger.read_text().splitlines())} if ledger.exists() else {}
    end, made, films, skipped = time.monotonic() + 60 * minutes, 0, 0, 0
    for number, line in lines:
        if made >= count or time.monotonic() > end:
            break
        try:
            film = read_film(line, manifest.parent)
            if film.key not in done:
                whole, done[film.key] = encode_film(film, vae, clips, count - made, end)
                if whole:
                    with open(ledger, "a") as file:
                        file.write(json.dumps({"key": film.key, "video": str(film.video), "clips": done[film.key]}) + "\n")
            made, films = made + done[film.key], films + 1
            tell(f"line {number} of {lines[-1][0]}: {film.video.name}, {done[film.key]} clips, {made} in all")
        except BadInput as error:
            skipped += 1
            tell(f"line {number} of {lines[-1][0]} is left out: {error}")
    tell(f"{made} clips of {films} films in {clips}, {skipped} lines left out")
    if not made:
        raise BadInput(f"no line of {manifest} gave a clip: see what was said of each")
    return clips


def read_film(line: str, folder: Path) -> Film:
    try:
        row = json.loads(line)
        paths = {name: row[name] for name in ("video", "sound", "caption") if row.get(name)}
        video, sound = folder / paths["video"], folder / paths["sound"] if "sound" in paths else None
        caption = (folder / paths["caption"]).read_text().strip() if "caption" in paths else ""
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise BadInput(f'it is not like {{"video": PATH, "sound": PATH, "caption": PATH}} ({type(error).__name__}: {error})') from None
    except OSError as error:
        raise BadInput(f"its caption cannot be read: {error}") from None
    return Film(video, sound, caption, hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16])


def encode_film(film: Film, vae: VAE, clips: Path, most: int, end: float) -> tuple[bool, int]:
    """Write the film's shards. Returns whether it was done to its end, and its clips."""
    height, width = PLANS["tiny"].model.size or (128, 128)
    number, held = 0, list[tuple[torch.Tensor, torch.Tensor]]()

    def write() -> None:
        path = clips / f"film-{film.key}-{(number - 1) // SHARD:04d}.safetensors"
        latents, features = (torch.stack(part) for part in zip(*held, strict=True))
        partial = path.with_suffix(".partial")
        save_file({"latents": latents, "features": features}, partial, {"caption": film.caption, "video": str(film.video)})
        partial.rename(path)
        held.clear()

    whole = True
    for rgb_3THW, features_LCF in cut_clips(film, (height, width), LogMel()):
        with torch.inference_mode(), autocast("cpu"):
            held.append((vae.encode(rgb_3THW[None])[0].half(), features_LCF.half()))
        number += 1
        if len(held) == SHARD:
            write()
        if number >= most or time.monotonic() > end:
            whole = False
            break
    if held:
        write()
    if not number:
        raise BadInput(f"{film.video} gives no clip: picture and sound must both last {FRAMES / FPS:g} s at least")
    return whole, number


def cut_clips(film: Film, size: tuple[int, int], front: LogMel) -> Iterator[Clip]:
    """rgb [3, 5 + 64, H, W] in -1..1 and features [L, C, 5 + 64] of one clip after the other."""
    sound = film.sound or film.video
    frames = read_frames(film.video, size)
    pieces = read_audio(sound, first_s(film.video, "video") if sound == film.video else first_s(sound, "audio"))
    intake = Intake(FRAMES * SAMPLES_PER_FRAME, front.lookback_samples + PAST_FRAMES * SAMPLES_PER_FRAME, front.lookahead_samples)
    still: torch.Tensor | None = None
    while len(moving := list(islice(frames, FRAMES))) == FRAMES:
        still = moving[0] if still is None else still
        while not intake.ended and (found := intake.window()) is None:
            piece = next(pieces, None)
            if piece is None:
                intake.ended = True
            else:
                intake.add(piece)
        if intake.accepted - intake.at < (FRAMES - MISSING_FRAMES) * SAMPLES_PER_FRAME or (found := intake.window()) is None:
            return
        intake.advance()
        yield torch.stack([still] * STILL_FRAMES + moving, dim=1), front.features(found[0], PAST_FRAMES + FRAMES)


def first_s(path: Path, kind: str) -> float:
    """When the first frame of this kind comes."""
    with open_media(path, kind) as container:
        if not (container.streams.video if kind == "video" else container.streams.audio):
            raise BadInput(f"{path} holds no {kind}")
        for frame in _decoded(path, container.decode(video=0) if kind == "video" else container.decode(audio=0)):
            return float(frame.time or 0.0)
    raise BadInput(f"{path} holds no {kind} that can be decoded")


def read_frames(path: Path, size: tuple[int, int]) -> Iterator[torch.Tensor]:
    """[3, H, W] in -1..1, 25 a second: at each moment the frame that a player would show."""
    reformatter = VideoReformatter()

    def fitted(frame: av.VideoFrame) -> torch.Tensor:
        return fit_image(reformatter.reformat(frame, format="rgb24").to_ndarray(), size)

    with open_media(path, "video") as container:
        number, held, zero_s = 0, None, None
        for frame in _decoded(path, container.decode(video=0)):
            now_s = float(frame.time or 0.0)
            zero_s = now_s if zero_s is None else zero_s
            if held is not None and number / FPS < now_s - zero_s - EARLY_S:
                picture = fitted(held)
                while number / FPS < now_s - zero_s - EARLY_S:
                    yield picture
                    number += 1
            held = frame
        if held is not None and number / FPS < float(held.time or 0.0) - (zero_s or 0.0) + 1 / FPS - EARLY_S:
            yield fitted(held)


def read_audio(path: Path, zero_s: float) -> Iterator[torch.Tensor]:
    """Mono pieces at 16 kHz whose first sample is heard at `zero_s`. The file holds sound: `first_s` has found some. Not media.sound's,
    which refuses films, as whoever renders passes sound."""
    resampler, surplus = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE), None
    with open_media(path, "sound") as container:
        for frame in chain(_decoded(path, container.decode(audio=0)), [None]):
            if surplus is None and frame is not None:  # samples before zero_s, to be dropped
                surplus = round((zero_s - float(frame.time or 0.0)) * SAMPLE_RATE)
                if surplus < 0:
                    yield torch.zeros(-surplus)
            for out in resampler.resample(frame):
                piece_S = torch.from_numpy(out.to_ndarray()[0]).clone()
                cut = min(max(surplus or 0, 0), len(piece_S))
                surplus = (surplus or 0) - cut
                yield piece_S[cut:]


def _decoded(path: Path, frames: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from frames
    except FFmpegError as error:
        raise BadInput(f"{path} is damaged: {error.strerror}") from None
