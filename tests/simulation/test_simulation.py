"""Trials on virtual time hold, are the same for the same seed, and do find what is broken on purpose."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.simulation.trials import run, trial

from everface.runtime.in_flight import InFlight, SentBlock
from everface.runtime.session import Session
from everface.runtime.stage import Stage


def test_trials_hold_and_are_trials() -> None:
    failed, sums = run(range(60))
    assert not failed, json.dumps(failed, indent=1)
    blocks, losses, interruptions, _, recoveries = sums
    assert blocks > 600 and losses > 30 and interruptions > 200 and recoveries > 30


def test_a_seed_is_a_trial() -> None:
    assert trial(7) == trial(7)
    assert len({trial(seed) for seed in range(6)}) > 3


def found(seeds: int = 60) -> bool:
    return bool(run(range(seeds))[0])


def test_frames_of_an_old_turn_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def cancel(self: InFlight) -> int:
        self._revision += 1
        self.waiting.clear()
        return self._revision

    monkeypatch.setattr(InFlight, "cancel", cancel)
    monkeypatch.setattr(Session, "deliver", deliver_all)
    assert found()


def deliver_all(self: Session, block) -> None:
    """Without the check of the turn."""
    self._blocks.append(block)


def test_lost_audio_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    resend = InFlight.resend

    def forget(self: InFlight, failed: SentBlock | None = None, *, lost: bool = False) -> None:
        self.sent.clear()
        resend(self, failed, lost=lost)

    monkeypatch.setattr(InFlight, "resend", forget)
    assert found()


def test_a_result_too_many_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    report_end = Session._report_end

    def twice(self: Session, interrupted: bool = False) -> None:
        report_end(self, interrupted)
        self._reported = False

    monkeypatch.setattr(Session, "_report_end", twice)
    assert found()


def test_a_stage_that_keeps_a_session_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stage, "_close", lambda self, session: None)
    assert found()


def test_the_command() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--seeds", "8", "--first", "100"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0 and "8 from 100, 0 broke an invariant" in done.stdout, done.stderr
