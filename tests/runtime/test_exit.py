"""Programs that end with audio in flight and without `with`: real processes, which must end soon, by their own exit code, without an abort."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
AVATAR = """
import sys, threading, time
import torch
from everface import Avatar, Deployment
avatar = Avatar(deployment=Deployment({placement!r}, threads=1))
session = avatar.open("{root}/python/everface/default/ada.png")
session.push_audio(0.1 * torch.randn(16_000 * 9))
session.wait(60.0)
"""
TOY = """
import os, signal, sys, threading, time
import torch
from everface.core.errors import Unavailable
from everface.runtime import inline_pipeline, scheduler
from everface.runtime.scheduler import Scheduler
from tests.runtime import toy
from tests.runtime.cluster.toy_pipeline import start_on
inline_pipeline.STOP_S = scheduler.STOP_S = 1.0
"""
ENDS = {"sys.exit(7)": 7, "raise ArithmeticError('mine')": 1, "pass": 0}


def run(code: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """As a program of its own, which may import the tests; no child of it may be left."""
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'python')!r}]\n"
    began_s = time.time()
    done = subprocess.run(
        [sys.executable, "-c", path + code], capture_output=True, text=True, timeout=timeout_s, start_new_session=True
    )
    workers = [
        p for p in psutil.process_iter(["create_time", "cmdline"]) if "everface stage" in " ".join(p.info["cmdline"] or ())
    ]
    assert not [p for p in workers if p.info["create_time"] > began_s and p.ppid() in (1, None)]
    return done


@pytest.mark.parametrize(("end", "placement"), [*((end, "inline") for end in ENDS), pytest.param("sys.exit(7)", "2", marks=pytest.mark.long)])
def test_a_program_ends_as_it_wants_to(end: str, placement: str) -> None:
    """A thread inside torch used to abort the process: exit by signal 6, four times in four."""
    done = run(AVATAR.format(placement=placement, root=ROOT) + end)
    assert done.returncode == ENDS[end], done.stderr
    assert "terminate" not in done.stderr and done.stderr.count("Traceback") == ("raise" in end)


def test_an_exception_between_two_frames() -> None:
    done = run(AVATAR.format(placement="inline", root=ROOT) + "for block in session.frames():\n    [][block.index + 1]")
    assert done.returncode == 1 and done.stderr.count("Traceback") == 1 and "IndexError" in done.stderr


def test_a_live_session_ends_too() -> None:
    """It has a thread of its own, which makes idle motion."""
    live = 'live = avatar.open_live("{root}/python/everface/default/ada.png")\nlive.read(60.0)\nlive.push_audio(torch.zeros(8000), 8000)\nsys.exit(6)'
    done = run(AVATAR.format(placement="inline", root=ROOT) + "session.close()\n" + live.format(root=ROOT))
    assert done.returncode == 6
    assert re.fullmatch(r"(this CPU has no bfloat16, so live video is \d+x\d+: --size asks for another\n)?", done.stderr)


def test_an_exception_on_another_thread_does_not_hang_the_exit() -> None:
    """A thread that waits for frames is no daemon unless asked for, and Python waits for such threads at exit."""
    watch = """
def show():
    try:
        for block in session.frames(): pass
    except Exception as error:
        print(type(error).__name__)
threading.Thread(target=show).start()
time.sleep(0.5)
sys.exit(5)
"""
    done = run(AVATAR.format(placement="inline", root=ROOT) + watch)
    assert (done.returncode, done.stdout, done.stderr) == (5, "Unavailable\n", "")


def test_a_role_that_hangs_does_not_hang_the_exit() -> None:
    hang = """
served = Scheduler(start_on("inline", steps=1))
session = toy.open_at(served, params={"slow_role": "step0", "slow_s": 600.0}).wait_open()
session.push_audio(toy.speech(1.0))
time.sleep(0.3)
sys.exit(3)
"""
    done = run(TOY + hang, timeout_s=30.0)
    assert done.returncode == 3 and "ends with the process" in done.stderr


def test_a_forked_process_ends_nothing_of_its_parents() -> None:
    fork = """
served = Scheduler(start_on("2", steps=1))
session = toy.open_at(served).wait_open()
child = os.fork()
if child == 0:
    sys.exit(4)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
session.push_audio(toy.speech(2.0))
session.end_segment()
print(code, sum(len(block.frames_THW3) for block in session.frames()), len(session.events()))
"""
    done = run(TOY + fork)
    assert (done.returncode, done.stdout) == (0, "4 50 1\n"), (
        done.stderr
    )  # no worker was lost: the segment's end is the only event


def test_a_second_ctrl_c_does_not_cut_the_exit_short() -> None:
    """The first raises KeyboardInterrupt in the program, which ends by it; the second comes while its threads are ended."""
    slow = """
print("ready", flush=True)
served = Scheduler(start_on("inline", steps=1))
session = toy.open_at(served, params={"slow_role": "step0", "slow_s": 0.8}).wait_open()
session.push_audio(toy.speech(3.0))
time.sleep(0.3)
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60.0)
"""
    done = run("import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + TOY + slow)
    assert done.returncode == -signal.SIGINT and done.stderr.count("Traceback") == 1 and "terminate" not in done.stderr


STORM = """
served = Scheduler(start_on("inline", steps=1))
session = toy.open_at(served).wait_open()
pressed, inside = 0, False

def press(*_):
    global inside
    if inside:
        inside = False
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, press)
print("ready", flush=True)
while pressed < 1500:
    try:
        inside = True
        while True:
            session.push_audio(torch.zeros(160))
            session.poll()
    except KeyboardInterrupt:
        pressed += 1
signal.signal(signal.SIGINT, signal.SIG_IGN)
samples = session.accepted
session.end_segment()
shown = [block for block in session.frames()]
began_s = time.monotonic()
served.close()
print(pressed, samples % 160, time.monotonic() - began_s < 1.0)
"""


def test_ctrl_c_inside_push_audio_leaves_nothing_locked() -> None:
    """Wherever it comes: no lock stays taken, and no sample is counted that is not there."""
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'python')!r}]\n"
    with subprocess.Popen([sys.executable, "-c", path + TOY + STORM], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        try:
            assert program.stdout.readline() == "ready\n"
            end_s = time.monotonic() + 60.0
            while program.poll() is None and time.monotonic() < end_s:
                program.send_signal(signal.SIGINT)
                time.sleep(0.001)
            assert program.stdout.read() == "1500 0 True\n" and program.returncode == 0
        finally:
            program.kill()
