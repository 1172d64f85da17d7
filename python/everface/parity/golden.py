"""A folder of golden data: one safetensors file a case, inputs and wanted outputs side by side.

The metadata of a file holds one key, `config`: the sizes it was made with. A file's name is its case's, perhaps followed by a
size (`rope_hd64_4x8`); files that several cases need (weights, inputs of a stream) are sought with the same ending first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from everface.core.errors import BadInput
from everface.weights.files import open_file, read_metadata


class Missing(LookupError):
    """Something that a comparison needs and the folder lacks. Its text is the thing's name."""


class Golden(Mapping[str, torch.Tensor]):
    """The tensors of one file, read when asked for. `used` gathers the names that were; an absent one raises Missing."""

    def __init__(self, path: Path, case: str) -> None:
        self.path, self.case, self.ending = path, case, path.stem.removeprefix(case)
        self._tensors = open_file(path)
        self.used: set[str] = set()
        try:
            self.config: dict[str, Any] = json.loads(read_metadata(path).get("config", "{}"))
        except ValueError as error:
            raise BadInput(f"the metadata `config` of {path} is not JSON ({error}): fetch the file again") from None

    def __getitem__(self, name: str) -> torch.Tensor:
        self.used.add(name)
        if name not in self._tensors:
            raise Missing(name)
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def below(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors under a prefix, without it."""
        return {name.removeprefix(prefix): self[name] for name in self if name.startswith(prefix)}

    def setting(self, name: str) -> Any:
        """An entry of `config`, which is a BadInput when it is not there."""
        if name not in self.config:
            raise BadInput(f"{self.path} lacks {name!r} in the metadata `config`: fetch the file again")
        return self.config[name]

    def beside(self, case: str) -> Golden:
        """Another file of the folder, of the same size when there is one. Raises Missing."""
        for stem in (case + self.ending, case):
            if (path := self.path.with_name(f"{stem}.safetensors")).is_file():
                return Golden(path, case)
        raise Missing(f"{case}.safetensors")


def find_cases(folder: Path, known: list[str]) -> list[Golden]:
    """The golden cases of a folder in the order of their names. The longest known name that begins a file's name is its case."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder: name one that holds golden data, such as tests/golden")
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        cases = [case for case in known if path.stem == case or path.stem.startswith(f"{case}_")]
        if cases and not path.stem.removeprefix(max(cases, key=len)).startswith("_weights"):
            found.append(Golden(path, max(cases, key=len)))
    if not found:
        raise BadInput(f"{folder} holds no golden case: its .safetensors files should be called {', '.join(known)}")
    return found


def select(found: list[Golden], wanted: str | None) -> list[Golden]:
    """Those of one case or file, or else those with this beginning of their name (`dit_stream`)."""
    if wanted is None:
        return found
    exact = [file for file in found if wanted in (file.case, file.path.stem)]
    chosen = exact or [file for file in found if file.path.stem.startswith(f"{wanted}_")]
    if not chosen:
        raise BadInput(f"no case {wanted!r} in this folder: choose one of {', '.join(dict.fromkeys(f.case for f in found))}")
    return chosen
