"""What a client sends, changed at random, over one live engine in this process: every connection ends in order and nothing is left.

A long run: `python -m tests.engine.test_changed_messages SEED COUNT`.
"""

from __future__ import annotations

import random
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.csrc.corpus import TO_ENGINE, streams
from tests.runtime import toy

from everface.core.config import Deployment
from everface.engine import protocol
from everface.engine.connection import Connection
from everface.live.session import LiveSession
from everface.runtime.planning.placement import place
from everface.runtime.scheduler import Scheduler
from everface.runtime.start import start_pipeline

EDGES = [0, 1, 2, -1, 7, 64, 127, 255, 65_535, 8_000, 16_000, 192_000, 2**31, 2**62]
LONGEST_S = 20.0


@contextmanager
def opener() -> Iterator[tuple[Scheduler, list[LiveSession]]]:
    scheduler = Scheduler(start_pipeline(place(toy.roles_of(2), "inline"), toy.MODEL, toy.SPEC, Deployment()), 16)
    opened: list[LiveSession] = []
    try:
        yield scheduler, opened
    finally:
        scheduler.close()


def number(chance: random.Random) -> int:
    return chance.choice(EDGES) if chance.random() < 0.7 else chance.getrandbits(chance.randint(1, 62))


def messages(chance: random.Random) -> bytes:
    out = protocol.encode(protocol.ClientHello(protocol.MAGIC, 1, 0))
    outbox_ms, slots = (2000, chance.choice([0, 2, 3])) if chance.random() < 0.9 else (number(chance), number(chance))
    out += protocol.encode(protocol.OpenRequest("i", number(chance), chance.random() < 0.5, chance.random() < 0.5, 24_000, outbox_ms, slots, gpu=chance.choice(["", "", "", "0"])))
    for _ in range(chance.randint(0, 8)):
        request: protocol.Request = chance.choice([
            protocol.AudioPush(0, 16_000, 1, 0, bytes(2 * chance.randint(0, 20_000))),
            protocol.AudioPush(number(chance), number(chance), number(chance), number(chance), b"abcd"),
            protocol.EndSegmentRequest(), protocol.InterruptRequest(number(chance)), protocol.SlotRelease(chance.randint(0, 3)),
            protocol.ChangeRequest(number(chance), chance.choice(["", "j"]), "", chance.random() < 0.5, chance.choice(["", "cut", "?"])),
            protocol.UserAudioPush(number(chance), number(chance), number(chance), b"abcd"),
            protocol.StatsRequest(number(chance)), protocol.CloseRequest(chance.choice([0, 100])),
        ])  # fmt: skip
        out += protocol.encode(request)
    data = bytearray(out)
    for _ in range(chance.choice([0, 0, 1, 1, 2, 4])):
        at = chance.randrange(len(data))
        kind = chance.randint(0, 3)
        if kind == 0:
            data[at] ^= 1 << chance.randint(0, 7)
        elif kind == 1:
            data[at] = chance.randint(0, 255)
        elif kind == 2:
            del data[at : at + chance.randint(1, 8)]
        else:
            data[at:at] = bytes(chance.randint(0, 255) for _ in range(chance.randint(1, 8)))
    return bytes(data)


def run_one(scheduler: Scheduler, opened: list[LiveSession], seed: int, sent: bytes | None = None) -> None:
    """`sent`: these instead of messages from the seed."""
    chance = random.Random(seed)

    def open_session(request: protocol.OpenRequest, outbox_s: float) -> tuple[LiveSession, tuple[int, int]]:
        live = LiveSession(toy.open_at(scheduler).wait_open(), idle=request.idle, paced=request.paced, outbox_s=outbox_s)
        opened.append(live)
        return live, (8, 8)

    ours, theirs = socket.socketpair()
    serving = threading.Thread(target=Connection(theirs, open_session, 25).run)
    serving.start()
    ours.setblocking(False)
    try:
        ours.send(messages(chance) if sent is None else sent)
        time.sleep(chance.choice([0.0, 0.0, 0.002, 0.02]))
    except OSError:
        pass
    ours.close()
    serving.join(LONGEST_S)
    assert not serving.is_alive(), f"seed {seed}: the connection does not end"
    assert all(live.finished or live._closed for live in opened), f"seed {seed}: a session is left"
    opened.clear()


def test_changed_messages_leave_nothing() -> None:
    with opener() as (scheduler, opened):
        before = threading.active_count()
        for seed in range(150):
            run_one(scheduler, opened, seed)
        assert threading.active_count() == before


def test_the_corpus_leaves_nothing() -> None:
    with opener() as (scheduler, opened):
        for seed, sent in enumerate(streams(TO_ENGINE)):
            run_one(scheduler, opened, seed, sent)


if __name__ == "__main__":
    first, count = int(sys.argv[1]), int(sys.argv[2])
    with opener() as (the_scheduler, the_opened):
        for each in range(first, first + count):
            run_one(the_scheduler, the_opened, each)
    print(f"{count} runs")
