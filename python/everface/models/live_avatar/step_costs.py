"""Forecast cost of a denoising step of the 14B model at 704x384 with a full ring, from counted work and assumed rates. Nothing is measured.

`STEP_COSTS` maps a configuration to {"step_ms", "decode_ms", "assumes"}, for `everface simulate` and docs/tuning.md, which explains the
counts. `parts_ms` gives the same sum part by part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from everface.core.config import DiTConfig
from everface.networks.transformer.dit import cache_shape

LATENT = (48, 88)  # rows and columns of a latent frame at 704x384
DECODE_MS = 63.0  # a block through the VAE's decoder: docs/tuning.md, Video
LAUNCHES = {"bfloat16": 644, "fp8": 684, "fp8-attention": 684}  # of a captured step: tests/runtime/launches.py


class StepCost(TypedDict):
    """Of one configuration: a step and the decoding of a block in milliseconds, and what the sum assumes."""

    step_ms: float
    decode_ms: float
    assumes: str


@dataclass(frozen=True)
class Rates:
    """Assumed rates: GEMMs and attention in TFLOP/s, memory in TB/s, the gap between two launches of a captured graph in microseconds."""

    attention: float
    bf16: float = 700.0
    fp8: float = 1150.0
    text: float = 480.0
    memory: float = 4.0
    gap_us: float = 2.0


def parts_ms(dtype: str, rates: Rates, cfg: DiTConfig | None = None) -> dict[str, float]:
    """Milliseconds of a step by part. `dtype`: bfloat16, fp8 or fp8-attention, as a deployment names it."""
    cfg = cfg or DiTConfig()
    (layers, ring, _, _), (_, sink, _, _) = cache_shape(cfg, *LATENT)
    tokens, d, ffn, injected = ring // cfg.window_blocks, cfg.dim, cfg.ffn_dim, len(cfg.audio_inject_layers)
    quantized, narrow = dtype != "bfloat16", dtype == "fp8-attention"

    def gemms(flops: float, in_fp8: bool) -> float:
        return flops / (rates.fp8 if in_fp8 else rates.bf16) / 1e9

    def moved(values: float) -> float:
        return values / rates.memory / 1e9

    u = 1 if quantized else 2  # bytes of a norm's output
    # Bytes a token and channel: end of a block with the next input, norm3, the norm before the FFN, q/k/v into the ring, text queries.
    layer = (8 + u) + (8 + u) + (10 + u) + (9 if narrow else 12) + 4
    layer_bytes = tokens * (d * (layer + (3 if quantized else 0)) + ffn * (3 if quantized else 4))  # quantize_rows of o and FFN, or GELU
    audio_bytes = tokens * d * ((8 + u) + 4 + (2 + u) - 2)  # norm, queries, attention; the next input then reads 16 bits instead of 32
    return {
        "GEMMs of the blocks": gemms(2 * tokens * d * (6 * d + 2 * ffn) * layers, quantized),
        "GEMMs of the audio": gemms(2 * tokens * d * 2 * d * injected, quantized),
        "self-attention": 4 * tokens * (ring + sink) * d * layers / rates.attention / 1e9,
        "text attention": 4 * tokens * cfg.text_len * d * layers / rates.text / 1e9,
        "row ops": moved(layers * layer_bytes + injected * audio_bytes),
        "rotation of the sink": moved(layers * sink * d * (3 if narrow else 4)),
        "gaps between launches": LAUNCHES[dtype] * rates.gap_us / 1e3,
    }


def _cost(dtype: str, attention: float, by: str) -> StepCost:
    rates = Rates(attention)
    gemms = f"GEMMs at {rates.fp8:g} in fp8 and {rates.bf16:g} in bf16" if dtype != "bfloat16" else f"GEMMs at {rates.bf16:g}"
    assumes = f"{gemms}, attention by {by} at {attention:g} TFLOP/s, memory at {rates.memory:g} TB/s; counted, not measured"
    return {"step_ms": round(sum(parts_ms(dtype, rates).values()), 1), "decode_ms": DECODE_MS, "assumes": assumes}


STEP_COSTS: dict[str, StepCost] = {
    "bf16, triton": _cost("bfloat16", 475, "triton"),
    "bf16, cudnn": _cost("bfloat16", 690, "cuDNN"),
    "fp8, cudnn": _cost("fp8", 690, "cuDNN"),
    "fp8, gluon": _cost("fp8", 600, "gluon in bf16"),
    "fp8-attention, triton": _cost("fp8-attention", 600, "triton in e4m3"),
    "fp8-attention, gluon at 600": _cost("fp8-attention", 600, "gluon in e4m3"),
    "fp8-attention, gluon at 750": _cost("fp8-attention", 750, "gluon in e4m3"),
    "fp8-attention, gluon at 900": _cost("fp8-attention", 900, "gluon in e4m3"),
}
