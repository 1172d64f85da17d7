"""`python -m tests.serve.load`: good clients and bad ones at a real `everface serve`, and what the bad ones do to the others. Linux only.

The good clients are at 127.0.0.1: some hold live sessions, the rest poll the HTTP routes. The bad ones are at 127.0.0.2. A quiet and a bad
phase take turns. In a quiet phase one more client holds a session and reads it: in a bad one the slow reader has its place, so that the
model has the same work in both. The server and the good clients share the machine's cores. Bad ones get what those leave (SCHED_IDLE), as they
would have computers of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
from tests.serve.clients import bad_clients, good_clients, hold_session

MOST_SHIFT = 0.05  # of the others' p99
MOST_MB = 64.0  # that bad clients may cost
BACK_S = 60.0  # for the server to be as it was
POOLED = 16  # threads of the server's pools, which start when there is work for them, and stay


@dataclass
class Usage:
    """What a process has, from /proc."""

    descriptors: int
    threads: int
    rss_mb: float
    cpu_s: float

    @classmethod
    def of(cls, pid: int) -> Usage:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu_s = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
        return cls(len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"]), int(status["VmRSS"].split()[0]) / 1024, cpu_s)


@dataclass
class Phase:
    name: str
    begin_s: float
    end_s: float = 0.0
    peak_mb: float = 0.0
    stored_mb: float = 0.0  # most that the server's temporary files had, with those that have no name
    cpu: float = 0.0  # cores that the server used
    counts: dict[str, int] = field(default_factory=dict)  # of the bad clients


@dataclass
class Load:
    """What was seen."""

    phases: list[Phase]
    samples: dict[str, list[tuple[float, float]]]  # by kind: when, and how long, in seconds
    before: Usage
    after: Usage
    left: list[str]  # in the server's temporary folder, at the end

    def of(self, kind: str, name: str) -> list[float]:
        """Samples of a kind in the phases of a name, sorted."""
        spans = [(p.begin_s, p.end_s) for p in self.phases if p.name == name]
        return sorted(took for at, took in self.samples[kind] if any(begin <= at <= end for begin, end in spans))

    def percentile(self, kind: str, name: str, part: float) -> float:
        values = self.of(kind, name)
        return values[min(len(values) - 1, int(part * len(values)))] if values else float("nan")

    def shift(self, kind: str) -> float:
        """Of the p99, from the quiet phases to the bad ones."""
        return self.percentile(kind, "bad", 0.99) / self.percentile(kind, "quiet", 0.99) - 1

    @property
    def cost_mb(self) -> float:
        return max(p.peak_mb for p in self.phases if p.name == "bad") - max(p.peak_mb for p in self.phases if p.name == "quiet")

    def problems(self) -> list[str]:
        """What must not be, on any machine."""
        before, after, wrong = self.before, self.after, list[str]()
        if after.descriptors > before.descriptors:
            wrong.append(f"{after.descriptors - before.descriptors} descriptors were left open")
        if after.threads > before.threads + POOLED:
            wrong.append(f"{after.threads - before.threads} threads were left")
        if after.rss_mb > before.rss_mb + MOST_MB:
            wrong.append(f"{after.rss_mb - before.rss_mb:.0f} MB were left")
        if self.cost_mb > MOST_MB:
            wrong.append(f"bad clients cost {self.cost_mb:.0f} MB")
        wrong += [f"{name} was left in the temporary folder" for name in self.left]
        return wrong


class ServerProcess:
    """`everface serve` on a free port, with its temporary files in `folder`."""

    def __init__(self, folder: Path, sessions: int, *arguments: str) -> None:
        self.folder, self.sessions = folder, sessions
        command = [sys.executable, "-m", "everface", "serve", "--port", "0", "--max-sessions", str(sessions), *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(folder)})
        assert self._process.stdout
        self.port = int(re.findall(r":(\d+)/", self._process.stdout.readline())[0])
        self.pid = self._process.pid
        wait(lambda: httpx.get(f"http://127.0.0.1:{self.port}/readyz").status_code == 200, 120)

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(60) == 0


def wait(done: Callable[[], bool], timeout_s: float) -> bool:
    end_s = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.1)
    return True


class Clients:
    """A process of clients, until `stop`, which returns what they say. idle: it gets the time of the cores that nobody else wants."""

    def __init__(self, clients: Callable[..., Any], *arguments: Any, idle: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(clients, theirs, idle, *arguments), daemon=True)
        self._process.start()
        assert self._ours.poll(60) and self._ours.recv() == "begun"

    def stop(self) -> Any:
        self._ours.send("stop")
        said = self._ours.recv() if self._ours.poll(120) else None
        self._process.join(10)
        assert said is not None, "the clients did not end"
        return said


def _run(clients: Callable[..., Any], pipe: Connection, idle: bool, *arguments: Any) -> None:
    if idle:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    async def main() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_reader(pipe.fileno(), stop.set)
        pipe.send("begun")
        pipe.send(await clients(stop, *arguments))

    asyncio.run(main())


def run(server: ServerProcess, clients: int, bad: int, live: int, seconds: float, rounds: int) -> Load:
    """Warm up, note what the server has, let the phases take turns, and wait until it has that again."""
    port, folder, pollers = server.port, server.folder, clients - bad - live
    warm_up = Clients(good_clients, port, server.sessions, pollers)
    time.sleep(5.0)
    warm_up.stop()
    before = settled(server.pid, None)
    good = Clients(good_clients, port, live, pollers)
    time.sleep(3.0)
    phases: list[Phase] = []
    for number in range(2 * rounds):
        name = ("quiet", "bad")[number % 2]
        others = Clients(hold_session, port, idle=True) if name == "quiet" else Clients(bad_clients, port, bad, idle=True)
        time.sleep(1.0)
        phase, began = Phase(name, time.monotonic()), Usage.of(server.pid)
        while time.monotonic() < phase.begin_s + seconds:
            time.sleep(0.2)
            phase.peak_mb = max(phase.peak_mb, Usage.of(server.pid).rss_mb)
            phase.stored_mb = max(phase.stored_mb, stored(server.pid, folder) / 2**20)
        phase.end_s = time.monotonic()
        phase.cpu = (Usage.of(server.pid).cpu_s - began.cpu_s) / (phase.end_s - phase.begin_s)
        phase.counts = others.stop()
        phases.append(phase)
        time.sleep(1.0)
    samples = good.stop()
    after = settled(server.pid, before)
    left = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
    return Load(phases, samples, before, after, left)


def settled(pid: int, as_before: Usage | None) -> Usage:
    """Usage without clients: as before, or as it is after a while."""
    if as_before is None:
        time.sleep(13.0)  # keep-alive connections and idle threads of routes go after ten seconds
        return Usage.of(pid)

    def is_back() -> bool:
        now = Usage.of(pid)
        return now.descriptors <= as_before.descriptors and now.threads <= as_before.threads + POOLED

    wait(is_back, BACK_S)
    return Usage.of(pid)


def stored(pid: int, folder: Path) -> int:
    """Bytes of the files below a folder that the process has open."""
    total = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # it is closed
            total += path.stat().st_size if os.readlink(path).startswith(str(folder)) else 0
    return total


def report(load: Load, live: int, pollers: int) -> str:
    lines = [f"{live} live session(s) and {pollers} polling clients are measured; milliseconds"]
    for kind, title in (("frame", "between two frames"), ("response", "HTTP response")):
        for name in ("quiet", "bad"):
            values = " ".join(f"p{100 * part:g} {1e3 * load.percentile(kind, name, part):.1f}" for part in (0.5, 0.95, 0.99))
            lines.append(f"  {title:18} {name:5} {values} ({len(load.of(kind, name))} samples)")
        lines.append(f"  {title:18} the p99 moves by {100 * load.shift(kind):+.1f} %")
    for name in ("quiet", "bad"):
        lines.append(f"  frames held, {name}: {len(load.of('held', name))}")
    for phase in load.phases:
        text = f"  {phase.name:5} server {phase.cpu:.2f} cores, {phase.peak_mb:.0f} MB at most, {phase.stored_mb:.1f} MB stored at most"
        lines.append(f"{text}; {', '.join(f'{what} {n}' for what, n in phase.counts.items())}")
    for name, usage in (("before", load.before), ("after", load.after)):
        lines.append(f"  {name:6} {usage.descriptors} descriptors, {usage.threads} threads, {usage.rss_mb:.0f} MB")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Good and bad clients at one server.")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--bad", type=int, default=5, help="of them, one of each kind (%(default)s)")
    parser.add_argument("--live", type=int, default=1, help="good clients that hold a live session; the rest polls (%(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, help="of a phase (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of a quiet and a bad phase (%(default)s)")
    parser.add_argument("--weights", help="the server's model, instead of the bundled one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="load-") as name:
        more = ["--weights", args.weights] if args.weights else []
        server = ServerProcess(Path(name), args.live + 3, "--sampler", "skip-null", *more)
        try:
            load = run(server, args.clients, args.bad, args.live, args.seconds, args.rounds)
        finally:
            server.close()
    print(report(load, args.live, args.clients - args.bad - args.live))
    problems = load.problems()
    if load.shift("frame") > MOST_SHIFT:
        problems.append(f"the p99 between two frames moved by more than {100 * MOST_SHIFT:g} %")
    print("\n".join(problems) or "all is well")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
