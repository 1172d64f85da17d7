"""The lead of a block's audio is what the pipeline takes, not what blocks wait for each other."""

from __future__ import annotations

import pytest

from everface.live.lead import FIRST_BLOCK_S, MARGIN_S, lead_s
from everface.runtime.timeline import BlockTiming


def test_nothing_is_measured_yet() -> None:
    assert lead_s([]) == lead_s([BlockTiming(0, 0, 1.0)]) == FIRST_BLOCK_S + MARGIN_S


def test_blocks_that_waited_do_not_count() -> None:
    alone = [BlockTiming(n, 0, n, n + 0.2) for n in range(4)]
    queued = [BlockTiming(4 + n, 0, 4.0, 4.2 + 0.2 * n) for n in range(20)]
    assert lead_s(alone + queued) == pytest.approx(0.2 + MARGIN_S)
    assert lead_s(queued[1:]) > 1.0  # there are no others


def test_a_slow_block_in_fifteen_is_not_the_measure_and_one_in_five_is() -> None:
    for every, wanted in ((15, 0.2), (5, 0.4)):
        blocks = [BlockTiming(n, 0, n, n + (0.4 if n % every == 0 else 0.2)) for n in range(30)]
        assert lead_s(blocks) == pytest.approx(wanted + MARGIN_S)
