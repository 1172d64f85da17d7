"""`everface train data --manifest FILE`: cuts videos of real people into clips for training.

The manifest is one JSON object a line, with paths relative to it:

    {"video": "a.mp4", "audio": "a.wav", "caption": "a.txt"}

Without "audio" the video's own audio is used; "caption" is optional and goes into the metadata of the shards. Frames are taken at 25 per
second and cropped from the middle to 128x128, the size of the drawn characters' model; audio becomes its log-mel. A clip is 16 latents
long, and its still image is the first frame of the video. A video gives as many clips as fit; the incomplete last one is dropped. A line
that cannot be used is logged, counted and skipped, and the next run tries it again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from everface.core.config import FPS, LATENT_FRAMES, SAMPLES_PER_FRAME
from everface.core.errors import BadInput
from everface.core.log import log
from everface.networks.audio.causal_encoder import PAST_FRAMES
from everface.networks.audio.features import LogMel
from everface.networks.video.vae import VAE
from everface.runtime.audio_buffer import AudioBuffer
from everface.runtime.model import BlockFormat
from everface.train.data.clips import FILM, IMAGE_SIZE, MOVING_LATENTS, SHARD_CLIPS, STILL_FRAMES, encode_clip, write_shard
from everface.train.data.vae_files import read_vae
from everface.train.data.video_reader import first_time_s, read_audio, read_frames

CLIP_FRAMES = LATENT_FRAMES * MOVING_LATENTS
MISSING_FRAMES = 2  # of audio at the very end that count as silence: encoders stop early
KEYS = ("video", "audio", "caption")
RECORD = "films.jsonl"  # in the folder of clips: the videos that are done
Clip = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Video:
    """One line of the manifest. `key` is a hash of the line, so lines may be added and reordered between runs."""

    video: Path
    audio: Path | None
    caption: str
    key: str


def encode_manifest(
    manifest: Path, folder: Path, vae_run: Path, count: int, minutes: float, report: Callable[[str], object] = log.info
) -> Path:
    """Fill folder/clips with shards until there are `count` clips or the time is up. Resumes. Returns folder/clips.

    `report` gets a sentence for each line and one at the end. Raises BadInput for a manifest that cannot be read, or with no usable line.
    """
    vae, clips = read_vae(vae_run), folder / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    try:
        lines = [(n, line) for n, line in enumerate(manifest.read_text().splitlines(), 1) if line.strip()]
    except (OSError, UnicodeError) as error:
        raise BadInput(f"cannot read the manifest {manifest}: {error}") from None
    record = clips / RECORD
    done = {row["key"]: row["clips"] for row in map(json.loads, record.read_text().splitlines())} if record.exists() else {}
    end, made, videos, skipped = time.monotonic() + 60 * minutes, 0, 0, 0
    for number, line in lines:
        if made >= count or time.monotonic() > end:
            break
        try:
            video = read_line(line, manifest.parent)
            if video.key not in done:
                complete, done[video.key] = encode_video(video, vae, clips, count - made, end)
                if complete:
                    with open(record, "a") as file:
                        file.write(json.dumps({"key": video.key, "video": str(video.video), "clips": done[video.key]}) + "\n")
            made, videos = made + done[video.key], videos + 1
            report(f"line {number} of {lines[-1][0]}: {video.video.name}, {done[video.key]} clips, {made} in all")
        except BadInput as error:
            skipped += 1
            report(f"line {number} of {lines[-1][0]} is skipped: {error}")
    report(f"{made} clips of {videos} videos in {clips}, {skipped} lines skipped")
    if not made:
        raise BadInput(f"no line of {manifest} gave a clip: the reason for each is above")
    return clips


def read_line(line: str, folder: Path) -> Video:
    try:
        row = json.loads(line)
        if unknown := row.keys() - set(KEYS):
            raise KeyError(f"unknown {', '.join(sorted(unknown))}")
        paths = {name: row[name] for name in KEYS if row.get(name)}
        video, audio = folder / paths["video"], folder / paths["audio"] if "audio" in paths else None
        caption = (folder / paths["caption"]).read_text().strip() if "caption" in paths else ""
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise BadInput(f'it is not like {{"video": PATH, "audio": PATH, "caption": PATH}} ({type(error).__name__}: {error})') from None
    except OSError as error:
        raise BadInput(f"its caption cannot be read: {error}") from None
    return Video(video, audio, caption, hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16])


def encode_video(video: Video, vae: VAE, clips: Path, max_clips: int, end: float) -> tuple[bool, int]:
    """Write the shards of one video, until `end` of time.monotonic(). Returns whether it is complete, and the number of its clips."""
    latents, features, number, complete = list[torch.Tensor](), list[torch.Tensor](), 0, True

    def write() -> None:
        path = clips / f"{FILM}{video.key}-{(number - 1) // SHARD_CLIPS:04d}.safetensors"
        write_shard(path, latents, features, {"caption": video.caption, "video": str(video.video)})
        latents.clear()
        features.clear()

    for rgb_3THW, features_LCF in cut_clips(video, (IMAGE_SIZE, IMAGE_SIZE), LogMel()):
        latents.append(encode_clip(vae, rgb_3THW))
        features.append(features_LCF)
        number += 1
        if len(latents) == SHARD_CLIPS:
            write()
        if number >= max_clips or time.monotonic() > end:
            complete = False
            break
    if latents:
        write()
    if not number:
        raise BadInput(f"{video.video} gives no clip: its video and audio must both last {CLIP_FRAMES / FPS:g} s or more")
    return complete, number


def cut_clips(video: Video, size: tuple[int, int], front_end: LogMel) -> Iterator[Clip]:
    """rgb [3, 5 + 64, H, W] in -1..1 and features [L, C, 5 + 64] of one clip after the other."""
    audio = video.audio or video.video
    frames = read_frames(video.video, size)
    pieces = read_audio(audio, first_time_s(video.video, "video") if audio == video.video else first_time_s(audio, "audio"))
    before = front_end.lookback_samples + PAST_FRAMES * SAMPLES_PER_FRAME
    buffer = AudioBuffer(BlockFormat(CLIP_FRAMES, lookback_samples=before, lookahead_samples=front_end.lookahead_samples))
    still: torch.Tensor | None = None
    while len(moving := list(islice(frames, CLIP_FRAMES))) == CLIP_FRAMES:
        still = moving[0] if still is None else still
        while (window := buffer.take_window(0, 0)) is None:
            if buffer.ended:
                return
            piece = next(pieces, None)
            if piece is not None:
                buffer.add(piece)
            elif buffer.accepted - buffer.at < (CLIP_FRAMES - MISSING_FRAMES) * SAMPLES_PER_FRAME:
                return
            else:
                buffer.ended = True
        yield torch.stack([still] * STILL_FRAMES + moving, dim=1), front_end.features(window.audio_S, PAST_FRAMES + CLIP_FRAMES)
