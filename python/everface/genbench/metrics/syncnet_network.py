"""SyncNet's two towers (Chung and Zisserman, "Out of time: automated lip sync in the wild", 2016), with the names of its published weights.

`syncnet_v2.model` is a pickled state dict; convert it once, on a machine where you trust it, to safetensors (docs/genbench.md).
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from everface.genbench.metrics.measurement import NotAvailable

FRAMES, SIZE, HOPS = 5, 224, 20  # of a window: video frames of 224 x 224, and cepstra
DIM = 1024


class SyncNet(nn.Module):
    """Embeds mouths, `netcnnlip` and `netfclip`, and audio, `netcnnaud` and `netfcaud`, as [N, DIM]."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_layer2(1, 64, 3, padding=1), nn.MaxPool2d(1, 1),
            *_layer2(64, 192, 3, padding=1), nn.MaxPool2d(3, (1, 2)),
            *_layer2(192, 384, 3, padding=1), *_layer2(384, 256, 3, padding=1), *_layer2(256, 256, 3, padding=1), nn.MaxPool2d(3, 2),
            *_layer2(256, 512, (5, 4)),
        )  # fmt: skip
        self.netfcaud = _head()
        self.netcnnlip = nn.Sequential(
            *_layer3(3, 96, (5, 7, 7), stride=(1, 2, 2)), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_layer3(96, 256, (1, 5, 5), stride=(1, 2, 2), padding=(0, 1, 1)), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *_layer3(256, 256, (1, 3, 3), padding=(0, 1, 1)), *_layer3(256, 256, (1, 3, 3), padding=(0, 1, 1)),
            *_layer3(256, 256, (1, 3, 3), padding=(0, 1, 1)), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_layer3(256, 512, (1, 6, 6)),
        )  # fmt: skip
        self.netfclip = _head()

    def embed_mouth(self, bgr_N3THW: Tensor) -> Tensor:
        """Five frames of a face, blue first, 0..255, [N, 3, 5, 224, 224]."""
        return self.netfclip(self.netcnnlip(bgr_N3THW).flatten(1))

    def embed_audio(self, cepstra_N1CT: Tensor) -> Tensor:
        """20 hops of 13 cepstra, [N, 1, 13, 20]."""
        return self.netfcaud(self.netcnnaud(cepstra_N1CT).flatten(1))


def load_syncnet(path: Path | None) -> SyncNet:
    """The network with a safetensors file's weights. Raises NotAvailable."""
    if path is None:
        raise NotAvailable("needs SyncNet's weights: convert syncnet_v2.model to safetensors (docs/genbench.md) and pass it as --syncnet FILE")
    network = SyncNet()
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise NotAvailable(f"{path} cannot be read as safetensors ({error}): convert SyncNet's weights as docs/genbench.md says") from None
    except RuntimeError as error:
        raise NotAvailable(f"{path} has other weights than SyncNet's ({' '.join(str(error).split())[:160]})") from None
    return network.eval().requires_grad_(False)


def _layer2(n_in: int, n_out: int, kernel: int | tuple[int, int], padding: int = 0) -> tuple[nn.Module, ...]:
    return nn.Conv2d(n_in, n_out, kernel, padding=padding), nn.BatchNorm2d(n_out), nn.ReLU()


Triple = tuple[int, int, int]


def _layer3(n_in: int, n_out: int, kernel: Triple, stride: Triple = (1, 1, 1), padding: Triple = (0, 0, 0)) -> tuple[nn.Module, ...]:
    return nn.Conv3d(n_in, n_out, kernel, stride, padding), nn.BatchNorm3d(n_out), nn.ReLU()


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, DIM))
