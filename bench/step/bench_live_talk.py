"""A block of LiveTalk-1.3B through its roles, with the cache full: four forwards, the clean forward behind them, decoding.

    python -m bench.gpu --parts livetalk             on a GPU, at 512x512
    python -m bench.gpu --parts livetalk --tiny      on a CPU, at tiny sizes, to see that it runs

Weights are random (bench/stream/random14b.py). A row is named by the dtype of its GEMMs and its attention (bench/attention.py). `fps` is that of
one device, which decodes beside nothing: 12 frames over the sum of the three times.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bench.attention import deployment, parametrize, select
from bench.peaks import device, device_name
from bench.rows import commit
from bench.stream.random14b import CONFIG, ON_GPU, draw_all, random_decoder

from everface.core.live_talk_config import LiveTalkConfig
from everface.models.live_avatar.builders import decoder_dtype, dtype_of
from everface.models.live_avatar.names import FINITE
from everface.models.live_talk.conditions import block_noise
from everface.models.live_talk.forecast import forward_tflop
from everface.models.live_talk.names import AUDIO, FPS, REFERENCE, STEPS, TEXT, block_format
from everface.models.live_talk.roles import DenoiseRole, StreamDecodeRole
from everface.networks.transformer.live_talk import LiveTalkDiT
from everface.runtime.messages import Block, OpenSession

TINY = LiveTalkConfig(
    dim=128, ffn_dim=256, freq_dim=32, num_heads=2, num_layers=4, text_dim=16, text_len=8, audio_channels=84, audio_hidden_size=12, audio_layers=(2, 3)
)  # fmt: skip
CFG = LiveTalkConfig() if ON_GPU else TINY
SIDE = 64 if ON_GPU else 8  # latent cells
ROUNDS = 20 if ON_GPU else 3


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc)


def block(index: int) -> Block:
    shape = (CFG.out_dim, CFG.block_frames, SIDE, SIDE)
    audio = torch.randn(len(CFG.audio_layers), CFG.block_frames, CFG.dim, generator=torch.Generator().manual_seed(index % 64))
    return Block(1, 0, index, 0, 12, block_noise(0, index, 0, shape), {AUDIO: audio})


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds until the device has done it."""
    start = time.perf_counter()
    got = call()
    if ON_GPU:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start), got


def test_block(benchmark: Any, gemms: str, attention: str) -> None:
    chosen = deployment(gemms, attention, device().type)
    info: dict[str, Any] = select(chosen, CFG.head_dim)
    with torch.device("meta"):
        dit = LiveTalkDiT(CFG).to(dtype_of(chosen))
    draw_all(dit, device(), chosen.dtype)
    roles = DenoiseRole(dit.fuse(), chosen), StreamDecodeRole(random_decoder(CONFIG.vae, device(), decoder_dtype(chosen)), chosen)
    drawn = torch.Generator().manual_seed(1)
    tensors = {REFERENCE: torch.randn(CFG.out_dim, 1, SIDE, SIDE, generator=drawn), TEXT: torch.randn(CFG.text_len, CFG.text_dim, generator=drawn)}
    for role in roles:
        role.open(OpenSession(1, tensors))
    steps_ms, settle_ms, decode_ms = list[float](), list[float](), list[float]()

    def once(index: int) -> None:
        given = block(index)  # whose noise the runtime draws on another thread
        ms, made = timed(lambda: roles[0].run(given))
        steps_ms.append(ms)
        settle_ms.append(timed(lambda: roles[0].settle(1))[0])
        ms, shown = timed(lambda: roles[1].run(made))
        decode_ms.append(ms)
        assert shown.condition[FINITE].all() and len(shown.x) == block_format(CFG).samples(index) * FPS // 16_000

    warm = CFG.window_blocks + 2  # every number of slots has been captured
    for index in range(warm):
        once(index)
    benchmark.pedantic(once, setup=iterated(warm), rounds=ROUNDS)
    medians = {name: statistics.median(ms[-ROUNDS:]) for name, ms in (("steps_ms", steps_ms), ("settle_ms", settle_ms), ("decode_ms", decode_ms))}
    tflop = sum(forward_tflop(CFG, (8 * SIDE, 8 * SIDE), CFG.window_blocks))
    memory = {"memory_gb": torch.cuda.max_memory_allocated() / 1e9} if ON_GPU else {}
    benchmark.extra_info.update(
        gpu=device_name(), commit=commit(), shape=f"{CFG.num_layers} layers, 3x{SIDE // 2}x{SIDE // 2} tokens of {CFG.dim}", dtype=chosen.dtype,
        attention=attention, **info, **medians, **memory, forward_ms=medians["steps_ms"] / STEPS, tflop_of_forward=tflop,
        tflop_s=tflop * STEPS / medians["steps_ms"] * 1e3, fps=12e3 / sum(medians.values()), realtime=12e3 / sum(medians.values()) / FPS,
    )  # fmt: skip


def iterated(first: int) -> Callable[[], tuple[tuple[int], dict[str, int]]]:
    """pytest-benchmark's setup: the arguments of the next round."""
    numbers = iter(range(first, first + 10_000))
    return lambda: ((next(numbers),), {})
