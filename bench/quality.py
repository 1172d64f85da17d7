"""The error of fewer bits, on a CPU: the video of the bundled model, one velocity of a random model, one attention.

    python -m bench.quality                   all three, a line each and a JSON object at the end
    python -m bench.quality video --seconds 2 --dtypes fp8,fp8-attention

Every figure is against float32. The references multiply quantized values in float32, so they lack the error of a
GPU's sums of 22 bits, and they do not use the released weights. docs/numerics.md quotes the results.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import torch

from bench.stream.random14b import random_dit
from everface.avatar.avatar import Avatar
from everface.core.config import SAMPLE_RATE, Deployment, DiTConfig, StreamConfig
from everface.kernels.attention.block_causal import block_causal_reference
from everface.kernels.attention.block_causal_fp8 import block_causal_fp8_reference
from everface.kernels.fused.row_primitives import to_e4m3
from everface.media.audio import read_audio
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS
from everface.networks.transformer.qkv_scales import power_of_two
from everface.weights.quantize import quantize_for_dtype

DTYPES = ("bfloat16", "fp8", "fp8-attention")
PICTURE, SOUND, SEED = DEFAULT_WEIGHTS / "mia.png", DEFAULT_WEIGHTS / "speech.wav", 1
FRAMES = 12  # of a block
RANDOM = DiTConfig(
    dim=512, ffn_dim=1024, freq_dim=64, num_heads=4, num_layers=6, text_dim=32, text_len=16, audio_dim=16, wav2vec_layers=1,
    audio_inject_layers=(0, 2, 4),
)  # fmt: skip


def video(dtype: str, seconds: float) -> torch.Tensor:
    """uint8 [T, H, W, 3] of the bundled character saying the bundled clip, official sampler, no encoder of video in between."""
    pcm_S = torch.cat([torch.as_tensor(part) for part in read_audio(SOUND, SAMPLE_RATE)])[: int(seconds * SAMPLE_RATE)]
    with Avatar(deployment=Deployment(dtype=dtype)) as avatar, avatar.open(PICTURE, StreamConfig(seed=SEED)) as session:
        for part_S in pcm_S.split(SAMPLE_RATE // 2):
            while not session.push_audio(part_S):
                session.wait(0.05)
        session.end_segment()
        return torch.cat([block.frames_THW3 for block in session.frames()])


def psnr(got: torch.Tensor, want: torch.Tensor) -> float:
    return 10 * math.log10(255**2 / max((got.float() - want.float()).square().mean().item(), 1e-9))


def videos(dtypes: list[str], seconds: float) -> dict[str, Any]:
    """PSNR in dB of the whole video, of its worst frame and its worst block."""
    exact, found = video("float32", seconds), {}
    for dtype in dtypes:
        got = video(dtype, seconds)
        pairs = list(zip(got.split(FRAMES), exact.split(FRAMES), strict=True))
        found[dtype] = {
            "psnr": psnr(got, exact), "worst_frame": min(psnr(a, b) for a, b in zip(got, exact, strict=True)),
            "worst_block": min(psnr(a, b) for a, b in pairs), "frames": len(got),
        }  # fmt: skip
    return found


@torch.no_grad()
def velocity(dtype: str, blocks: int = 6) -> torch.Tensor:
    """Of the last of a few blocks of a random model; its ring has wrapped by then."""
    torch.manual_seed(3)
    dit = random_dit(RANDOM, "cpu", torch.float32).to(torch.float32 if dtype == "float32" else torch.bfloat16).fuse()
    quantize_for_dtype(dit, dtype)
    ref, motion = (torch.randn(16, n, 16, 16).to(dit.dtype) for n in (1, 19))
    text_kv, cache, v = dit.text_kv(dit.embed_text(torch.randn(16, 32))), dit.new_cache(16, 16), torch.empty(0)
    cache.prime(*dit.prefill_sink(ref, motion, text_kv))
    for block in range(blocks):
        x, sound = torch.randn(16, 3, 16, 16).to(dit.dtype), (torch.randn(3, 5, 512), torch.randn(3, 512))
        v = dit(x, dit.time(857.0), text_kv, sound, cache, block, 7)
    return v.float()


def velocities(dtypes: list[str]) -> dict[str, float]:
    exact = velocity("float32")
    return {dtype: relative(velocity(dtype), exact) for dtype in dtypes}


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """The norm of the difference over that of `want`."""
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def attentions(tokens: int = 256, keys: int = 4096, heads: int = 2, d: int = 128) -> dict[str, dict[str, float]]:
    """Standard normals under the scales of the released width: relative error, and largest error over largest output. `sharp`: queries
    four times as long, so that a few keys have most of the weight."""
    drawn = torch.Generator().manual_seed(1)
    qk_scale = power_of_two(torch.tensor([5120**0.5] * heads))
    found = {}
    for name, longer, mean in (("flat", 1.0, 0.0), ("sharp", 4.0, 0.0), ("values with a mean", 1.0, 1.0)):
        q, k, v = (torch.randn(n, heads, d, generator=drawn) for n in (tokens, keys, keys))
        q, v = longer * q, v + mean
        exact = block_causal_reference(q.double(), k.double(), v.double(), keys)
        half = block_causal_reference(q.bfloat16(), k.bfloat16(), v.bfloat16(), keys)
        q8, k8, v8 = (to_e4m3(x / qk_scale[:, None]) for x in (q, k, v))
        quantized = block_causal_fp8_reference(q8, k8, v8.permute(1, 2, 0), keys, qk_scale.square(), qk_scale)
        for dtype, got in (("bfloat16", half), ("fp8", quantized)):
            largest = (got.double() - exact).abs().max() / exact.abs().max()
            found[f"{name}, {dtype}"] = {"relative": relative(got, exact), "largest": largest.item()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["attention", "velocity", "video"], help="attention, velocity, video")
    parser.add_argument("--seconds", type=float, default=2.0, help="of the video")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    args = parser.parse_args()
    dtypes, found = args.dtypes.split(","), dict[str, Any]()
    measures = {"attention": attentions, "velocity": lambda: velocities(dtypes), "video": lambda: videos(dtypes, args.seconds)}
    for part in args.parts:
        found[part] = measures[part]()
        for name, figures in found[part].items():
            print(f"{part:10} {name:28} {figures}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
