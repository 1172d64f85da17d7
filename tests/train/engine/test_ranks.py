"""How a batch is divided among ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from everface.core.errors import BadInput
from everface.train.engine.checkpoint import Progress, agree_on_step, checkpoint_path
from everface.train.engine.ranks import Ranks


def test_checkpoints_of_different_steps_are_refused(tmp_path: Path) -> None:
    """And files of some ranks alone are not taken for those of another number."""

    class Apart(Ranks):
        def agree(self, value: float) -> bool:
            return value == -1  # no rank has a file

    path = checkpoint_path(tmp_path, Ranks(1, 2))
    agree_on_step(path, Progress(), Apart(1, 2))
    (tmp_path / "checkpoint.0of2.safetensors").touch()
    assert checkpoint_path(tmp_path, Ranks(1, 2)) == path
    path.touch()
    with pytest.raises(BadInput, match="are of different steps"):
        agree_on_step(path, Progress(3), Apart(1, 2))
    assert Ranks().agree(3.0)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    assert [list(Ranks(r, 4).share(8)) for r in range(4)] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    with pytest.raises(BadInput, match="micro_batches"):
        Ranks(0, 4).share(6)
