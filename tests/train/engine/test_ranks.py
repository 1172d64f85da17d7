"""How a batch is divided among ranks."""

from __future__ import annotations

import pytest

from everface.core.errors import BadInput
from everface.train.engine.ranks import Ranks


def test_a_batch_that_does_not_divide_is_refused() -> None:
    assert [list(Ranks(r, 4).share(8)) for r in range(4)] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    with pytest.raises(BadInput, match="micro_batches"):
        Ranks(0, 4).share(6)
