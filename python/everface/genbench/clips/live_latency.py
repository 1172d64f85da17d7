"""How soon a live session of everface speaks after silence, measured once a run by `everface bench live` in a process of its own.

The process reads an EverfaceJob on stdin and writes the measures as one JSON object, the last line of its stdout.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import msgspec

from everface.core.errors import EverfaceError
from everface.genbench.clips.systems import EverfaceJob, EverfaceSystem

SPEECH = ("speech_ms_p50", "speech_ms_p95")
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


def main() -> int:
    """Measure a live session of the job on stdin."""
    from everface.avatar.bench_live import bench_live

    job = msgspec.json.decode(sys.stdin.buffer.read(), type=EverfaceJob)
    try:
        report = bench_live(*job.parts())
    except EverfaceError as error:
        sys.exit(str(error))
    measures = dict(zip(SPEECH, report.onset_ms))
    if not all(map(math.isfinite, measures.values())):
        sys.exit("no frame of speech came while it was spoken: this machine is too slow for a live session")
    print(msgspec.json.encode(measures).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
