"""Where the time of a block goes: counted GFLOP, time and GFLOP/s by op, beside the GEMM peaks that were just measured on this machine.

A model that is not trained yet is timed by random weights of its sizes: `write_untrained`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from everface.core.config import FPS, SAMPLES_PER_FRAME, Deployment, ModelConfig, StreamConfig
from everface.kernels.video.packed_conv import flop as packed_conv_flop
from everface.networks.audio.articulators import ArticulatorNet
from everface.networks.audio.features import LogMel
from everface.train.codec.model import new_vae
from everface.train.evaluate.offline_stream import OfflineModel
from everface.train.pretrain.dit_files import new_dit
from everface.weights.store import write_model

WARM_UP_BLOCKS = 5  # until the KV rings are full
GEMM_SIDES, GEMM_S, ROUNDS = (256, 512, 1024, 2048, 4096, 8192), 0.05, 5


@dataclass(frozen=True)
class OpRow:
    """One op over one block: self time, and counted operations (a product and a sum are two)."""

    name: str
    calls: float
    ms: float
    gflop: float


@dataclass(frozen=True)
class BlockCost:
    """Medians over the blocks, alone on this machine's threads. `ops` are taken with a profiler running, so their sum is larger."""

    size: tuple[int, int]
    steps_ms: float
    decode_ms: float
    fps: float  # that steps and decoder one after the other would make
    gflop: float
    peak_gflops: dict[str, float]  # of GEMMs of this machine, by dtype
    ops: tuple[OpRow, ...]

    def table(self) -> str:
        """As text."""
        block_ms = self.steps_ms + self.decode_ms
        rate = self.gflop / block_ms * 1e3
        lines = [
            f"{self.size[1]}x{self.size[0]}: a block of 12 frames takes {block_ms:.0f} ms, steps {self.steps_ms:.0f} and decoder {self.decode_ms:.0f}: {self.fps:.1f} fps",
            f"{self.gflop:.1f} GFLOP a block, {rate:.0f} GFLOP/s: "
            + ", ".join(f"{100 * rate / peak:.0f} % of the {peak:.0f} of {name} GEMMs" for name, peak in self.peak_gflops.items()),
            "",
            f"{'op':<44}{'calls':>8}{'ms':>9}{'share':>8}{'GFLOP':>9}{'GFLOP/s':>9}",
        ]
        total = sum(op.ms for op in self.ops)
        for op in self.ops:
            done = f"{op.gflop:9.2f}{op.gflop / op.ms * 1e3:9.0f}" if op.gflop else ""
            lines.append(f"{op.name:<44}{op.calls:>8.0f}{op.ms:>9.1f}{100 * op.ms / total:>7.0f}%{done}")
        return "\n".join(lines)


def write_untrained(config: ModelConfig, folder: Path) -> Path:
    """A model folder of random weights. Returns it."""
    torch.manual_seed(0)
    vae = new_vae(config.vae).state_dict()
    parts = {"vae": vae, "dit": dict(new_dit(config.dit, 0).named_parameters())}
    if config.motion:
        parts["articulators"] = ArticulatorNet(LogMel(config.audio.mels, config.audio.hops).channels).state_dict()
    write_model(folder, config, parts)
    return folder


def measure_block(
    weights: Path | None, deployment: Deployment, size: tuple[int, int] | None = None, blocks: int = 12, most_ops: int = 14
) -> BlockCost:
    """Stream a still gray image in this process and time the blocks of a full window."""
    model = OfflineModel(weights, deployment)
    height, width = size or model.config.size or (model.image_size, model.image_size)
    sync: Callable[[], object] = torch.cuda.synchronize if deployment.device.startswith("cuda") else time.perf_counter
    seconds = (WARM_UP_BLOCKS + blocks + 4) * model.block_frames / FPS
    audio_S = 0.05 * torch.randn(int(seconds * FPS) * SAMPLES_PER_FRAME, generator=torch.Generator().manual_seed(0))
    steps_s, decode_s = [], []
    with model.stream(torch.zeros(3, height, width), StreamConfig()) as stream:
        stream.start_decoding()
        stream_blocks = stream.blocks([audio_S])
        for n in range(WARM_UP_BLOCKS + blocks):
            begin = time.perf_counter()
            block = next(stream_blocks)
            sync()
            middle = time.perf_counter()
            stream.decode(block)
            sync()
            if n >= WARM_UP_BLOCKS:
                steps_s.append(middle - begin)
                decode_s.append(time.perf_counter() - middle)
        with FlopCounterMode(display=False, custom_mapping=_UNKNOWN_TO_TORCH) as counter:
            stream.decode(next(stream_blocks))
        flops = {str(op).rpartition(".")[2]: count for op, count in counter.get_flop_counts()["Global"].items()}
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if deployment.device.startswith("cuda") else [])]
        with profile(activities=kinds) as profiler:
            for _ in range(2):
                stream.decode(next(stream_blocks))
            sync()
    steps, decode = statistics.median(steps_s), statistics.median(decode_s)
    events = sorted(profiler.key_averages(), key=lambda e: -_self_us(e))[:most_ops]
    ops = tuple(OpRow(e.key, e.count / 2, _self_us(e) / 2e3, flops.get(e.key.rpartition("::")[2], 0) / 1e9) for e in events)
    gflop = counter.get_total_flops() / 1e9
    return BlockCost((height, width), 1e3 * steps, 1e3 * decode, model.block_frames / (steps + decode), gflop, gemm_peaks(deployment.device), ops)


def gemm_peaks(device: str) -> dict[str, float]:
    """GFLOP/s of a square GEMM of random data, best of a few, in float32 and bfloat16.

    The smallest of `GEMM_SIDES` that takes `GEMM_S`, or the largest: bfloat16 on a CPU that does not have it is 50 times slower than float32."""
    peaks = {}
    for dtype in (torch.float32, torch.bfloat16):
        for side in GEMM_SIDES:
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            best_s = min(_mm_s(a, b) for _ in range(2))  # the first is slow
            if best_s >= GEMM_S or side == GEMM_SIDES[-1]:
                best_s = min(best_s, *(_mm_s(a, b) for _ in range(ROUNDS)))
                peaks[str(dtype).removeprefix("torch.")] = 2 * side**3 / best_s / 1e9
                break
    return peaks


def _mm_s(a: torch.Tensor, b: torch.Tensor) -> float:
    sync: Callable[[], object] = torch.cuda.synchronize if a.is_cuda else time.perf_counter
    sync()
    begin = time.perf_counter()
    torch.mm(a, b)
    sync()
    return time.perf_counter() - begin


def _self_us(event: object) -> float:
    """Time in the op itself, on the device where there is one."""
    on_device = float(getattr(event, "self_device_time_total", 0.0))
    return on_device or float(getattr(event, "self_cpu_time_total", 0.0))


def _convolution_flop(x: torch.Size, weight: torch.Size, *_: object, out_shape: torch.Size, **__: object) -> int:
    return 2 * out_shape.numel() * weight[1:].numel()


def _attention_flop(q: torch.Size, k: torch.Size, v: torch.Size, *_: object, out_shape: object = None, **__: object) -> int:
    return 2 * q.numel() * k[-2] + 2 * q[:-1].numel() * k[-2] * v[-1]


_UNKNOWN_TO_TORCH = {
    torch.ops.aten.mkldnn_convolution: _convolution_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
    torch.ops.everface.packed_linear: lambda x, packed, bias, *_, **__: 2 * x.numel() * bias[0],
    torch.ops.everface.block_causal_amx: lambda q, k, v, used, **__: 4 * q.numel() * used,
    torch.ops.everface.packed_conv: lambda x, gamma, past, residual, packed, bias, sizes, **__: packed_conv_flop(x, past is not None, sizes),
}
