"""Audio-video sync by our own small network, always available where the face's box is known.

Embeddings of five frames of the mouth and of the audio around them (`av_network.py`), searched over shifts of +-15 frames as SyncNet does
(`sync_search.py`). av_confidence, av_distance: as Sync-C and Sync-D, but of unit vectors, so on another scale. av_offset: frames, positive if
the video is late. Trained on drawn mouths only: on other faces a low confidence may be the network's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from everface.genbench.metrics.av_network import MOUTH_HW, AVNetwork, audio_windows, mouth_windows, shipped
from everface.genbench.metrics.measurement import Measures, NotAvailable
from everface.genbench.metrics.sync_search import SHIFT, search_offset
from everface.genbench.windows import ClipWindow, mouth_of

MIN_FRAMES = 3 * SHIFT


class AVSync:
    names = ("av_confidence", "av_distance", "av_offset")

    def __init__(self, network: AVNetwork | None = None) -> None:
        self.network = network or shipped()

    @torch.inference_mode()
    def measure(self, window: ClipWindow) -> Measures:
        if window.face is None:
            raise NotAvailable("the manifest does not say where the face is: add \"face\": [left, top, right, bottom], shares of the image")
        T = len(window.frames_THW3)
        if T < MIN_FRAMES:
            raise NotAvailable(f"{T} frames are too few to search shifts of {SHIFT}: {MIN_FRAMES} are needed")
        mouth = window.region(mouth_of(window.face)).float().mean(3)
        mouth_Thw = F.interpolate(mouth[:, None], MOUTH_HW, mode="bilinear", antialias=True)[:, 0] / 255
        video_TD = torch.cat([self.network.embed_mouth(part) for part in mouth_windows(mouth_Thw).split(128)])
        audio_TD = self.network.embed_audio(audio_windows(window.pcm_S, T))
        found = search_offset(video_TD, audio_TD, pad=False)
        return {"av_confidence": found.confidence, "av_distance": found.distance, "av_offset": float(found.offset)}
