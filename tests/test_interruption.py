"""Signals during a command that behaves badly: the process still ends soon, and with the exit code of the first signal."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import signal, sys, threading, time
from everface import cli
from everface.cli import commands, interruption

interruption.GIVE_UP_S = 2.0

def render(args):
    print("ready", flush=True)
{body}

signal.signal(signal.SIGINT, signal.default_int_handler)
commands.render = render
sys.exit(cli.main(["render", "a.png", "b.wav", "-o", "c.mp4"]))
"""
CASES = {
    "it hangs": "try: time.sleep(60)\nfinally:\n    while True: time.sleep(1)",
    "it goes on": "try: time.sleep(60)\nexcept BaseException: pass",
    "it fails": "try: time.sleep(60)\nfinally: raise OSError('the terminal is gone')",
    "it fails with a sentence": "from everface.core.errors import Unavailable\ntry: time.sleep(60)\nfinally: raise Unavailable('no')",
    "a stage is slow": (
        "import torch\nx = torch.randn(400, 400)\ndef work():\n    while True: x @ x\n"
        "threading.Thread(target=work, name='everface step0', daemon=True).start()\ntime.sleep(60)"
    ),
}


def start(body: str) -> subprocess.Popen[str]:
    code = PROGRAM.format(body="\n".join(f"    {line}" for line in body.splitlines()))
    program = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None and program.stdout.readline() == "ready\n"
    time.sleep(0.2)
    return program


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("case", CASES)
def test_the_exit_code_is_that_of_the_signal(case: str, number: int) -> None:
    with start(CASES[case]) as program:
        time.sleep(1.5 if case == "a stage is slow" else 0.0)  # until torch is there
        began_s = time.monotonic()
        for _ in range(3):
            program.send_signal(number)
            time.sleep(0.1)
        _, said = program.communicate(timeout=30)
        assert program.returncode == 128 + number, said
        assert time.monotonic() - began_s < 6.0 and "terminate" not in said
        assert ("still finishing" in said) == (case == "it hangs")


def test_an_import_is_not_interrupted(tmp_path_factory: pytest.TempPathFactory) -> None:
    """C++ code that calls Python, as much in torch does when it is imported, aborts the process when an exception comes out."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "slow_module.py").write_text("import time\ntime.sleep(0.7)\nDONE = True\n")
    body = f"sys.path.append({str(folder)!r})\ntry:\n    import slow_module\n    time.sleep(60)\nfinally: print(slow_module.DONE)"
    with start(body) as program:
        program.send_signal(signal.SIGINT)
        said, _ = program.communicate(timeout=30)
        assert (program.returncode, said) == (130, "True\n")


def test_nobody_reads_the_message() -> None:
    with start("time.sleep(60)") as program:
        assert program.stderr is not None
        program.stderr.close()
        program.send_signal(signal.SIGHUP)
        assert program.wait(30) == 129


def test_handlers_are_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    from everface import cli
    from everface.cli import commands

    seen: list[object] = []
    monkeypatch.setattr(commands, "render", lambda _: seen.append(signal.getsignal(signal.SIGTERM)))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert cli.main(["render", "a.png", "b.wav", "-o", "c.mp4"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before != [seen[0]] * 3
