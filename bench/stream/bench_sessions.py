"""1, 2, 4 and 8 sessions of the bundled model: frames per second through the real runtime, and what one forward for several of them would gain.

    python -m pytest bench/stream/bench_sessions.py --benchmark-json FILE -s

`batched` is a forward of all sessions' blocks in one batch, `apart` one forward after the other, of the same modules. Rings are full, and each
session has its own. docs/decisions/0008-one-session-a-forward.md has what was made of the figures.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch
from bench.rows import commit

from everface.avatar.avatar import Avatar
from everface.avatar.bench import cpu_name
from everface.avatar.demo import AUDIO, IMAGE
from everface.core.config import FPS, SAMPLE_RATE, Deployment, ModelConfig
from everface.core.regions import cells
from everface.kernels.attention.cross import cross
from everface.kernels.fused.norm_rope import rotate
from everface.media.audio import read_audio
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS, build_dit
from everface.networks.transformer.dit import DiT, cache_shape

SESSIONS = [1, 2, 4, 8]
SECONDS, ROUNDS = 4, 15
TIME = 857.7


def record(benchmark: Any, **info: Any) -> None:
    machine = f"{cpu_name()}, {psutil.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
    benchmark.extra_info.update(commit=commit(), machine=machine, **info)
    print("\n" + "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in info.items()))


@pytest.mark.parametrize("sessions", SESSIONS)
def test_throughput(benchmark: Any, sessions: int) -> None:
    """All audio is there from the start: frames per second of all sessions together."""
    audio_S = torch.as_tensor(next(read_audio(AUDIO, SECONDS * SAMPLE_RATE))).contiguous()
    with Avatar(deployment=Deployment(sessions=max(SESSIONS))) as avatar:

        def once(sessions: int) -> int:
            frames, opened = 0, [avatar.open(IMAGE) for _ in range(sessions)]
            began_s.append(time.perf_counter())
            for session in opened:
                session.push_audio(audio_S)
                session.end_segment()
            while not all(session.finished for session in opened):
                time.sleep(0.002)  # a wait for one of them returns at once when that one is finished
                frames += sum(len(block.frames_THW3) for session in opened for block in session.poll())
            ended_s.append(time.perf_counter())
            for session in opened:
                session.close()
            return frames

        began_s: list[float] = []
        ended_s: list[float] = []
        once(1)
        frames = benchmark.pedantic(once, (sessions,), rounds=1)
    fps = frames / (ended_s[-1] - began_s[-1])
    record(benchmark, sessions=sessions, fps=fps, fps_each=fps / sessions, realtime_sessions=fps / FPS)


class Forwards:
    """A forward of `batch` blocks at one noise level over full rings, one for each session."""

    def __init__(self, dit: DiT, batch: int, latent: tuple[int, int]) -> None:
        cfg = dit.cfg
        (layers, ring, heads, width), (_, sink, _, _) = cache_shape(cfg, *latent)
        torch.manual_seed(0)
        self.dit, self.keys = dit, torch.randn(layers, batch, sink + ring, heads, width)
        self.values, self.x = torch.randn_like(self.keys), torch.randn(batch, cfg.in_dim, cfg.block_frames, *latent)
        self.local, self.whole = torch.randn(batch, cfg.block_frames, cfg.num_audio_token + 1, cfg.dim), torch.randn(batch, cfg.block_frames, cfg.dim)
        self.text = dit.text_kv(dit.embed_text(torch.zeros(cfg.text_len, cfg.text_dim)))
        self.mod, self.sink = dit.time(TIME), sink
        self.grid = (latent[0] // cfg.patch_size[1], latent[1] // cfg.patch_size[2])
        self.table = dit.rope(self.grid).block(24)

    def run(self) -> torch.Tensor:
        x = self.dit.embed_patches(self.x)
        slots = slice(self.sink, self.sink + x.shape[1] * x.shape[2])
        for layer, block in enumerate(self.dit.transformer_blocks()):

            def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int = layer) -> torch.Tensor:
                self.keys[layer, :, slots], self.values[layer, :, slots] = rotate(k, self.table), v
                return cross(rotate(q, self.table), self.keys[layer], self.values[layer])

            x = self.dit.inject(layer, block(x, self.mod.e0_6D[None, None], self.text[layer], attend), self.local, self.whole)
        return self.dit.head(x, self.mod.e_D[None, None], self.grid)

    def flops(self) -> float:
        cfg, batch, keys = self.dit.cfg, len(self.x), self.keys.shape[2]
        tokens = cfg.block_frames * self.grid[0] * self.grid[1]
        rows = 2 * tokens * cfg.dim * ((4 * cfg.dim + 2 * cfg.ffn_dim) * cfg.num_layers + 2 * cfg.dim * len(cfg.audio_inject_layers))
        return batch * (rows + 4 * tokens * keys * cfg.dim * cfg.num_layers)


def made_cells(config: ModelConfig) -> tuple[int, int]:
    """Rows and columns of the latent that the transformer makes, at the model's size."""
    assert config.size is not None
    size = [side // stride for side, stride in zip(config.size, config.vae.stride[1:], strict=True)]
    rows, columns = cells(config.region or (0.0, 0.0, 1.0, 1.0), size, config.dit.patch_size[1])
    return rows.stop - rows.start, columns.stop - columns.start


def time_ms(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began_s)


@pytest.mark.parametrize("sessions", SESSIONS)
@torch.inference_mode()
def test_forward(benchmark: Any, sessions: int) -> None:
    config, dit = build_dit(DEFAULT_WEIGHTS, None, Deployment())
    latent = made_cells(config)
    together, apart = Forwards(dit, sessions, latent), [Forwards(dit, 1, latent) for _ in range(sessions)]
    together.run()
    calls = (together.run, lambda: [one.run() for one in apart])
    times_ms = [[time_ms(call) for call in calls] for _ in range(ROUNDS)]  # in turn, so that both meet the machine as it is at the time
    batched_ms, apart_ms = (statistics.median(column) for column in zip(*times_ms, strict=True))
    benchmark.pedantic(together.run, rounds=3)
    gflop = together.flops() / 1e9
    record(
        benchmark, sessions=sessions, batched_ms=batched_ms, apart_ms=apart_ms, gain=apart_ms / batched_ms - 1, gflop=gflop,
        batched_gflops=1e3 * gflop / batched_ms, apart_gflops=1e3 * gflop / apart_ms,
    )  # fmt: skip
