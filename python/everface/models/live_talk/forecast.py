"""What LiveTalk costs, for the planner: counted operations over the rates of a card, and memory of its devices.

Nothing here was measured on LiveTalk. Operations are counted from the sizes (a multiply-add is two); the decoder's were counted on the official
VAE. The rates of the 24 GB card are an assumption, those of the H200 were measured on the 14B model's shapes, which are larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from everface.core.config import VAEConfig
from everface.core.live_talk_config import LiveTalkConfig, LiveTalkModelConfig
from everface.models.live_talk.names import DECODE, DENOISE, ROLES, STEPS, block_format
from everface.networks import sizes
from everface.runtime.planning.forecast import Forecast, Times, simulate
from everface.runtime.planning.placement import place
from everface.runtime.planning.planner import GIB

SIZE = (512, 512)  # height, width that the release was trained at
DECODE_TFLOP, FIRST_DECODE_TFLOP = 26.6, 20.6  # a block of 64x64 latents through the decoder, and a stream's first


@dataclass(frozen=True)
class Card:
    """Rates in TFLOP/s of the linear layers, of attention and of the decoder. `source` says where they are from."""

    name: str
    dtype: str
    linear: float
    attention: float
    decoder: float
    source: str


CARDS = (
    Card("24 GB card, bf16", "bfloat16", 100, 100, 100, "assumed: about 60 % of the bf16 peak of a 4090-class card"),
    Card("24 GB card, fp8", "fp8", 200, 100, 100, "assumed: GEMMs twice as fast in fp8"),
    Card("H200, bf16", "bfloat16", 760, 609, 409, "measured on the 14B model's shapes, its VAE at 704x384"),
    Card("H200, fp8", "fp8", 1460, 609, 409, "measured on the 14B model's shapes, its VAE at 704x384"),
)

STRIDE = VAEConfig().stride


def forward_tflop(cfg: LiveTalkConfig, size: tuple[int, int], blocks: int) -> tuple[float, float]:
    """(linear layers, attention) of one forward of a block that attends to so many blocks, itself included."""
    tokens = block_tokens(cfg, size)
    linear = cfg.num_layers * 2 * tokens * (6 * cfg.dim**2 + 2 * cfg.dim * cfg.ffn_dim)
    attention = cfg.num_layers * 4 * tokens * (blocks * tokens + cfg.text_len) * cfg.dim
    return linear / 1e12, attention / 1e12


def block_tokens(cfg: LiveTalkConfig, size: tuple[int, int]) -> int:
    h, w = size[0] // STRIDE[1], size[1] // STRIDE[2]
    return cfg.block_frames * (h // cfg.patch_size[1]) * (w // cfg.patch_size[2])


def forward_ms(card: Card, cfg: LiveTalkConfig, size: tuple[int, int], blocks: int | None = None) -> float:
    """Of one forward, with the cache full unless `blocks` says how many are in it."""
    linear, attention = forward_tflop(cfg, size, blocks or cfg.window_blocks)
    return 1e3 * (linear / card.linear + attention / card.attention)


def decode_ms(card: Card, size: tuple[int, int], first: bool = False) -> float:
    """Of decoding a block, or a stream's first."""
    scale = size[0] * size[1] / (SIZE[0] * SIZE[1])
    return 1e3 * scale * (FIRST_DECODE_TFLOP if first else DECODE_TFLOP) / card.decoder


def block_times(step_ms: float, decode_ms: float, transfer_ms: float = 0.5, prepare_ms: float = 0.0, jitter: float = 0.0) -> Times:
    """Times of a block in milliseconds: one forward, decoding, one transfer, audio features. Raises BadInput."""
    times = {DENOISE: STEPS * step_ms, DECODE: decode_ms}
    return Times(times, transfer_ms, prepare_ms, jitter, format=block_format(LiveTalkConfig()), rest_ms={DENOISE: step_ms})


def forecast_table(
    devices: int, transfer_ms: float = 0.5, jitter: float = 0.0, sessions: int = 1, live: bool = False, size: tuple[int, int] = SIZE
) -> list[tuple[Card, float, float, float, tuple[Forecast, ...]]]:
    """Rows (card, ms of a forward, ms of decoding, ms to the first frame of a stream, forecasts on 1 to `devices` devices). Raises BadInput."""
    cfg, placements = LiveTalkConfig(), [place(ROLES, n) for n in range(1, devices + 1)]
    rows = []
    for card in CARDS:
        step_ms, decoding_ms = forward_ms(card, cfg, size), decode_ms(card, size)
        first_ms = STEPS * forward_ms(card, cfg, size, 1) + decode_ms(card, size, first=True)
        times = block_times(step_ms, decoding_ms, transfer_ms, jitter=jitter)
        rows.append((card, step_ms, decoding_ms, first_ms, tuple(simulate(p, times, sessions=sessions, live=live) for p in placements)))
    return rows


@dataclass(frozen=True)
class LiveTalkMemory:
    """Bytes of device memory: `everface.runtime.planning.planner.Memory`. What has no session in its name is taken once."""

    process: int
    weights: int
    work: int  # activations of a forward
    session_cache: int  # keys and values of the blocks, and of the prompt
    decoder: int  # weights and work
    session_decode: int  # what its convolutions remember
    front: int  # the session's own process, beside the first device's roles
    encoder_on_cpu: bool = False  # Deployment(image_encoder="cpu"): then the session's process is not on a device

    def __call__(self, roles: Sequence[str], sessions: int, first: bool) -> dict[str, int]:
        parts = {"process": self.process}
        if DENOISE in roles:
            parts |= {"weights": self.weights, "forward": self.work, f"{sessions} KV cache(s)": sessions * self.session_cache}
        if DECODE in roles:
            parts |= {"decoder": self.decoder, "decoder streams": sessions * self.session_decode}
        if first and not self.encoder_on_cpu:
            parts["session process"] = self.front
        return parts


def device_memory(size: tuple[int, int], dtype: str) -> LiveTalkMemory:
    """Of the released model. `dtype`: bfloat16, fp8 or fp8-attention."""
    config = LiveTalkModelConfig()
    cfg, (h, w) = config.dit, (size[0] // STRIDE[1], size[1] // STRIDE[2])
    decoder, stream = sizes.decoder_sizes(config.vae, h, w)
    tokens, linear = block_tokens(cfg, size), cfg.num_layers * (6 * cfg.dim**2 + 2 * cfg.dim * cfg.ffn_dim)
    cache = 2 * cfg.num_layers * cfg.window_blocks * tokens * cfg.dim
    return LiveTalkMemory(
        process=GIB,
        weights=2 * parameters(cfg) - (0 if dtype == "bfloat16" else linear),
        work=4 * tokens * (cfg.ffn_dim + 8 * cfg.dim),
        session_cache=(1 if dtype == "fp8-attention" else 2) * cache + 2 * 2 * cfg.num_layers * cfg.text_len * cfg.dim,
        decoder=2 * (decoder + sizes.decode_work_values(config.vae, h, w)),
        session_decode=2 * stream,
        front=GIB + 4 * sizes.encode_work_values(config.vae, h, w),
    )


def parameters(cfg: LiveTalkConfig) -> int:
    """Of the transformer, counted from its sizes."""
    d, ffn = cfg.dim, cfg.ffn_dim
    attention = 4 * (d * d + d) + 2 * d
    block = 2 * attention + 2 * d + (d * ffn + ffn) + (ffn * d + d) + 6 * d
    area = cfg.patch_size[1] * cfg.patch_size[2]
    embeddings = (cfg.in_dim * area * d + d) + (cfg.text_dim * d + d) + 2 * (d * d + d) + (cfg.freq_dim * d + d) + (6 * d * d + 6 * d)
    head = d * cfg.out_dim * area + cfg.out_dim * area + 2 * d
    audio = 4 * cfg.audio_channels * cfg.audio_hidden_size + 3 * cfg.audio_hidden_size + len(cfg.audio_layers) * (cfg.audio_hidden_size * d + d)
    return cfg.num_layers * block + embeddings + head + audio
