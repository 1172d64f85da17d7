"""The bars of the quality evaluation: what is measured, how it is summed over characters, and what passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from everface.train.evaluate.readers.lip_reader import MIN_CORRELATION

Row = dict[str, float]
"""The measures of one character, or of one window of a stream."""


class Bar(NamedTuple):
    """The statistic `how` of the rows' `key`, over all characters, must be within least..most."""

    name: str
    how: str
    key: str
    least: float
    most: float
    says: str

    def __str__(self) -> str:
        if math.isinf(self.most):
            return f">= {self.least:g}"
        return f"<= {self.most:g}" if math.isinf(self.least) else f"{self.least:g} .. {self.most:g}"


def _known(values: Iterable[float]) -> list[float]:
    """The values, or a NaN alone if one is among them: `min` and `max` pass over a NaN that is not the first."""
    held = list(values)
    return [math.nan] if any(map(math.isnan, held)) else held


STATISTICS: dict[str, Callable[[list[Row], str], float]] = {
    "mean": lambda rows, key: sum(row[key] for row in rows) / len(rows),
    "min": lambda rows, key: min(_known(row[key] for row in rows)),
    "worst": lambda rows, key: max(_known(abs(row[key]) for row in rows)),
    "abs mean": lambda rows, key: abs(sum(row[key] for row in rows) / len(rows)),
    # Counts: over all characters together, relative to the truth's.
    "pooled": lambda rows, key: sum(row[key] for row in rows) / (sum(row[f"truth_{key}"] for row in rows) or math.nan),
}
INF = math.inf
# Blinks: the true rate is about 15 a minute, so 16 characters of 20 s have about 80, in truth and in a faithful model alike. If both were
# Poisson, their ratio would vary by sqrt(2 / 80) = 0.16 (the true intervals are more even than that). Half the truth, or half as much again,
# is three times that: a faithful model misses once in hundreds of runs; one that never blinks or blinks twice as often always misses.
# Fewer or shorter clips have fewer blinks, and the result is then random.
# Eyes: no pose of the drawn face fits a broken eye. The worse eye of the first bundled model, which has whole eyes, is 4.4 dB below the
# codec's, fitted alike; one that is blurred, or shut beside an open one, costs 6 dB and more (tests/train/evaluate/readers/test_pose_fit.py).
BARS = (
    Bar("lip reader on truth", "min", "gate", MIN_CORRELATION, INF, "every character is readable"),
    Bar("opening correlation, mean", "mean", "open_corr", 0.95, INF, "the mouth follows the audio"),
    Bar("opening correlation, min", "min", "open_corr", 0.88, INF, "for every character"),
    Bar("lag in frames, worst", "worst", "lag", -INF, 0.0, "and in time"),
    Bar("other audio, abs mean correlation", "abs mean", "wrong_corr", -INF, 0.1, "because of this audio, not any"),
    Bar("opening amplitude", "mean", "open_amplitude", 0.9, 1.1, "as far as it should"),
    Bar("width correlation", "mean", "wide_corr", 0.7, INF, "and as wide"),
    Bar("VAE PSNR, dB", "mean", "vae_psnr", 33.0, INF, "the codec keeps the image"),
    Bar("VAE mouth PSNR, dB", "mean", "vae_mouth_psnr", 31.0, INF, "and the mouth in it"),
    Bar("identity fit-PSNR, dB", "mean", "fit_psnr", 28.0, INF, "it stays the same person"),
    Bar("eyes below the codec's, dB", "mean", "eyes_gap", -INF, 5.0, "both eyes are whole"),
    Bar("blinks relative to truth", "pooled", "blinks", 0.5, 1.5, "it blinks as people do"),
    Bar("motion energy relative to truth", "mean", "motion", 0.8, 1.2, "it moves as people do"),
    Bar("sharpness relative to truth", "mean", "sharpness", 0.8, INF, "it is not blurred"),
    Bar("block-edge flicker", "mean", "block_flicker", -INF, 1.4, "no seams between blocks"),
)
# Rendered people at 256x256, whose hair and pores no codec of this size keeps to 33 dB; the rest is as strict or stricter.
HEADS_BARS = tuple(
    bar._replace(**{
        "wide_corr": {"least": 0.8}, "vae_psnr": {"least": 32.0}, "vae_mouth_psnr": {"least": 30.0}, "blinks": {"least": 0.7, "most": 1.3},
        "sharpness": {"least": 0.85}, "block_flicker": {"most": 1.35},
    }.get(bar.key, {}))
    for bar in BARS
)  # fmt: skip
NOTES = (
    "latent_flicker", "eyes_psnr", "truth_blinks", "vae_open_corr", "vae_wide_corr", "vae_fit_psnr", "vae_eyes_psnr", "vae_sharpness",
    "vae_block_flicker", "vae_latent_flicker", "gate_wide",
)  # fmt: skip


def check_bars(rows: list[Row], of: Sequence[Bar] = BARS) -> dict[str, object]:
    """{"pass": bool, "bars": [{name, value, bar, pass, says}], "notes": {name: mean}, "characters": rows}. A NaN never passes."""
    bars = []
    for bar in of:
        value = STATISTICS[bar.how](rows, bar.key)
        bars.append({"name": bar.name, "value": value, "bar": str(bar), "pass": bar.least <= value <= bar.most, "says": bar.says})
    notes = {key: STATISTICS["mean"](rows, key) for key in NOTES}
    return {"pass": all(bar["pass"] for bar in bars), "bars": bars, "notes": notes, "characters": rows}
