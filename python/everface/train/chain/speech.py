"""Speech and its phonemes in one small file, for a machine without espeak-ng: 8 bits a sample (mu-law), compressed.

    python -m everface.train.chain.speech runs/speech speech.xz     made with espeak-ng if the folder has none
"""

from __future__ import annotations

import argparse
import json
import lzma
from pathlib import Path

import numpy as np
import torch

from everface.train.heads.motion.speech import make_both_sides
from everface.train.synthetic.voices import read_wav, write_wav

MU = 255.0
CLIPS = 300


def pack_speech(folder: Path, path: Path, clips: int = CLIPS, seed: int = 1) -> int:
    """Write one file of all WAV and JSON files of `folder`, which is made first where it has none. Returns its bytes."""
    if not any(folder.glob("*.wav")):
        make_both_sides(folder, seed, clips)
    held, data = [], bytearray()
    for wav in sorted(folder.glob("*.wav")):
        x = read_wav(wav).numpy()
        coded = np.round(np.sign(x) * np.log1p(MU * np.abs(x)) / np.log1p(MU) * 127).astype(np.int8)
        held.append({"name": wav.stem, "samples": len(coded), "phonemes": json.loads(wav.with_suffix(".json").read_text())})
        data += coded.tobytes()
    packed = lzma.compress(json.dumps(held).encode() + b"\n" + bytes(data), preset=9)
    path.write_bytes(packed)
    return len(packed)


def unpack_speech(path: Path, folder: Path) -> Path:
    """Write the WAV and JSON files again; they differ from the first by the 8 bits. Returns the folder."""
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        head, _, data = lzma.decompress(path.read_bytes()).partition(b"\n")
        at = 0
        for clip in json.loads(head):
            coded = np.frombuffer(data, np.int8, clip["samples"], at).astype(np.float32) / 127
            at += clip["samples"]
            pcm = np.sign(coded) * np.expm1(np.abs(coded) * np.log1p(MU)) / MU
            write_wav(folder / f"{clip['name']}.wav", torch.from_numpy(pcm.astype(np.float32)))
            (folder / f"{clip['name']}.json").write_text(json.dumps(clip["phonemes"]))
        (folder / "complete").touch()
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m everface.train.chain.speech", description="Pack speech with phonemes into one file.")
    parser.add_argument("folder", type=Path, help="of make_phoneme_speech; made where it has no WAV")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--clips", type=int, default=CLIPS, help="of about 25 s, 0.2 MB each (%(default)s)")
    args = parser.parse_args()
    print(f"{args.out}: {pack_speech(args.folder, args.out, args.clips) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
