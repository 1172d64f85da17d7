"""How long before its time the audio of a block must be there."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from everface.runtime.timeline import BlockTiming

MARGIN_S = 0.08  # of video that should be ready beyond what the pipeline takes for a block
FIRST_BLOCK_S = 0.5  # what the pipeline is thought to take before it was measured
RECENT = 32  # blocks that count


def lead_s(blocks: Iterable[BlockTiming]) -> float:
    """Seconds before a block's first frame is due that the pipeline must have it, nine times in ten, and a margin.

    Blocks that were sent while another was in flight do not count as long as there are others: they may have waited for it, so a lead made of
    their times would send the next blocks earlier still, to wait longer.
    """
    recent = list(blocks)[-RECENT:]
    alone = [b.needed_s for a, b in pairwise(recent) if b.delivered_s is not None and a.delivered_s is not None and a.delivered_s <= b.sent_s]
    times_s = sorted(alone or [b.needed_s for b in recent if b.delivered_s is not None])
    return (times_s[9 * len(times_s) // 10] if times_s else FIRST_BLOCK_S) + MARGIN_S
