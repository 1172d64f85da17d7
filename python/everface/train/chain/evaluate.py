"""The fifteen bars on rendered people: held-out people with held-out voices, whose truth the renderer knows.

    python -m everface.train.chain.evaluate MODEL --assets heads.npz --frames RUN/frames --out out

FRAMES are the training clips, for the readers of lips and pose. People are rendered into OUT once, twenty seconds each; run again, it goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from everface.avatar.avatar import Avatar
from everface.core.config import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Deployment
from everface.core.errors import BadInput, EverfaceError, Unavailable
from everface.core.log import log, start_log
from everface.core.machine import cores
from everface.core.memory import keep_freed_memory
from everface.networks.audio.features import LogMel
from everface.networks.video.vae import VAE
from everface.train.chain.frames import as_video, paths, read_frames, read_rest, write_clip
from everface.train.chain.readers import read_faces, train_head_lip_reader, train_pose_reader, tune_head_lip_reader
from everface.train.data.clips import STILL_FRAMES
from everface.train.data.drawn import clip_generator
from everface.train.evaluate import metrics
from everface.train.evaluate.bars import HEADS_BARS
from everface.train.evaluate.held_out import HELD_OUT_SEED
from everface.train.evaluate.quality import Result, evaluate_clip, summary, write_report
from everface.train.evaluate.readers.head_fit import HeadFit
from everface.train.evaluate.readers.lip_reader import LipReader
from everface.train.evaluate.readers.pose_reader import PoseReader
from everface.train.evaluate.run import reconstruct, stream_frames
from everface.train.heads.clips import HeadClips
from everface.train.heads.motion.speech import Phonemes, make_phoneme_speech, read_phoneme_speech
from everface.train.heads.renderer import Renderer
from everface.train.synthetic.characters import eyes_box
from everface.train.synthetic.voices import HELD_OUT
from everface.weights.load import load_into, open_checkpoint

READER_STEPS, POSE_READER_STEPS = 2000, 700
CLIPS_PER_VOICE = 12
USUAL = 256, 20  # size and seconds of people
FIT_FRAMES = 1  # of a person, for its identity: fitting one through the renderer takes ten seconds


@dataclass(frozen=True)
class HeldOutPerson:
    """One person and its speech; `held_out.HeldOut` says what each is."""

    path: Path
    renderer: Renderer
    poses: PoseReader
    face_NC: np.ndarray  # of `read_faces`, for the reader of lips
    first: int = 0  # frame of the clip with which `pcm_S` and the mouth begin
    frames: int | None = None  # None: to the clip's end; the true frames are the clip's first ones

    @property
    def truth_T3HW(self) -> Tensor:
        return self._truth_T3HW

    @cached_property
    def _truth_T3HW(self) -> Tensor:
        return as_video(read_frames(self.path)[STILL_FRAMES:][: self.frames], "cpu").movedim(1, 0)

    @property
    def image_3HW(self) -> Tensor:
        return as_video(read_frames(self.path)[:1], "cpu")[:, 0]

    @property
    def pcm_S(self) -> Tensor:
        return torch.from_numpy(self._rest["audio"])[self._rows(SAMPLES_PER_FRAME)]

    @property
    def open_T(self) -> Tensor:
        return torch.from_numpy(self._rest["opening"])[self._rows()]

    @property
    def wide_T(self) -> Tensor:
        return torch.from_numpy(self._rest["width"])[self._rows()]

    def reader(self, known: LipReader) -> LipReader:
        """Tuned once; then it lies beside the clip, named by what it was tuned from."""
        digest = digest_of(tensor.numpy().tobytes() for tensor in known.state_dict().values())
        tune = partial(tune_head_lip_reader, known, self.renderer, int(self._rest["seed"]), self._rest["turn"], self.face_NC)
        return read_or_train(self.path.with_suffix(f".{digest}.safetensors"), deepcopy(known), tune)

    def fit(self, rgb_N3HW: Tensor, read_N3: Tensor) -> tuple[float, float]:
        fitted, (top, bottom, left, right) = HeadFit(self.renderer, int(self._rest["seed"])), eyes_box(rgb_N3HW.shape[-1])
        middle, whole, eyes = (left + right) // 2, 0.0, 0.0
        for rgb_3HW, turn_3, (opening, _, blink) in zip(rgb_N3HW, self.poses.read(rgb_N3HW), read_N3.clamp(0, 1).tolist(), strict=True):
            image_HW3 = ((rgb_3HW + 1) * 127.5).permute(1, 2, 0).numpy()
            _, shown_HW3 = fitted.fit(image_HW3, turn_3.double().numpy(), opening, blink)
            shown_3HW = torch.from_numpy(shown_HW3).permute(2, 0, 1) / 127.5 - 1
            pair = shown_3HW[None], rgb_3HW[None]
            whole += metrics.psnr(*pair)
            eyes += min(metrics.psnr(*(metrics.crop(x, (top, bottom, *sides)) for x in pair)) for sides in ((left, middle), (middle, right)))
        return whole / len(rgb_N3HW), eyes / len(rgb_N3HW)

    def _rows(self, scale: int = 1) -> slice:
        return slice(scale * self.first, None if self.frames is None else scale * (self.first + self.frames))

    @cached_property
    def _rest(self) -> dict[str, np.ndarray]:
        return read_rest(self.path)


def render_person(path: Path, assets: Path, size: int, voices: list[tuple[Tensor, Phonemes]], seconds: int) -> Path:
    """If it is not there yet: one person, who speaks for so long with one of these voices. Its number is that of the file."""
    if not path.exists():
        n = int(path.stem)
        path.parent.mkdir(parents=True, exist_ok=True)
        source = HeadClips(assets, size, [voices[n % len(voices)]], listening_share=0.0, clean=True)
        write_clip(path, source.draw(LogMel(), clip_generator(HELD_OUT_SEED, n), frames=seconds * FPS))
        log.info("person %d is rendered", n)
    return path


def person_path(out: Path, n: int, size: int, seconds: int) -> Path:
    """Where person `n` is rendered; in a folder of their own where people are of another size or length than usual."""
    people = out / "people"
    return (people if (size, seconds) == USUAL else people / f"{size}_{seconds}s") / f"{n:05d}.npy"


def voices_of(out: Path, seconds: int) -> list[tuple[Tensor, Phonemes]]:
    """The held-out voices that last so long, and a second more. Raises BadInput where none does."""
    voices = held_out_voices(out)
    longest_s = max(len(pcm_S) for pcm_S, _ in voices) // SAMPLE_RATE - 1
    if seconds > longest_s:
        raise BadInput(f"no held-out voice lasts {seconds} s: give --seconds {longest_s} or less")
    return [held for held in voices if len(held[0]) >= (seconds + 1) * SAMPLE_RATE]


def held_out_voices(out: Path) -> list[tuple[Tensor, Phonemes]]:
    """Recordings and their phonemes, made with espeak-ng into `out` once."""
    speech = out / "people" / "speech"
    if not any(speech.glob("*.wav")):
        make_phoneme_speech(speech, HELD_OUT_SEED % (1 << 31), CLIPS_PER_VOICE, HELD_OUT)
    return read_phoneme_speech(speech, held_out=True)


def read_lip_reader(out: Path, frames: Path) -> LipReader:
    """Trained on clips of rendered people, once."""
    return read_or_train(out / "lips.safetensors", LipReader(fine=True), lambda: train_head_lip_reader(paths(frames), READER_STEPS, "cpu"))


def read_pose_reader(out: Path, frames: Path) -> PoseReader:
    """The same for the rotation of heads."""
    return read_or_train(out / "poses.safetensors", PoseReader(), lambda: train_pose_reader(paths(frames), POSE_READER_STEPS, "cpu"))


def read_or_train(path: Path, reader: nn.Module, train: Any) -> Any:
    """The reader of an earlier call, or a new one."""
    if path.exists():
        reader.load_state_dict(load_file(path))
        return reader.eval()
    made = train()
    partial_path = path.with_suffix(".partial")
    save_file(made.state_dict(), partial_path)
    partial_path.rename(path)
    return made


def digest_of(parts: Iterable[bytes]) -> str:
    """Eight characters that tell apart what files were made from."""
    made = sha256()
    for part in parts:
        made.update(part)
    return made.hexdigest()[:8]


def evaluate_people(model: Path, assets: Path, frames: Path, out: Path, people: int, seconds: int, processes: int = 1) -> dict[str, Any]:
    """Writes report.json, report.md and sheet.png to `out` and returns the report. Results of people lie in `out` until all are there, so a call that was
    interrupted is gone on with. Raises BadInput where no voice lasts so long, Unavailable where a process fails; its error is above."""
    made_from = [model / "config.json", *sorted(model.glob("*.safetensors"))]
    results = out / f"results_{digest_of([*(path.read_bytes() for path in made_from), str(seconds).encode()])}"
    results.mkdir(parents=True, exist_ok=True)
    for make_once in (partial(voices_of, seconds=seconds), partial(read_lip_reader, frames=frames), partial(read_pose_reader, frames=frames)):
        make_once(out)  # before there are processes
    given = (model, assets, frames, out, results, people, seconds, processes)
    if processes == 1:
        evaluate_share(*given, 0)
    else:
        spawn = multiprocessing.get_context("spawn")
        running = [spawn.Process(target=evaluate_share, args=(*given, n)) for n in range(processes)]
        for process in running:
            process.start()
        for process in running:
            process.join()
        if failed := sum(process.exitcode != 0 for process in running):
            raise Unavailable(f"{failed} of {processes} processes failed, whose errors are above; what is evaluated stays in {results}")
    report = write_report([read_result(results / f"{n:02d}.safetensors") for n in range(people)], out, HEADS_BARS)
    shutil.rmtree(results)
    return report


def evaluate_share(model: Path, assets: Path, frames: Path, out: Path, results: Path, people: int, seconds: int, processes: int, which: int) -> None:
    """One process: every `processes`-th person that has no result yet."""
    if processes > 1:
        keep_freed_memory()
    start_log()
    log.setLevel("INFO")
    with Avatar(model, None, Deployment(threads=max(1, cores() // processes))) as avatar:
        config = avatar.model.config
        size = config.size[0] if config.size else 256
        voices = voices_of(out, seconds)
        lips, poses = read_lip_reader(out, frames), read_pose_reader(out, frames)
        vae = VAE(config.vae).eval()
        load_into(vae, open_checkpoint(model).vae())
        renderer, face_NC = Renderer(assets, size), read_faces(paths(frames))
        for n in range(which, people, processes):
            path = results / f"{n:02d}.safetensors"
            if not path.exists():
                person = HeldOutPerson(render_person(person_path(out, n, size, seconds), assets, size, voices, seconds), renderer, poses, face_NC)
                result = evaluate_clip(partial(stream_frames, avatar), partial(reconstruct, vae), lips, person, FIT_FRAMES)
                log.info("person %d: %s", n, summary(result.row))
                save_result(path, result)


def save_result(path: Path, result: Result) -> None:
    """A file that appears only when it is complete."""
    panel_3HW = ((result.panel_3HW.clamp(-1, 1) + 1) * 127.5).round().byte()
    partial_path = path.with_suffix(".partial")
    tensors = {"read": result.read_T, "open": result.open_T, "panel": panel_3HW}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial_path, {"row": json.dumps(result.row)})
    partial_path.rename(path)


def read_result(path: Path) -> Result:
    with safe_open(path, "pt") as held:
        return Result(json.loads(held.metadata()["row"]), held.get_tensor("read"), held.get_tensor("open"), held.get_tensor("panel") / 127.5 - 1)


def add_paths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="folder of a model")
    parser.add_argument("--assets", type=Path, required=True, help="the npz of everface.train.heads.assets")
    parser.add_argument("--frames", type=Path, required=True, help="rendered clips of the training, for the readers")
    parser.add_argument("--out", type=Path, required=True, help="folder for people, readers and the report")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m everface.train.chain.evaluate", description="Evaluate a model on rendered people.")
    add_paths(parser)
    parser.add_argument("--people", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=USUAL[1])
    parser.add_argument("--processes", type=int, default=cores(), help="that evaluate a person each (%(default)s)")
    args = parser.parse_args()
    keep_freed_memory()  # a step of a reader then takes half the time
    start_log()
    log.setLevel("INFO")
    try:
        report = evaluate_people(args.model, args.assets, args.frames, args.out, args.people, args.seconds, args.processes)
    except EverfaceError as error:
        raise SystemExit(f"everface: {error}") from None
    print((args.out / "report.md").read_text())
    raise SystemExit(0 if report["pass"] else 1)


if __name__ == "__main__":
    main()
