"""Writing weights to disk: safetensors streamed one tensor at a time, atomic files, fingerprints, one writer at a time.

The writer follows the safetensors format by hand (8-byte little-endian header length, JSON header, raw data), because the
library's own `save_file` wants every tensor in memory at once and a shard of the released model has 10 GB.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from everface.core.config import ModelConfig
from everface.core.errors import Unavailable

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
FULL_HASH_BYTES = 256 << 20  # files up to this size are hashed whole
EDGE_BYTES = 1 << 20  # of larger ones, this much of the head and of the tail

Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def write_safetensors(path: Path, shapes: Shapes, read: Callable[[str], torch.Tensor], metadata: dict[str, str]) -> None:
    """Write `path` atomically, holding one tensor at a time.

    `shapes` lists what will be written, `read(name)` returns each tensor, of exactly that dtype and shape. Larger element sizes come
    first, as readers that map the file need aligned data. Raises Unavailable when the folder cannot take the file.
    """
    order = sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name in order:
        dtype, shape = shapes[name]
        begin, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with replacing(path) as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name in order:
            tensor = read(name)
            if (tensor.dtype, tuple(tensor.shape)) != shapes[name]:
                raise RuntimeError(f"{name} was announced as {shapes[name]} and is {tensor.dtype}, {tuple(tensor.shape)}")
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def write_model(out: Path, config: ModelConfig, parts: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Write a model folder: config.json, and the weights of "vae", "dit" and, of a model with motion, "articulators" as float16."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
    for part, tensors in parts.items():
        write_half(out / f"{part}.safetensors", tensors, {"model": config.name})


def write_half(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    """All of them as float16. Returns the path."""
    shapes = {name: (torch.float16, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_safetensors(path, shapes, lambda name: tensors[name].half(), metadata or {})
    return path


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with replacing(path) as file:
        file.write(text.encode())


@contextmanager
def replacing(path: Path) -> Iterator:
    """A binary file that becomes `path` only when the block ends well; after a failure neither it nor a part of it is left."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror or error}; free some disk, or choose another folder") from None
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time makes `path`; the others wait here and then find it made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_name(path.name + ".lock"), "w")  # noqa: SIM115 closed by the with below, outside of this try
    except OSError as error:
        raise Unavailable(f"cannot write to {path.parent}: {error.strerror}; set EVERFACE_CACHE to another folder") from None
    with lock:
        with contextlib.suppress(OSError):  # some network file systems have no locks; then two processes may both make it
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def hash_file(path: Path) -> str:
    """sha256 of the whole file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> str:
    """Identifies a version of a file, with its method: `sha256:<hex>` of the content up to 256 MiB;
    `fast:<size>:<mtime ns>:<sha256 of first and last MiB>` above, where hashing all would take minutes at every start."""
    stat = path.stat()
    if stat.st_size <= FULL_HASH_BYTES:
        return f"sha256:{hash_file(path)}"
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read(EDGE_BYTES))
        file.seek(-EDGE_BYTES, os.SEEK_END)
        digest.update(file.read(EDGE_BYTES))
    return f"fast:{stat.st_size}:{stat.st_mtime_ns}:{digest.hexdigest()}"
