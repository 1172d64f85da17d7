"""LiveTalk on the runtime: every placement computes the frames of a plain loop, and what a session may do to a stream."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch

from everface.core.config import Deployment, StreamConfig
from everface.core.errors import BadInput, BadWeights
from everface.kernels.video.to_rgb import to_rgb
from everface.models import LIVE_TALK
from everface.models.live_avatar.builders import build_decoder
from everface.models.live_talk.builders import build_dit
from everface.models.live_talk.conditions import block_noise
from everface.models.live_talk.model import LiveTalk
from everface.models.live_talk.names import AUDIO, REFERENCE, TEXT
from everface.models.opened import open_model
from everface.networks.transformer.schedule import RenoiseSchedule
from everface.runtime.cluster.process_pipeline import ProcessPipeline
from everface.runtime.events import Recovered, Recovering, VideoBlock
from everface.runtime.planning.placement import place
from everface.runtime.registry import path_of
from everface.runtime.scheduler import Scheduler
from everface.runtime.session import Session
from everface.runtime.start import start_pipeline
from everface.weights.load import open_checkpoint

BLOCKS, STREAM, DEPLOYMENT = 8, StreamConfig(seed=11), Deployment(threads=1, timeout_s=240)
FIRST, BLOCK = 9000, 12_000  # samples of block 0, and of any other


def voice() -> torch.Tensor:
    return 0.1 * torch.randn(FIRST + (BLOCKS - 1) * BLOCK, generator=torch.Generator().manual_seed(2))


@torch.inference_mode()
def plain_loop(folder: Path, face: Path) -> torch.Tensor:
    """Block after block in plain Python, without the runtime. Returns all frames."""
    model = LiveTalk(folder, None, DEPLOYMENT)
    opening, form = model.session(face, STREAM).initial_state()[0], model.format
    dit, vae, schedule = build_dit(folder, DEPLOYMENT), build_decoder(folder, DEPLOYMENT), RenoiseSchedule.of_steps()
    text_kv, reference = dit.text_kv(dit.embed_text(opening[TEXT])), opening[REFERENCE]
    cache, decoder, frames = dit.new_cache(8, 8), vae.stream(), []
    pcm_S = torch.cat([torch.zeros(form.lookback_samples), voice(), torch.zeros(form.lookahead_samples)])
    for b in range(BLOCKS):
        begin = b and FIRST + (b - 1) * BLOCK
        window_S = pcm_S[begin : begin + form.lookback_samples + form.samples(b) + form.lookahead_samples]
        audio = model.conditioner.block(window_S, form.samples(b) // 1000)[AUDIO]
        noise = block_noise(STREAM.seed, b, 0, (16, 3, 8, 8))
        x = noise[0]
        for step, t in enumerate(schedule.timesteps):
            x = x if b else torch.cat((reference, x[:, 1:]), 1)
            clean = (x - schedule.sigmas[step] * dit(x, reference, dit.time(t), text_kv, audio, cache, b)).float()
            x = schedule.renoise(clean, noise[step + 1], step + 1) if step < 3 else clean
        x = x if b else torch.cat((reference, x[:, 1:]), 1)
        dit(x, reference, dit.time(0.0), text_kv, audio, cache, b)
        frames.append(to_rgb(vae.decode_stream(x[None], decoder)[0]))
    return torch.cat(frames)


@contextmanager
def opened(folder: Path, face: Path, placement: str = "inline") -> Iterator[tuple[Scheduler, Session]]:
    model = LiveTalk(folder, None, DEPLOYMENT)
    pipeline = start_pipeline(place(model.roles(STREAM), placement), path_of(LIVE_TALK), model.spec(STREAM), DEPLOYMENT)
    with closing(Scheduler(pipeline)) as scheduler:
        yield scheduler, scheduler.open_session(model.session(face, STREAM)).wait_open()


def finish(session: Session) -> list[VideoBlock]:
    session.end_segment()
    return list(session.frames())


def joined(blocks: list[VideoBlock]) -> torch.Tensor:
    return torch.cat([block.frames_THW3 for block in blocks])


@pytest.fixture(scope="module")
def truth(small_live_talk: Path, face: Path) -> torch.Tensor:
    return plain_loop(small_live_talk, face)


@pytest.fixture(scope="module")
def inline(small_live_talk: Path, face: Path) -> list[VideoBlock]:
    with opened(small_live_talk, face) as (_, session):
        assert session.push_audio(voice())
        return finish(session)


def test_a_stream_is_the_plain_loop(inline: list[VideoBlock], truth: torch.Tensor) -> None:
    frames = joined(inline)
    assert [len(b.frames_THW3) for b in inline] == [9] + [12] * (BLOCKS - 1) and [b.pts for b in inline[:3]] == [0, 9000, 21_000]
    assert frames.shape == truth.shape == (9 + 12 * (BLOCKS - 1), 64, 64, 3) and truth.float().std() > 1
    assert (frames.int() - truth.int()).abs().max() <= 1, "a value on the edge of a rounding may fall either way"


@pytest.mark.parametrize("placement", [pytest.param("1", marks=pytest.mark.long), "2"])
def test_every_placement_makes_the_same_bits(small_live_talk: Path, face: Path, inline: list[VideoBlock], placement: str) -> None:
    with opened(small_live_talk, face, placement) as (_, session):
        assert session.push_audio(voice())
        assert torch.equal(joined(finish(session)), joined(inline))


def test_an_interruption_before_the_first_block_leaves_whole_blocks(small_live_talk: Path, face: Path) -> None:
    with opened(small_live_talk, face) as (_, session):
        session.push_audio(voice()[: FIRST + BLOCK])
        session.interrupt()
        session.push_audio(voice()[: 2 * BLOCK])
        session.interrupt()
        session.push_audio(voice()[: 4 * BLOCK])
        blocks = finish(session)
        assert len(joined(blocks)) == 48 and all(len(b.frames_THW3) == 12 for b in blocks[1:-1])


def test_another_image_begins_the_stream_again(small_live_talk: Path, face: Path) -> None:
    dark = torch.full((3, 64, 64), -1.0)
    with opened(small_live_talk, face) as (_, session):
        session.push_audio(voice()[: FIRST + 5 * BLOCK])
        deadline_s, blocks = time.monotonic() + 60, []
        while len(blocks) < 2 and time.monotonic() < deadline_s:
            session.wait(0.1)
            blocks += session.poll()
        session.change(image=dark)
        session.change(prompt="a person")
        session.push_audio(voice()[: 3 * BLOCK])
        blocks += finish(session)
        assert len(joined(blocks)) == 9 + 8 * 12
        with pytest.raises(BadInput, match="nothing is to be changed"):
            session._model.change()
    vae, conditioner = build_decoder(small_live_talk, DEPLOYMENT), LiveTalk(small_live_talk, None, DEPLOYMENT).conditioner
    with torch.inference_mode():
        latent = conditioner.image_state(dark)[REFERENCE][None]
        still = to_rgb(vae.decode_stream(latent, vae.warm_up(latent))[0])
    assert sum(torch.equal(b.frames_THW3[:4], still) for b in blocks) == 1  # 0.25 s at rest, once


@pytest.mark.long
def test_a_killed_stage_is_replaced(small_live_talk: Path, face: Path) -> None:
    """Its first blocks come back exactly, as they are run again; what follows them goes on."""
    with opened(small_live_talk, face, "2") as (scheduler, session):
        assert isinstance(scheduler.pipeline, ProcessPipeline)
        session.push_audio(voice())
        deadline_s, blocks = time.monotonic() + 60, []
        while len(blocks) < 2 and time.monotonic() < deadline_s:
            session.wait(0.1)
            blocks += session.poll()
        os.kill(scheduler.pipeline.processes[0], signal.SIGKILL)
        blocks += finish(session)
        assert len(joined(blocks)) == 9 + 12 * (BLOCKS - 1)
        assert [type(e) for e in session.events()][:2] == [Recovering, Recovered]


def test_the_wrong_question_is_one_sentence(small_live_talk: Path, small_model: Path, tmp_path: Path) -> None:
    model = open_model(small_live_talk, None, DEPLOYMENT)
    assert isinstance(model, LiveTalk) and model.format.fps == 16
    with pytest.raises(BadInput, match="leave the sampler skip-null out"):
        model.roles(StreamConfig(sampler="skip-null"))
    with pytest.raises(BadInput, match="trained at 64x64 only"):
        model.stream_size(StreamConfig(size=(128, 128)))
    with pytest.raises(BadWeights, match="leave the LoRA"):
        open_checkpoint(small_live_talk, tmp_path / "lora.safetensors")
    with pytest.raises(BadWeights, match="cannot be used here"):
        _ = open_checkpoint(small_live_talk).config
    with pytest.raises(BadWeights, match="not LiveTalk"):
        _ = open_checkpoint(small_model).live_talk
