"""Sync-C and Sync-D, the paper's measures of lip-sync, by SyncNet with its published weights.

The face, cropped as SyncNet's pipeline does from its box, 224 x 224; windows of five frames beside 20 hops of cepstra (`mfcc.py`); embeddings
compared over shifts of +-15 frames, padded with zeros (`sync_search.py`). sync_c = confidence, sync_d = distance, sync_offset in frames,
positive if the video is late. The box is the manifest's and fixed; SyncNet's pipeline detects and smooths one, so figures differ a little for
heads that move far.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from everface.core.config import SAMPLES_PER_FRAME
from everface.genbench.metrics.measurement import Measures, NotAvailable
from everface.genbench.metrics.mfcc import mfcc
from everface.genbench.metrics.sync_search import search_offset
from everface.genbench.metrics.syncnet_network import FRAMES, HOPS, SIZE, SyncNet, load_syncnet
from everface.genbench.windows import Box, ClipWindow

CROP_SCALE = 0.4  # of half the box, added at both sides and below
PADDING = 110  # gray beyond the image's edges
BATCH = 20


class SyncNetSync:
    names = ("sync_c", "sync_d", "sync_offset")

    def __init__(self, network: SyncNet, device: str = "cpu") -> None:
        self.network, self.device = network.to(device), device

    @classmethod
    def load(cls, path: Path | None, device: str = "cpu") -> SyncNetSync:
        """Raises NotAvailable."""
        return cls(load_syncnet(path), device)

    def measure(self, window: ClipWindow) -> Measures:
        if window.face is None:
            raise NotAvailable("the manifest does not say where the face is: add \"face\": [left, top, right, bottom], shares of the image")
        T = min(len(window.frames_THW3), len(window.pcm_S) // SAMPLES_PER_FRAME)
        if T - FRAMES < 1:
            raise NotAvailable(f"{T} frames are too few: SyncNet sees {FRAMES} at once")
        found = search_offset(*self.embed(face_crops(window.frames_THW3[:T], window.face), window.pcm_S, T - FRAMES), pad=True)
        return {"sync_c": found.confidence, "sync_d": found.distance, "sync_offset": float(found.offset)}

    @torch.inference_mode()
    def embed(self, crops_THW3: Tensor, pcm_S: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """(mouths, audio) [count, 1024], one a frame, of RGB crops and audio in -1..1."""
        bgr_3THW = crops_THW3.flip(3).permute(3, 0, 1, 2)
        cepstra_CT = mfcc((pcm_S.clamp(-1, 1) * 32767).round()).T
        mouths, audio = [], []
        for at in range(0, count, BATCH):
            each = range(at, min(at + BATCH, count))
            frames = torch.stack([bgr_3THW[:, t : t + FRAMES] for t in each]).float().to(self.device)
            hops = torch.stack([cepstra_CT[None, :, 4 * t : 4 * t + HOPS] for t in each]).to(self.device)
            mouths.append(self.network.embed_mouth(frames).cpu())
            audio.append(self.network.embed_audio(hops).cpu())
        return torch.cat(mouths), torch.cat(audio)


def face_crops(frames_THW3: Tensor, face: Box) -> Tensor:
    """The square around a face that SyncNet was trained on, uint8 [T, 224, 224, 3]: half the box's longer side times 1.4 to the left, right
    and, from its middle, 1 time up and 1.8 times down."""
    _, H, W, _ = frames_THW3.shape
    left, top, right, bottom = (share * side for share, side in zip(face, (W, H, W, H)))
    half, x, y = max(right - left, bottom - top) / 2, (left + right) / 2, (top + bottom) / 2
    first_x, first_y, side = round(x - half * (1 + CROP_SCALE)), round(y - half), round(half * (2 + 2 * CROP_SCALE))
    rim = max(0, -first_x, -first_y, first_x + side - W, first_y + side - H)
    padded = F.pad(frames_THW3.permute(0, 3, 1, 2), (rim,) * 4, value=PADDING)
    crop = padded[..., first_y + rim : first_y + rim + side, first_x + rim : first_x + rim + side]
    parts = [F.interpolate(part.float(), (SIZE, SIZE), mode="bilinear") for part in crop.split(64)]
    return torch.cat([part.round().to(torch.uint8) for part in parts]).permute(0, 2, 3, 1)
