"""A `.pth` file becomes safetensors, once.

The only `torch.load` of the package, in a separate process (`python -m everface.weights.convert SRC DST`): with weights_only
it runs no code of the file, and a file made to crash the reader crashes that process only. The metadata of DST records the
fingerprint of SRC (`store.fingerprint`, which includes its method), so that a changed source is converted again. DST appears
whole or not at all.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from everface.core.errors import BadWeights, EverfaceError
from everface.core.log import log
from everface.weights.files import read_metadata
from everface.weights.store import DTYPES, fingerprint, locked, write_safetensors

FOLDER = "converted"
SOURCE = "source_fingerprint"


def convert_cached(source: Path, cache: Path) -> Path:
    """The safetensors twin of a `.pth` (or `.bin`) file in the cache, named by its fingerprint; made now if not there."""
    if not source.is_file():
        raise BadWeights(f"{source} is missing; fetch it again")
    mark = fingerprint(source)
    target = cache / FOLDER / f"{source.stem}-{hashlib.sha256(mark.encode()).hexdigest()[:16]}.safetensors"
    if read_metadata(target).get(SOURCE) == mark:  # also where this user may not write
        return target
    with locked(target):
        if read_metadata(target).get(SOURCE) != mark:
            log.warning("converting %s to %s, once", source, target)
            convert(source, target)
    return target


def convert(source: Path, target: Path) -> None:
    """Convert in a separate process. Raises BadWeights with one sentence when that process refuses or dies."""
    command = [sys.executable, "-m", "everface.weights.convert", str(source.absolute()), str(target.absolute())]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except BaseException:  # that process was killed with us, and could not tidy up
        target.with_name(target.name + ".partial").unlink(missing_ok=True)
        raise
    if done.returncode == 2:
        raise BadWeights(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise BadWeights(f"reading {source} ended its process (status {done.returncode}): the file is damaged or memory ran out")


def write_converted(source: Path, target: Path) -> None:
    """What that process does: read plain tensors, mapped rather than loaded, and write them out one by one."""
    mark = fingerprint(source)
    try:  # old files are no zip and cannot be mapped
        state = torch.load(source, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(source))
    except Exception as error:
        if "Unsupported" in str(error):
            raise BadWeights(f"{source} holds code, none of which was run; fetch the official file") from None
        reason = str(error).partition("\n")[0]
        raise BadWeights(f"{source} is truncated or no torch file ({type(error).__name__}: {reason}); fetch it again") from None
    if not isinstance(state, Mapping) or not state:
        raise BadWeights(f"{source} holds a {type(state).__name__}, not named tensors; fetch the official file")
    for name, tensor in state.items():
        plain = isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        if not plain or tensor.dtype not in DTYPES:
            raise BadWeights(f"{source}: {name!r} is not a plain tensor; fetch the official file")
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    write_safetensors(target, shapes, lambda name: state[name].detach(), {SOURCE: mark})


if __name__ == "__main__":
    try:
        write_converted(Path(sys.argv[1]), Path(sys.argv[2]))
    except EverfaceError as error:
        sys.exit(print(error, file=sys.stderr) or 2)
