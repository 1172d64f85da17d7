"""A second host: a network namespace with a cable to this one, and `everface join` in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[3]


class Cable:
    """Between this host, `here`, and the namespace `name`. Raises CalledProcessError where namespaces cannot be made."""

    def __init__(self) -> None:
        number = os.getpid() % 64  # of a network of four addresses, so that test processes do not meet
        self.name = f"everface-{os.getpid()}"
        self.here, there = f"198.51.100.{4 * number + 1}", f"198.51.100.{4 * number + 2}"
        self._near, self._far = f"efa{os.getpid()}", f"efb{os.getpid()}"
        ip(f"netns add {self.name}")
        try:
            ip(f"link add {self._near} type veth peer name {self._far} netns {self.name}")
            ip(f"addr add {self.here}/30 dev {self._near}")
            ip(f"link set {self._near} up")
            ip(f"-n {self.name} addr add {there}/30 dev {self._far}")
            ip(f"-n {self.name} link set lo up")
            self.plug()
        except subprocess.CalledProcessError:
            self.remove()
            raise

    def plug(self) -> None:
        ip(f"-n {self.name} link set {self._far} up")

    def cut(self) -> None:
        ip(f"-n {self.name} link set {self._far} down")

    def remove(self) -> None:
        for words in (f"link del {self._near}", f"netns del {self.name}"):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip(words)


def ip(words: str) -> None:
    subprocess.run([shutil.which("ip") or "ip", *words.split()], check=True, capture_output=True, text=True)


def free_port(host: str) -> int:
    with socket.create_server((host, 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def joined(address: str, devices: int, prefix: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """`everface join ADDRESS`, started by `prefix`. Nothing of it outlives the context."""
    command = [*prefix, sys.executable, "-m", "everface", "join", address, "--devices", str(devices)]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "EVERFACE_LOG": "info"}) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 143
