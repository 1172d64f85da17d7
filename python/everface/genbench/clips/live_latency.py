"""How soon a live session of everface speaks after silence, measured once a run in a process of its own.

The process reads an EverfaceJob on stdin and writes the measures as one JSON object, the last line of its stdout.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from everface.avatar.avatar import Avatar
from everface.avatar.demo import AUDIO, IMAGE
from everface.core.config import SAMPLE_RATE
from everface.core.errors import EverfaceError, Unavailable
from everface.genbench.clips.systems import EverfaceJob, EverfaceSystem
from everface.live.events import VideoFrame
from everface.live.session import LiveSession
from everface.media.audio import read_audio

SPEECH = ("speech_ms_p50", "speech_ms_p95")
TIMES, SPEECH_S, CHUNK_S = 10, 1.5, 0.02  # turns of speech, their length, and that of a piece of audio
LONGEST_S = 60.0  # for a frame to come
TIMEOUT_S = 1800.0


class LatencyRecord(msgspec.Struct):
    """DIR/latency.json: the measures, or why there are none."""

    measures: dict[str, float] = msgspec.field(default_factory=dict)
    error: str = ""


def read_latency(out: Path) -> LatencyRecord | None:
    """What a run has measured, if it has."""
    try:
        return msgspec.json.decode((out / "latency.json").read_bytes(), type=LatencyRecord)
    except (OSError, msgspec.DecodeError):
        return None


def measure_latency(system: EverfaceSystem, out: Path) -> LatencyRecord:
    """Measure, unless `out` has it already, and keep it there. A failure is recorded and tried again by the next run."""
    found = read_latency(out)
    if found is None or found.error:
        found = _measure(system)
        (out / "latency.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    return found


def _measure(system: EverfaceSystem) -> LatencyRecord:
    command, job = [sys.executable, "-m", __name__], msgspec.json.encode(system.job([]))
    try:
        done = subprocess.run(command, input=job, capture_output=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return LatencyRecord(error=f"the live session was stopped after {TIMEOUT_S / 60:g} minutes")
    lines = done.stdout.splitlines()
    try:
        return LatencyRecord(msgspec.json.decode(lines[-1] if lines else b"", type=dict[str, float]))
    except msgspec.DecodeError:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return LatencyRecord(error=said[-1][:300] if said else f"the live session ended with {done.returncode} and printed nothing")


def latencies_ms(session: LiveSession, speech_S: np.ndarray, times: int = TIMES) -> list[float]:
    """Let the face idle and speak in turn, chunk by chunk as a microphone does: from the first chunk to the first frame of that speech."""
    rng, chunk, found = random.Random(0), int(CHUNK_S * SAMPLE_RATE), list[float]()
    for _ in range(times):
        _await(session, idle=True)
        idle_until_s = time.monotonic() + rng.uniform(0.6, 1.8)
        while (left_s := idle_until_s - time.monotonic()) > 0:
            session.read(left_s)
        began_s, came_s = time.monotonic(), None
        for n, at in enumerate(range(0, len(speech_S), chunk)):
            session.push_audio(speech_S[at : at + chunk], SAMPLE_RATE, timeout_s=LONGEST_S)
            while (left_s := began_s + (n + 1) * CHUNK_S - time.monotonic()) > 0:
                event = session.read(left_s)
                if came_s is None and isinstance(event, VideoFrame) and not event.idle:
                    came_s = time.monotonic()
        session.end_segment()
        found.append(1e3 * ((came_s or _await(session, idle=False)) - began_s))
    return found


def _await(session: LiveSession, idle: bool) -> float:
    """When the next frame of idle motion, or of speech, came. Raises Unavailable."""
    until_s = time.monotonic() + LONGEST_S
    while (left_s := until_s - time.monotonic()) > 0:
        event = session.read(left_s)
        if isinstance(event, VideoFrame) and event.idle == idle:
            return time.monotonic()
    raise Unavailable(f"no frame of {'idle motion' if idle else 'speech'} came in {LONGEST_S:g} s: this machine is too busy for a live session")


def main() -> int:
    """Measure a live session of the job on stdin."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=EverfaceJob)
    weights, lora, stream, deployment = job.parts()
    speech_S = next(read_audio(AUDIO, int(SPEECH_S * SAMPLE_RATE)))
    try:
        with Avatar(weights, lora, deployment) as avatar, avatar.open_live(IMAGE, stream) as session:
            found = latencies_ms(session, speech_S)
    except EverfaceError as error:
        sys.exit(str(error))
    measures = {name: float(np.percentile(found, p)) for name, p in zip(SPEECH, (50, 95))}
    print(msgspec.json.encode(measures).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
