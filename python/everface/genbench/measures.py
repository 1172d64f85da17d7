"""What is measured: names, units, which direction is better, and the paper's figures for the same measures."""

from __future__ import annotations

from typing import NamedTuple


class Measure(NamedTuple):
    """`better`: 1 more, -1 less, 0 neither, or nearer to `ideal` where that is given."""

    title: str
    better: int
    digits: int = 2
    ideal: float | None = None
    paper: str = ""  # its column in the paper's tables


MEASURES = {
    "ase": Measure("ASE", 1, paper="ASE"),
    "iqa": Measure("IQA", 1, paper="IQA"),
    "sync_c": Measure("Sync-C", 1, paper="Sync-C"),
    "sync_d": Measure("Sync-D", -1, paper="Sync-D"),
    "sync_offset": Measure("SyncNet offset, frames", 0, 0, 0.0),
    "dino_s": Measure("Dino-S", 1, paper="Dino-S"),
    "lip_corr": Measure("lip correlation (truth)", 1, 3),
    "lip_lag": Measure("lip lag, frames (truth)", 0, 0, 0.0),
    "lip_amplitude": Measure("lip amplitude (truth)", 0, 2, 1.0),
    "av_offset": Measure("A/V offset, frames", 0, 0, 0.0),
    "av_confidence": Measure("A/V confidence", 1, 3),
    "av_distance": Measure("A/V distance", -1, 3),
    "color_likeness": Measure("color likeness", 1, 3),
    "t_flicker": Measure("T.Flicker", 1, 4, paper="T.Flicker"),
    "block_flicker": Measure("block-edge flicker", 0, 2, 1.0),
    "motion": Measure("motion, gray levels", 0),
    "expression_std": Measure("expression deviation, gray levels", 0),
    "frozen": Measure("frozen frames, share", -1, 3),
    "fps": Measure("FPS", 1, 1, paper="FPS"),
    "fps_with_loading": Measure("FPS with loading", 1, 2),
    "first_frame_s": Measure("first frame, s", -1),
    "cold_first_frame_s": Measure("first frame with loading, s", -1),
    "block_ms_p50": Measure("block interval p50, ms", -1, 0),
    "block_ms_p95": Measure("block interval p95, ms", -1, 0),
    "block_ms_p99": Measure("block interval p99, ms", -1, 0),
    "deadline_misses": Measure("blocks over their deadline, share", -1, 3),
    "rss_mb": Measure("memory, MB", -1, 0),
    "memory_mb_per_1000s": Measure("memory growth, MB / 1,000 s", -1, 1),
}

COLUMNS = ("ASE", "IQA", "Sync-C", "Sync-D", "Dino-S", "FPS")
# Table 2 of arXiv 2512.04677v5, on its own GenBench, which was not published: other images and voices, 720x400, an H800 node.
TABLE_2 = {
    "short": {
        "Ditto": (3.31, 4.24, 4.09, 10.76, 0.99, 21.80), "EchoMimic-V2": (2.82, 3.61, 5.57, 9.13, 0.79, 0.53),
        "Hallo3": (3.12, 3.97, 4.74, 10.19, 0.94, 0.26), "StableAvatar": (3.52, 4.47, 3.42, 11.33, 0.93, 0.64),
        "OmniAvatar": (3.53, 4.49, 6.77, 8.22, 0.95, 0.16), "WanS2V": (3.36, 4.29, 5.89, 9.08, 0.95, 0.25),
        "Live Avatar": (3.44, 4.51, 7.03, 8.30, 0.96, 45.2),
    },
    "long": {
        "Ditto": (2.90, 4.48, 3.98, 10.57, 0.97, 21.80), "Hallo3": (2.65, 4.04, 6.18, 9.29, 0.83, 0.26),
        "StableAvatar": (3.00, 4.66, 1.97, 13.57, 0.94, 0.64), "OmniAvatar": (2.36, 2.86, 8.00, 7.59, 0.66, 0.16),
        "WanS2V": (2.63, 3.99, 6.04, 9.12, 0.80, 0.25), "Live Avatar": (3.42, 4.76, 7.16, 8.31, 0.97, 45.2),
    },
}  # fmt: skip
# Table 5, by denoising steps, on the short set: ASE, IQA, Sync-C, Sync-D, Dino-S, first frame in seconds.
TABLE_5 = {
    "2 steps": (3.37, 4.25, 6.41, 9.02, 0.94, 0.68), "3 steps": (3.41, 4.36, 6.58, 8.85, 0.95, 0.95), "4 steps": (3.44, 4.51, 7.03, 8.30, 0.96, 1.21),
}  # fmt: skip
# Table 7, windows of one long stream: ASE, IQA, Sync-C, Dino-S.
TABLE_7 = {
    0: (3.41, 4.77, 7.10, 0.97), 100: (3.43, 4.75, 7.22, 0.96), 1000: (3.40, 4.73, 6.98, 0.96), 10000: (3.42, 4.76, 7.14, 0.96),
}  # fmt: skip


def gain(name: str, before: float, after: float) -> float:
    """How much better `after` is; negative is worse, 0 is neither."""
    measure = MEASURES[name]
    if measure.ideal is not None:
        return abs(before - measure.ideal) - abs(after - measure.ideal)
    return measure.better * (after - before)
