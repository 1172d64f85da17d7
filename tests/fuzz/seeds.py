"""Writes the seeds: `python -m tests.fuzz.seeds`. A fault's input is added by hand, as corpus/TARGET/fault-WHAT."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from everface.core.config import ModelConfig
from everface.engine import protocol

CORPUS = Path(__file__).parent / "corpus"


def seeds() -> dict[str, dict[str, bytes]]:
    """By target and name."""
    audio = {name: encoded(name) for name in ("wav", "flac", "mp3", "ogg", "mp4")}
    images = {kind.lower(): image(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")}
    lora = {f"blocks.0.{m}.lora_{s}.weight": torch.ones(shape) for m, s, shape in (
        ("self_attn.q", "A", (2, 4)), ("self_attn.q", "B", (4, 2)), ("ffn.0", "A", (2, 4)), ("ffn.0", "B", (8, 2)),
    )}  # fmt: skip
    sample = {"id": "a-0", "image": "a.png", "voice": "a.wav", "duration_s": 2.0, "face": [0, 0, 1, 1], "tags": {"style": "drawn"}}
    start = {"type": "start", "image": "ada", "format": "jpeg", "rate_hz": 24_000, "channels": 2, "encoding": "f32le", "seed": 7}
    return {
        "image": images,
        "audio": audio,
        "stream": audio,
        "video": {"mp4": video()},
        "safetensors": {"two": save({"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, {"made": "here"})},
        "lora": {"fits": save(lora)},
        "config": {"default": json.dumps(ModelConfig().to_dict()).encode()},
        "control": {
            "start": json.dumps(start).encode(), "close": b'{"type": "close", "drain": true}', "interrupt": b'{"type": "interrupt"}',
            "change": b'{"type": "change", "prompt": "a red hat", "image": "upload"}', "end": b'{"type": "end_segment"}',
        },
        "engine": engine(),
        "manifest": {"one": json.dumps(sample).encode() + b"\n"},
        "jobs": {
            "csv": b"image,audio,out,seed,size\na.png,a.wav,a.mp4,3,704x384\n",
            "jsonl": b'{"image": "a.png", "audio": "a.wav", "prompt": "a hat", "seed": 5}\n',
        },
        "upload": {"form": form({"audio": audio["wav"], "image": images["png"]}, {"seed": "3", "prompt": "p", "consent": "yes"})},
    }  # fmt: skip


def image(kind: str) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((24, 20)).convert("P" if kind == "GIF" else "RGB").save(file, kind)
    return file.getvalue()


def encoded(name: str) -> bytes:
    """A tenth of a second of a tone."""
    tone = (8000 * np.sin(np.arange(1600) * 0.1)).astype("<i2")
    file = io.BytesIO()
    if name == "wav":
        with wave.open(file, "wb") as out:
            out.setparams((1, 2, 16_000, 0, "NONE", ""))
            out.writeframes(tone.tobytes())
        return file.getvalue()
    codec = {"flac": "flac", "mp3": "mp3", "ogg": "libopus", "mp4": "aac"}[name]
    rate = 48_000 if name == "ogg" else 16_000
    with av.open(file, "w", format=name) as container:
        stream: Any = container.add_stream(codec, rate=rate, layout="mono")
        kind = "fltp" if name == "mp4" else "flt" if name == "ogg" else "s16p" if name == "mp3" else "s16"
        samples = tone if kind.startswith("s16") else (tone / 32768).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.tile(samples, 3)[None], kind, "mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def video() -> bytes:
    """Three frames of H.264."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 32
        for n in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 80 * n, np.uint8), "rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def engine() -> dict[str, bytes]:
    """The first byte says whether a session is open already."""
    push = protocol.AudioPush(0, 16_000, 1, protocol.INT16, bytes(640))
    heard = protocol.UserAudioPush(16_000, 1, protocol.INT16, bytes(640))
    session = (push, heard, protocol.ChangeRequest(1, "j.png", "", False, "cut"), protocol.StatsRequest(1), protocol.InterruptRequest(1), protocol.EndSegmentRequest(), protocol.SlotRelease(0))
    body = b"".join(protocol.encode(message) for message in session)
    greeting = protocol.encode(protocol.ClientHello(protocol.MAGIC, protocol.MAJOR, protocol.MINOR))
    opening = protocol.encode(protocol.OpenRequest("face.png", 1, True, True, prompt="a hat"))
    closing = protocol.encode(protocol.CloseRequest(50))
    return {"session": b"\0" + body, "close": b"\0" + closing, "greeting": b"\1" + greeting + opening + body + closing}


def form(files: dict[str, bytes], fields: dict[str, str]) -> bytes:
    parts = [f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    for name, data in files.items():
        head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\nContent-Type: application/octet-stream\r\n\r\n'
        parts.append(head.encode() + data + b"\r\n")
    return b"".join(parts) + b"--x--\r\n"


if __name__ == "__main__":
    for target, files in seeds().items():
        for name, data in files.items():
            path = CORPUS / target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
