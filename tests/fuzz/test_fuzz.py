"""Every harness on its seeds, on the inputs of faults that are fixed, and on some mutations. `make fuzz` goes on for as long as it is told to."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fuzz.seeds import CORPUS
from tests.fuzz.targets import TARGETS, Target

MUTATIONS = 40  # of each target


MADE: dict[str, Target] = {}


def target(name: str) -> Target:
    if name not in MADE:
        MADE[name] = TARGETS[name]()
    return MADE[name]


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    for one in MADE.values():
        one.close()
    MADE.clear()


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, removed or repeated."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(4):
            case 0 if out:
                out[at % len(out)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 1:
                del out[at : at + rng.randint(1, 64)]
            case 2:
                out[at:at] = out[at : at + rng.randint(1, 64)]
            case _:
                out[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
    return bytes(out)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_seeds_and_fixed_faults(path: Path) -> None:
    target(path.parent.name).run(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name: str) -> None:
    rng = random.Random(name)
    seeds = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    target(name).run(b"")
    for _ in range(MUTATIONS):
        data = mutate(rng.choice(seeds), rng)
        try:
            target(name).run(data)
        except Exception as error:
            error.add_note(f"the input was {data!r}")
            raise


def test_every_target_has_seeds() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
