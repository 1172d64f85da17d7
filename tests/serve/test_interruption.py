"""What an interruption of a stream drops, and what it counts."""

from __future__ import annotations

import asyncio
import json
import threading

import numpy as np
from tests.serve.hosting import Host, next_event

from everface.serve.stream.outbox import Outbox


def test_a_frame_that_was_on_its_way_does_not_come_after_an_interruption() -> None:
    async def main() -> None:
        outbox = Outbox(4, 10.0)
        await asyncio.to_thread(outbox.put, b"old 1")
        waiting = threading.Thread(target=outbox.put, args=(b"old 2",))  # there is no room
        waiting.start()
        outbox.drop(lambda message: isinstance(message, bytes) and message.startswith(b"old"))
        await asyncio.to_thread(waiting.join)
        await asyncio.to_thread(outbox.put, b"new")
        outbox.close()
        assert [await outbox.get(), await outbox.get()] == [b"new", None]

    asyncio.run(main())


def test_audio_that_was_sent_before_counts_as_pushed(host: Host) -> None:
    socket = host.started()
    socket.send(np.zeros(6 * 16_000, np.int16).tobytes())
    socket.send(json.dumps({"type": "interrupt"}))
    end = next_event(socket, "segment_end")
    assert end["interrupted"] and end["pushed_s"] == 6.0
    socket.close()
