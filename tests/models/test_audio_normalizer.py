"""Audio of a stream is normalized nearly as the whole file is, and without jumps."""

from __future__ import annotations

import torch
from tests.models.test_loudness import FORMAT

from everface.models.live_avatar.audio_normalizer import AudioNormalizer
from everface.networks.audio.wav2vec import normalize, normalize_window
from everface.runtime.audio_buffer import AudioBuffer
from everface.runtime.model import Window

BACK, AHEAD = FORMAT.lookback_samples, FORMAT.lookahead_samples


def windows(audio_S: torch.Tensor, buffer: AudioBuffer, turn: int = 0) -> list[Window]:
    buffer.add(audio_S)
    buffer.ended = True
    found: list[Window] = []
    while (window := buffer.take_window(len(found), turn)) is not None:
        found.append(window)
    return found


def swelling(seconds: float) -> torch.Tensor:
    """Noise that is loud for two seconds, then quiet for two."""
    t = torch.arange(int(16_000 * seconds)) / 16_000
    return 0.1 * torch.randn(len(t), generator=torch.Generator().manual_seed(0)) * (1 + 0.9 * torch.sin(torch.pi / 2 * t).sign()) + 0.02


def gains(windows: list[Window], normalized: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([n.std() / w.audio_S.std() for w, n in zip(windows, normalized, strict=True)])


def test_it_comes_to_what_the_whole_file_has_and_does_not_jump() -> None:
    audio_S = swelling(24.0)
    cut, normalizer = windows(audio_S, AudioBuffer(FORMAT)), AudioNormalizer(BACK, AHEAD)
    running = gains(cut, [normalizer.apply(w) for w in cut])
    alone = gains(cut, [normalize_window(w.audio_S) for w in cut])
    whole = float(normalize(audio_S).std() / audio_S.std())
    assert (running[30:] / whole - 1).abs().max() < 0.06
    jumps, jumps_alone = ((g[10:] / g[9:-1]).log().abs().max() for g in (running, alone))
    assert jumps < 0.1 < jumps_alone


def test_silence_stays_silence_and_does_not_count() -> None:
    spoken_S, normalizer, buffer = swelling(4.0), AudioNormalizer(BACK, AHEAD), AudioBuffer(FORMAT)
    before = [normalizer.apply(w) for w in windows(spoken_S, buffer)][-1]
    buffer.restart()
    silent = [normalizer.apply(w) for w in windows(torch.zeros(16_000 * 20), buffer, turn=1)]
    assert not any(s.any() for s in silent)
    buffer.restart()
    again = [normalizer.apply(w) for w in windows(spoken_S, buffer, turn=2)][-1]
    torch.testing.assert_close(again, before, rtol=1e-3, atol=1e-3)  # the same statistics, twice as many
