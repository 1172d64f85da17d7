"""Reading weights from disk: the tensors of one safetensors file, or of the shards that an index names, one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from everface.core.errors import BadWeights
from everface.core.json_file import check_object, read_json
from everface.weights.store import TORCH_DTYPES


class Weights(Mapping[str, torch.Tensor]):
    """A read-only map name -> tensor over safetensors files.

    Opening reads the headers only; a tensor is read when it is asked for, so memory stays flat. `w[name]` is a CPU tensor in the
    dtype of the file. Build with `open_file` or `open_index`.
    """

    def __init__(self, handles: dict[Path, safe_open], home: dict[str, Path]) -> None:
        self._handles = handles
        self._home = home

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._handles[self._home[name]].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self._home

    def __len__(self) -> int:
        return len(self._home)

    @property
    def files(self) -> list[Path]:
        return list(self._handles)

    def names_in(self, file: Path) -> list[str]:
        return [name for name, home in self._home.items() if home == file]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._handles[self._home[name]].get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        kind = self._handles[self._home[name]].get_slice(name).get_dtype()
        if kind not in TORCH_DTYPES:
            raise BadWeights(f"{self._home[name]}: {name!r} has the type {kind}, which no part of the model uses")
        return TORCH_DTYPES[kind]

    def where(self, name: str) -> Path:
        """The file that holds `name`; for a name that is absent, the first file."""
        return self._home.get(name) or next(iter(self._handles))

    def select(self, prefixes: Iterable[str]) -> Weights:
        """The part of it under any of these prefixes; nothing else is ever read. No prefixes: all of it."""
        wanted = tuple(prefixes)
        return self if not wanted else Weights(self._handles, {n: f for n, f in self._home.items() if n.startswith(wanted)})


def open_file(path: Path) -> Weights:
    """One safetensors file. Raises BadWeights when it is absent, truncated or something else."""
    handle = _open(path)
    return Weights({path: handle}, dict.fromkeys(handle.keys(), path))


def open_index(index: Path) -> Weights:
    """The shards named by a `*.safetensors.index.json` (Hugging Face's form: {"weight_map": {name: file}}).

    Every shard must be there, be whole, and hold exactly the tensors that the index lists for it.
    """
    try:
        named = check_object(read_json(index).get("weight_map"), "its weight_map")
    except BadWeights as error:
        raise BadWeights(f"{index} is not a weight index: {error}") from None
    listed: dict[str, set[str]] = {}
    for name, file in named.items():
        listed.setdefault(file if isinstance(file, str) else "", set()).add(name)
    handles: dict[Path, safe_open] = {}
    home: dict[str, Path] = {}
    for file in sorted(listed):
        if not file or Path(file).name != file:
            raise BadWeights(f"{index} names the shard {file!r}, which is not a plain file name; fetch the index again")
        path = index.parent / file
        handles[path] = _open(path, f", though {index.name} names it")
        held = set(handles[path].keys())
        for names, fault in ((listed[file] - held, "lacks"), (held - listed[file], "holds, against its index,")):
            if names:
                raise BadWeights(f"{path} {fault} {first_of(names)}; index and shard are of different versions, fetch both again")
        home.update(dict.fromkeys(listed[file], path))
    if not handles:
        raise BadWeights(f"{index} names no tensors; fetch it again")
    return Weights(handles, home)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty when the file is absent or not readable."""
    try:
        with safe_open(path, "pt") as handle:
            return handle.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def first_of(names: Iterable[str]) -> str:
    """The first of several offending names, and how many more there are."""
    ordered = sorted(names)
    more = f" (and {len(ordered) - 1} more)" if len(ordered) > 1 else ""
    return f"{ordered[0]!r}{more}"


def _open(path: Path, why: str = "") -> safe_open:
    try:
        if not path.is_file():
            raise BadWeights(f"{path} is {'a folder' if path.is_dir() else 'missing'}{why}; fetch it again")
        return safe_open(path, "pt")
    except OSError as error:
        raise BadWeights(f"{path} cannot be read ({error.strerror or error}); check its name and permissions") from None
    except SafetensorError as error:
        raise BadWeights(f"{path} is truncated or not a safetensors file ({error}); fetch it again") from None
