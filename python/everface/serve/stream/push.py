"""Sends a session's MP4 to another system: an RTMP server, or a folder that a web server serves as HLS. A child process does it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from everface.core.errors import BadInput
from everface.serve.stream.outbox import Message
from everface.serve.stream.refusal import Refused

STUCK_S = 10.0  # without taking anything: the child is killed
LAST_S = 5.0  # for the end of what it has
SCHEMES = ("rtmp://", "rtmps://")
ADDRESS = re.compile(r"rtmps?://[A-Za-z0-9._~:/?=&%+-]+")


def check_target(target: str, allowed: Sequence[str]) -> str:
    """What the child is told. Raises BadInput for what the server was not started to push to."""
    for prefix in allowed:
        inside = prefix.rstrip("/") + "/"
        if "://" in prefix:
            if (target == prefix or target.startswith(inside)) and ADDRESS.fullmatch(target):
                return target
        elif "://" not in target:
            folder = Path(target).resolve()
            if folder.is_relative_to(Path(prefix).resolve()):
                return str(folder)
    where = ", ".join(allowed) if allowed else "nowhere: start it with --push-to"
    raise BadInput(f"this server may not push to {target[:80]!r}: it may push to {where}")


async def push(messages: AsyncIterator[Message], target: str) -> None:
    """Until the messages end. Raises Refused when the other system, or its child process, does not take them."""
    if "://" not in target:
        Path(target).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "everface.serve.stream.remux", target]
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stderr=pipe, stdout=asyncio.subprocess.DEVNULL)
    assert child.stdin and child.stderr
    try:
        try:
            async for message in messages:
                if isinstance(message, bytes):
                    child.stdin.write(message)
                    async with asyncio.timeout(STUCK_S):
                        await child.stdin.drain()
            child.stdin.close()
            async with asyncio.timeout(LAST_S):
                await child.wait()
        except TimeoutError:
            raise Refused(1011, "push_failed", f"nothing was taken at the other end of the push for {STUCK_S:g} s: look after that system") from None
        except (BrokenPipeError, ConnectionResetError):
            pass
        if await child.wait():
            said = (await child.stderr.read()).decode(errors="replace").strip().rpartition("\n")[2]
            raise Refused(1011, "push_failed", f"the push failed ({said[:200]}): look after the system that it goes to")
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
