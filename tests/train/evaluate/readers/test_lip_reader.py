"""The lip reader is small, and reads a clip as it reads its frames."""

from __future__ import annotations

import torch

from everface.train.evaluate.readers.lip_reader import LipReader


def test_it_is_small_and_reads_frame_by_frame(reader: LipReader, clip: torch.Tensor) -> None:
    assert 100_000 < sum(p.numel() for p in reader.parameters()) < 150_000
    one = torch.cat([reader(frame[None]) for frame in clip[:3]]).detach()
    torch.testing.assert_close(torch.stack(reader.read(clip), 1)[:3], one, rtol=1e-4, atol=1e-5)
