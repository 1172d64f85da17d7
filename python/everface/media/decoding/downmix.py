"""Mixes channels down by their places around the listener, with the coefficients of ITU-R BS.775."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

HALF_POWER = 0.5**0.5
LEFT = ("FL", "FLC", "DL", "WL", "BL", "SL", "SDL", "TFL", "TBL", "TSL", "BFL")
RIGHT = ("FR", "FRC", "DR", "WR", "BR", "SR", "SDR", "TFR", "TBR", "TSR", "BFR")
FRONT = ("FL", "FLC", "DL", "WL", "FR", "FRC", "DR", "WR")
LOW = ("LFE", "LFE2")
# What the channels of a file that names none usually are. Three and four may be anything, as may nine and more.
USUAL = {
    1: ("FC",), 2: ("FL", "FR"), 5: ("FL", "FR", "FC", "BL", "BR"), 6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"), 8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}  # fmt: skip
SECTION_S = 0.04
MEMORY = 0.8  # of the powers, from section to section
CANCELS, ADDS = 0.05, 0.12  # power of the mix over the loudest channel's: below the first it is replaced, above the second it is back
QUIET = 1e-7  # mean square, -70 dBFS: below it nothing is decided


def stereo_weights(channels: Sequence[str]) -> np.ndarray:
    """float32 [C, 2]: how much of each channel goes left and right. `channels` are ffmpeg's names of them, such as FL or LFE; "NONE" is
    unknown. The low-frequency channel is left out, as BS.775 advises."""
    C, known = len(channels), channels[0] != "NONE"
    names = channels if known else USUAL.get(C, ())
    w_C2 = np.full((C, 2), 1 / C)
    for c, name in enumerate(names):
        share = 1.0 if name in FRONT else HALF_POWER
        if name in LEFT or name in RIGHT:
            w_C2[c] = (share, 0.0) if name in LEFT else (0.0, share)
        elif name in LOW:
            w_C2[c] = 0.0 if known else 0.5  # it may be a voice after all
        else:
            w_C2[c] = HALF_POWER if name == "FC" else 0.5
    if C == 1 or not w_C2.any():
        w_C2[:] = 1 / C
    return w_C2.astype(np.float32)


def mono_weights(channels: Sequence[str]) -> np.ndarray:
    """float32 [C]: half of left and right together, so that stereo is averaged. A center alone comes out at -3 dB; several loud channels may
    add up to more than full scale."""
    return stereo_weights(channels).mean(axis=1)


def mix_stereo(x_SC: np.ndarray, channels: Sequence[str]) -> np.ndarray:
    """[S, C] to [S, 2]. The weights are scaled down so that nothing can clip: -7.7 dB for 5.1."""
    w_C2 = stereo_weights(channels)
    return x_SC @ (w_C2 / max(1.0, float(w_C2.sum(axis=0).max())))


class MonoMixer:
    """Mixes a stream [S, C] to mono. Where the channels cancel each other, as in stereo with one side inverted, the loudest one is used alone.

    The choice is made every 40 ms, from what came before, and faded in over the next 40 ms; it does not depend on the pieces that the
    stream comes in. Not thread-safe.
    """

    def __init__(self, channels: Sequence[str], rate_hz: int) -> None:
        self.channels, self.rate_hz = tuple(channels), rate_hz
        self._weights_C = mono_weights(channels)
        self._section = max(1, round(SECTION_S * rate_hz))  # samples
        self._filled = 0  # samples of the section that came already
        self._sums = np.zeros(len(channels) + 1)  # of squares in the section: every channel, the mix
        self._powers: np.ndarray | None = None
        self._fade = (0.0, 0.0)  # share of the loudest channel at the section's begin and end
        self._loudest = 0

    def mix(self, x_SC: np.ndarray) -> np.ndarray:
        """float32 [S, C], full scale 1, to float32 [S]."""
        if x_SC.shape[1] == 1:
            return x_SC[:, 0]
        mono_S = x_SC @ self._weights_C
        at = 0
        while at < len(x_SC):
            part = slice(at, at + self._section - self._filled)
            at += self._mix_section(x_SC[part], mono_S[part])
        return mono_S

    def _mix_section(self, x_SC: np.ndarray, mono_S: np.ndarray) -> int:
        """Part of one section: `mono_S` is changed in place. Returns its length."""
        squares_C = np.einsum("sc,sc->c", x_SC, x_SC, dtype=np.float64)
        self._sums += [*squares_C, np.dot(mono_S, mono_S)]
        begin, end = self._fade
        if begin or end:
            share_S = begin + (end - begin) * (self._filled + np.arange(1, len(x_SC) + 1, dtype=np.float32)) / self._section
            mono_S += share_S * (x_SC[:, self._loudest] - mono_S)
        self._filled += len(x_SC)
        if self._filled == self._section:
            self._decide()
        return len(x_SC)

    def _decide(self) -> None:
        powers, (_, share) = self._sums / self._section, self._fade
        self._powers = powers if self._powers is None else MEMORY * self._powers + (1 - MEMORY) * powers
        self._filled, self._sums = 0, np.zeros_like(self._sums)
        own_C = np.where(self._weights_C > 0, self._powers[:-1], 0.0)
        loudest, following = int(own_C.argmax()), share
        if own_C[loudest] > QUIET:
            ratio = self._powers[-1] / own_C[loudest]
            if not share and ratio < CANCELS:
                self._loudest, following = loudest, 1.0
            elif ratio > ADDS:
                following = 0.0
        self._fade = (share, following)
