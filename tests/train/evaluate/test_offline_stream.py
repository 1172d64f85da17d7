"""The stream of an evaluation is a session's to the bit; changed for ablation it is what stage 2 trains a student for."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.small_model import SMALL, write_model

from everface.avatar.avatar import Avatar
from everface.core.config import SAMPLES_PER_FRAME, Deployment, StreamConfig
from everface.core.errors import BadInput
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS, build_decoder
from everface.networks.audio.causal_encoder import PAST_FRAMES
from everface.networks.motion import FACE, POSE, compensated
from everface.networks.transformer.schedule import Schedule
from everface.train.distill.plans import Stage2Plan
from everface.train.distill.rollout import Rollout
from everface.train.distill.scenes import Course, Scene
from everface.train.evaluate.offline_stream import OfflineModel, StreamVariant, decoder_memory

BLOCKS = 14


CONFIG = StreamConfig(seed=11)


@pytest.fixture(scope="module")
def model(small_model: Path) -> OfflineModel:
    return OfflineModel(small_model, Deployment())


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def audio(blocks: float = BLOCKS) -> torch.Tensor:
    return 0.2 * torch.randn(int(blocks * 12 * 640), generator=torch.Generator().manual_seed(2))


def test_latents_and_frames_are_a_sessions_to_the_bit(model: OfflineModel, small_model: Path, image: torch.Tensor) -> None:
    """Over the sink's refresh and a half block at the end; and where decoding begins late, from there on."""
    pcm_S = audio(BLOCKS - 0.5)
    with Avatar(small_model) as avatar, avatar.open(image, CONFIG) as session:
        assert session.push_audio(pcm_S)
        session.end_segment()
        expected = torch.cat([block.frames_THW3 for block in session.frames()])
    with model.stream(image, CONFIG) as stream:
        stream.start_decoding()
        blocks = list(stream.blocks(pcm_S.split(5000)))
        assert torch.equal(torch.cat([stream.decode(block) for block in blocks]), expected)
        assert len(blocks) == BLOCKS and len(expected) == 12 * BLOCKS - 6
        late = model.memory_blocks + 2
        stream.start_decoding(blocks[2:late])
        assert torch.equal(torch.cat([stream.decode(block) for block in blocks[late:]]), expected[12 * late :])


def test_endless_audio_is_an_endless_stream(model: OfflineModel, image: torch.Tensor) -> None:
    with model.stream(image, CONFIG) as stream:
        blocks = stream.blocks(chain.from_iterable(repeat(audio(1).split(3000))))
        assert [next(blocks).index for _ in range(3)] == [0, 1, 2]


def test_a_window_needs_no_more_of_the_past_than_the_decoder_reaches() -> None:
    """The bundled codec: bit for bit after `decoder_memory` latents; after half of them within a tenth of a gray level."""
    vae = build_decoder(DEFAULT_WEIGHTS, Deployment())
    g = torch.Generator().manual_seed(0)
    z = torch.randn(1, vae.config.z_dim, 45, 4, 4, generator=g)
    still, seen = z[:, :, :1].expand(-1, -1, 7, -1, -1), 3

    def frames(first: int) -> torch.Tensor:
        stream, out = vae.warm_up(still), torch.empty(0)
        for at in range(first, 45, 3):
            out = vae.decode_stream(z[:, :, at : at + 3], stream)
        return out.clamp(-1, 1)

    with torch.inference_mode():
        whole, at = frames(0), 45 - seen
        enough = decoder_memory(vae.config) // seen * seen + seen  # latents, of whole calls
        apart = {k: (frames(at - k) - whole).abs().max().item() * 127.5 for k in (0, 6, 12, enough - seen, enough)}
    assert apart[enough] == 0 < apart[enough - seen]
    assert apart[12] < 0.1 < apart[6] < 10 < 50 < apart[0], apart  # gray levels of 255


@pytest.mark.parametrize(
    "variant",
    [StreamVariant(), StreamVariant(refresh=False), StreamVariant(rolling=False), StreamVariant(history="clean"), StreamVariant(history="fixed", history_sigma=0.557), StreamVariant(steps=2)],
    ids=["own", "refresh", "rolling", "clean", "fixed", "two steps"],
)
def test_every_variant_is_the_rollout_that_trains_for_it(model: OfflineModel, image: torch.Tensor, variant: StreamVariant) -> None:
    names = ("refresh", "rolling", "history", "history_sigma", "steps")
    plan = Stage2Plan(noise_correlation=0.0, **{n: getattr(variant, n) for n in names})
    front, pcm_S = model.conditioner.front_end, audio(7)
    padded = torch.cat([torch.zeros(model.conditioner.lookback_samples), pcm_S])
    features = front.features(padded, PAST_FRAMES + 84)
    with model.stream(image, CONFIG, variant) as stream, torch.inference_mode():
        made = torch.cat([block.x for block in stream.blocks([pcm_S])], dim=1)
        known = stream.opening.tensors
        scene = Scene(known["reference"], known["motion"], known["text"], features, CONFIG.seed)
        expected = Rollout(model.dit, plan, scene, Course(0, 7, variant.steps - 1)).run()
        torch.testing.assert_close(made, expected, atol=2e-4, rtol=2e-4)
        if variant != StreamVariant():
            with model.stream(image, CONFIG) as plain:
                assert (torch.cat([block.x for block in plain.blocks([pcm_S])], dim=1) - made).abs().max() > 1e-3


def test_the_history_has_the_pose(image: torch.Tensor, tmp_path: Path) -> None:
    """Of a model with motion too the stream with one ring is the rollout."""
    config = replace(SMALL, dit=replace(SMALL.dit, cond_dim=POSE), motion=True)
    model, variant, pcm_S = OfflineModel(write_model(tmp_path, config), Deployment()), StreamVariant(history="clean", refresh=False), audio(3)
    face_CT = torch.rand(len(FACE), 36, generator=torch.Generator().manual_seed(3))
    front = model.conditioner.front_end
    padded = torch.cat([torch.zeros(front.lookback_samples + PAST_FRAMES * SAMPLES_PER_FRAME), pcm_S])
    heard = front.features(padded, PAST_FRAMES + 36)
    features = torch.cat([heard, F.pad(compensated(face_CT, config.lips), (PAST_FRAMES, 0))[None]], dim=1)
    plan = Stage2Plan(noise_correlation=config.noise_correlation, refresh=False, history="clean")
    with model.stream(image, CONFIG, variant) as stream, torch.inference_mode():
        made = torch.cat([block.x for block in stream.blocks([pcm_S], face_CT)], dim=1)
        known = stream.opening.tensors
        scene = Scene(known["reference"], known["motion"], known["text"], features, CONFIG.seed)
        torch.testing.assert_close(made, Rollout(model.dit, plan, scene, Course(0, 3, variant.steps - 1)).run(), atol=2e-4, rtol=2e-4)


def test_the_schedules_are_the_products() -> None:
    assert StreamVariant().schedule == Schedule.for_sampler("official")
    assert StreamVariant(skip_null=True).schedule == Schedule.for_sampler("skip-null")
    with pytest.raises(BadInput, match="history"):
        StreamVariant(history="dirty")
