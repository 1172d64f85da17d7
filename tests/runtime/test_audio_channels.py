"""Audio of several channels: each has the windows that it would have alone, and the clock counts samples of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.runtime.toy import ToySession

from everface.core.errors import BadInput
from everface.runtime.audio_buffer import AudioBuffer
from everface.runtime.model import BlockFormat
from everface.runtime.samples import check_samples
from everface.runtime.session import Session
from everface.runtime.signal import Signal

SIZES: dict[str, Any] = {"lookback_samples": 1000, "lookahead_samples": 700}


def test_windows_of_channels_are_those_of_each() -> None:
    drawn = np.random.default_rng(4)
    audio_3S = torch.from_numpy(drawn.standard_normal((3, 20_000))).float()
    together, alone = AudioBuffer(BlockFormat(audio_channels=3, **SIZES)), [AudioBuffer(BlockFormat(**SIZES)) for _ in range(3)]
    for turn in range(2):
        for at in range(0, 20_000, 3_000):
            part_3S = audio_3S[:, at : at + 3_000]
            for buffer, part in zip((together, *alone), (part_3S, *part_3S), strict=True):
                buffer.add(part)
                buffer.ended = at == 18_000
            index = 0
            while window := together.take_window(index, turn):
                singles = [buffer.take_window(index, turn) for buffer in alone]
                for channel_S, single in zip(window.audio_S, singles, strict=True):
                    assert single is not None and torch.equal(channel_S, single.audio_S)
                    assert (window.pts, window.frames, window.last) == (single.pts, single.frames, single.last)
                index += 1
        assert together.accepted == 20_000 * (turn + 1) and together.at == together.accepted
        for buffer in (together, *alone):
            buffer.restart()


class TwoVoices(ToySession):
    def __init__(self) -> None:
        super().__init__()
        self.format = BlockFormat(audio_channels=2)


def test_a_session_takes_all_channels_at_once() -> None:
    session = Session(0, TwoVoices(), Signal(), buffer_s=1.0)
    assert session.push_audio(np.zeros((2, 9_000), np.float32)) and session.accepted == 9_000 and session.room() == 7_000
    assert not session.push_audio(np.zeros((2, 8_000), np.float32))  # 16,000 a channel is the buffer
    assert session.push_audio(torch.zeros(14_000, 2).T[:, :7_000]) and session.room() == 0
    with pytest.raises(BadInput, match="16001 samples at once"):
        session.push_audio(np.zeros((2, 16_001), np.float32))


@pytest.mark.parametrize("shape", [(9,), (1, 9), (3, 9), (9, 2), (2, 3, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match=r"the session has 2 speakers: push float32 samples \[2, S\], a row for each speaker"):
        check_samples(np.zeros(shape, np.float32), 16_000, 2)
