"""Trials on virtual time hold, are the same for the same seed, and do find what is broken on purpose."""

from __future__ import annotations

import json

import pytest

from everface.cli import main
from everface.runtime.in_flight import Ledger
from everface.runtime.session import Session
from everface.runtime.stage import Stage
from tests.simulation.trials import run, trial


def test_trials_hold_and_are_trials() -> None:
    failed, sums = run(0, 60)
    assert not failed, json.dumps(failed, indent=1)
    blocks, losses, interruptions, _, recovering = sums
    assert blocks > 600 and losses > 30 and interruptions > 200 and recovering > 30


def test_a_seed_is_a_trial() -> None:
    assert trial(7) == trial(7)
    assert len({trial(seed) for seed in range(6)}) > 3


def found(seeds: int = 60) -> bool:
    return bool(run(0, seeds)[0])


def test_frames_of_an_old_epoch_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def drop(self: Ledger) -> int:
        self._epoch += 1
        self.waiting.clear()
        return self._epoch

    monkeypatch.setattr(Ledger, "drop", drop)
    assert found()


def test_lost_sound_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    resend = Ledger.resend

    def forget(self: Ledger, failed=None) -> None:
        self.flying.clear()
        resend(self, failed)

    monkeypatch.setattr(Ledger, "resend", forget)
    assert found()


def test_a_result_too_many_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    conclude = Session._conclude

    def twice(self: Session, interrupted: bool = False) -> None:
        conclude(self, interrupted)
        self._resulted = False

    monkeypatch.setattr(Session, "_conclude", twice)
    assert found()


def test_a_stage_that_keeps_a_session_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stage, "_close", lambda self, session: None)
    assert found()


def test_the_command(capsys: pytest.CaptureFixture) -> None:
    assert main(["simulate", "--faults", "--seeds", "8", "--first", "100"]) == 0
    assert "8 from 100, 0 broke an invariant" in capsys.readouterr().out
