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
    about: str = ""  # what it is and where it comes from, for the report


MEASURES = {
    "ase": Measure("ASE", 1, paper="ASE", about="Q-Align's rating of aesthetics, 1 to 5, of one frame a second (arXiv 2312.17090)"),
    "iqa": Measure("IQA", 1, paper="IQA", about="Q-Align's rating of quality, likewise"),
    "sync_c": Measure("Sync-C", 1, paper="Sync-C", about="SyncNet's confidence: median minus least distance over shifts of +-15 frames (Chung and Zisserman 2016)"),
    "sync_d": Measure("Sync-D", -1, paper="Sync-D", about="SyncNet's least distance over these shifts"),
    "sync_offset": Measure("SyncNet offset, frames", 0, 0, 0.0, about="the shift of that least distance; positive: the video is late"),
    "dino_s": Measure("Dino-S", 1, paper="Dino-S", about="cosine of DINOv2's class tokens, frames with the reference image (arXiv 2304.07193)"),
    "lip_corr": Measure("lip correlation (truth)", 1, 3, about="correlation of the mouth's opening, read from the pixels, with the true one, at the best lag"),
    "lip_lag": Measure("lip lag, frames (truth)", 0, 0, 0.0, about="that lag; positive: the mouth is late"),
    "lip_amplitude": Measure("lip amplitude (truth)", 0, 2, 1.0, about="standard deviation of the opening that was read over the true one's"),
    "av_offset": Measure("A/V offset, frames", 0, 0, 0.0, about="the shift at which a network of ours, trained on drawn mouths, finds audio and video nearest; positive: the video is late"),
    "av_confidence": Measure("A/V confidence", 1, 3, about="as Sync-C, by that network: another scale"),
    "av_distance": Measure("A/V distance", -1, 3, about="as Sync-D, by that network: another scale"),
    "color_likeness": Measure("color likeness", 1, 3, about="overlap of the face's color histogram with the reference image's; a coarse guard of identity"),
    "t_flicker": Measure("T.Flicker", 1, 4, paper="T.Flicker", about="VBench's temporal flickering, 1 minus the mean change of a pixel (arXiv 2311.17982); a still image has 1"),
    "block_flicker": Measure("block-edge flicker", 0, 2, 1.0, about="change every 12 frames over change inside; 1 is seamless"),
    "motion": Measure("motion, gray levels", 0, about="mean change per frame inside the face"),
    "expression_std": Measure("expression deviation, gray levels", 0, about="standard deviation over time inside the face"),
    "frozen": Measure("frozen frames, share", -1, 3, about="share of frames that equal the one before"),
    "fps": Measure("FPS", 1, 1, paper="FPS", about="frames / seconds from the open session to the last frame in hand, decoding included"),
    "fps_with_loading": Measure("FPS with loading", 1, 2, about="frames / seconds of the whole process, loading included"),
    "first_frame_s": Measure("first frame, s", -1, about="from the open session, its model warm, to the first block in hand"),
    "cold_first_frame_s": Measure("first frame with loading, s", -1, about="from the start of loading to the first block in hand, once a process"),
    "speech_ms_p50": Measure("silence to speech p50, ms", -1, 0, about="a live session idles, then somebody speaks: from the first audio to its first frame"),
    "speech_ms_p95": Measure("silence to speech p95, ms", -1, 0, about="likewise, of ten times; `everface bench live` has more of such figures"),
    "block_ms_p50": Measure("block interval p50, ms", -1, 0, about="between two blocks in hand, as fast as they come"),
    "block_ms_p95": Measure("block interval p95, ms", -1, 0, about="likewise"),
    "block_ms_p99": Measure("block interval p99, ms", -1, 0, about="likewise"),
    "deadline_misses": Measure("blocks over their deadline, share", -1, 3, about="blocks that came later after their predecessor than it takes to play"),
    "rss_mb": Measure("memory, MB", -1, 0, about="resident memory of all processes at the clip's end"),
    "memory_mb_per_1000s": Measure("memory growth, MB / 1,000 s", -1, 1, about="slope of resident memory over the video's time, least squares, without the first 20 s; for clips of a minute or more"),
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
