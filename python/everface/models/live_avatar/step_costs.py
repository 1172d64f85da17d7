"""Forecast cost of a denoising step of the 14B model at 704x384 with a full ring: counted work over rates measured on one H200.

`STEP_COSTS` maps a configuration to its `StepCost`, for `everface simulate` and docs/tuning.md, which explains the counts and has every
measurement. `parts_ms` gives the same sum part by part. On other GPUs, an H100 among them, nothing was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypedDict

from everface.core.config import DiTConfig
from everface.networks.transformer.dit import cache_shape

GPU = "NVIDIA H200"
LATENT = (48, 88)  # rows and columns of a latent frame at 704x384
DECODE_MS = 67.2  # a block through the VAE's decoder, measured: bench/results/h200/vae.jsonl
ROW_OPS_TB_S = {"bfloat16": 3.6, "fp8": 3.1, "fp8-attention": 2.9}  # counted bytes over measured time: launches.jsonl
ATTENTION_TFLOP_S = {  # of a layer with 15,312 keys: attention.jsonl, attention-gluon.jsonl
    ("bf16", "triton"): 414.0,
    ("bf16", "cudnn"): 543.0,
    ("bf16", "gluon"): 609.0,
    ("e4m3", "triton"): 616.0,
    ("e4m3", "gluon"): 793.0,
}
MEASURED_MS = {  # a captured step, median of 20: step*.jsonl and earlier.jsonl
    "bf16, cudnn": 206.3,
    "bf16, gluon": 197.1,
    "fp8, cudnn": 154.1,
    "fp8, gluon": 144.4,
    "fp8-attention, gluon": 129.1,
}


class StepCost(TypedDict):
    """Of one configuration: a step, as forecast and as measured (None: not measured), and the decoding of a block in milliseconds;
    the rates of the sum."""

    step_ms: float
    measured_ms: float | None
    decode_ms: float
    assumes: str


class MeasuredSession(NamedTuple):
    """A session on one device, end to end but for audio front end and prompt encoder: session.jsonl, skip-null-gluon-e4m3.jsonl."""

    configuration: str
    steps: int
    fps: float
    first_frame_ms: float  # of a session opened after another one


MEASURED_SESSIONS = (MeasuredSession("fp8, cudnn", 4, 17.7, 680.0), MeasuredSession("fp8-attention, gluon", 3, 26.5, 590.0))


@dataclass(frozen=True)
class Rates:
    """GEMMs and attention in TFLOP/s, memory of the row ops in TB/s, as in the launches of one step (launches.jsonl)."""

    attention: float
    memory: float
    bf16: float = 760.0
    fp8: float = 1460.0
    text: float = 355.0
    other_ms: float = 0.5  # fills by libraries, patches, the head, tables
    repeated: float = 1.055  # a step that repeats over the sum of its launches: gaps between them, and clocks at the power limit


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
    parts = {
        "GEMMs of the blocks": gemms(2 * tokens * d * (6 * d + 2 * ffn) * layers, quantized),
        "GEMMs of the audio": gemms(2 * tokens * d * 2 * d * injected, quantized),
        "self-attention": 4 * tokens * (ring + sink) * d * layers / rates.attention / 1e9,
        "text attention": 4 * tokens * cfg.text_len * d * layers / rates.text / 1e9,
        "row ops": moved(layers * layer_bytes + injected * audio_bytes),
        "rotation of the sink": moved(layers * sink * d * (3 if narrow else 4)),
        "other launches": rates.other_ms,
    }
    return {**parts, "gaps and power limit": (rates.repeated - 1) * sum(parts.values())}


def rates_of(dtype: str, backend: str) -> Rates:
    """The measured rates of a configuration: a dtype as `parts_ms` takes it, an attention backend of ATTENTION_TFLOP_S."""
    return Rates(ATTENTION_TFLOP_S["e4m3" if dtype == "fp8-attention" else "bf16", backend], ROW_OPS_TB_S[dtype])


def _cost(name: str) -> StepCost:
    short, _, backend = name.partition(", ")
    dtype = {"bf16": "bfloat16"}.get(short, short)
    rates = rates_of(dtype, backend)
    assumes = f"GEMMs at {rates.bf16 if dtype == 'bfloat16' else rates.fp8:g}, attention by {backend} at {rates.attention:g} TFLOP/s"
    step_ms = round(sum(parts_ms(dtype, rates).values()), 1)
    return {"step_ms": step_ms, "measured_ms": MEASURED_MS.get(name), "decode_ms": DECODE_MS, "assumes": assumes}


_CONFIGURATIONS = ("bf16, triton", "bf16, cudnn", "bf16, gluon", "fp8, cudnn", "fp8, gluon", "fp8-attention, triton", "fp8-attention, gluon")
STEP_COSTS: dict[str, StepCost] = {name: _cost(name) for name in _CONFIGURATIONS}
