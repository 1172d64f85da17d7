"""The lead of a block's audio is what the pipeline takes, not what blocks wait for each other."""

from __future__ import annotations

import pytest

from everface.live.lead import FIRST_BLOCK_S, MARGIN_S, lead_s
from everface.runtime.timeline import BlockTiming, Timeline


def timing(index: int, sent_s: float, delivered_s: float) -> BlockTiming:
    return BlockTiming(index, 0, sent_s, delivered_s, delivered_s, 12, delivered_s - sent_s)


def test_nothing_is_measured_yet() -> None:
    assert lead_s([]) == lead_s([BlockTiming(0, 0, 1.0)]) == FIRST_BLOCK_S + MARGIN_S


def test_blocks_that_waited_do_not_count() -> None:
    alone = [timing(n, n, n + 0.2) for n in range(4)]
    queued = [timing(4 + n, 4.0, 4.2 + 0.2 * n) for n in range(20)]
    assert lead_s(alone + queued) == pytest.approx(0.2 + MARGIN_S)
    assert lead_s(queued[1:]) > 1.0  # there are no others


def test_a_slow_block_in_fifteen_is_not_the_measure_and_one_in_five_is() -> None:
    for every, wanted in ((15, 0.2), (5, 0.4)):
        blocks = [timing(n, n, n + (0.4 if n % every == 0 else 0.2)) for n in range(30)]
        assert lead_s(blocks) == pytest.approx(wanted + MARGIN_S)


@pytest.mark.parametrize(("part_s", "wanted_s"), [(0.05, 0.15), (0.2, 0.1 + 3 * 0.2 - 8 * 0.04)])
def test_of_a_block_in_parts_the_first_counts_or_the_one_that_is_late(part_s: float, wanted_s: float) -> None:
    now_s = 0.0
    timeline = Timeline(lambda: now_s, frame_s=0.04)
    for index in range(2):
        timeline.sent(index, index * 7680)
        now_s += 0.1
        for first in (0, 4, 8):
            now_s += part_s
            timeline.delivered(index, 4, first, last=first == 8)
    assert lead_s(timeline.blocks) == pytest.approx(wanted_s + MARGIN_S)
    assert timeline.frames == 24 and [block.frames for block in timeline.blocks] == [12, 12]
    assert [block.seconds for block in timeline.blocks] == pytest.approx([0.1 + 3 * part_s] * 2)
