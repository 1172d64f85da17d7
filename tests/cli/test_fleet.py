"""`everface simulate --fleet` prints a row for each kind of pipeline."""

from __future__ import annotations

import pytest

from everface import cli


def test_a_row_for_each_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", "--fleet", "50", "--hours", "0.5", "--price", "3"]) == 0
    text = capsys.readouterr().out
    assert "slower than 25 frames a second" in text and "* forecast" in text and "cost/stream-h" in text
    assert cli.main(["simulate", "--fleet", "50", "--step-ms", "60", "--decode-ms", "30", "--gpus", "4", "--devices", "5"]) == 0
    assert "needs more GPUs" in capsys.readouterr().out
    assert cli.main(["simulate", "--fleet", "-1"]) == 2
    assert cli.main(["simulate", "--fleet", "5", "--idle-share", "1"]) == 2
