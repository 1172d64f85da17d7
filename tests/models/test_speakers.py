"""Several speakers in one image: what the injection computes, whom a mask reaches, and the same bits wherever it runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.models.test_roles import CFG, SCHEDULE, block, denoiser, drawn, opening

from everface.avatar.avatar import Avatar
from everface.core.config import Deployment, ModelConfig, StreamConfig
from everface.core.errors import BadInput
from everface.core.regions import HALVES, Box
from everface.live.session import LiveSession
from everface.media.audio import read_audio
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS
from everface.models.live_avatar.model import LiveAvatar
from everface.models.live_avatar.names import SPEAKERS
from everface.models.live_avatar.roles import Denoiser, StepRole
from everface.models.live_talk.model import LiveTalk
from everface.networks.transformer.dit import DiT
from everface.networks.transformer.layers import AdaIN, AudioInjector, CrossAttention
from everface.networks.transformer.linear import Residual
from everface.networks.transformer.speakers import token_masks
from everface.runtime.messages import Block, OpenSession
from everface.runtime.model import Window

GRID, ROWS = (4, 4), ((0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0))


def injector() -> AudioInjector:
    torch.manual_seed(2)
    return DiT(CFG).eval().requires_grad_(False).audio_injector


def parts(audio: AudioInjector) -> tuple[CrossAttention, AdaIN]:
    attention, adain = audio.injector[0], audio.injector_adain_layers[0]
    assert isinstance(attention, CrossAttention) and isinstance(adain, AdaIN)
    return attention, adain


def by_hand(audio: AudioInjector, x_FPD: torch.Tensor, local_FKD: torch.Tensor, global_FD: torch.Tensor) -> torch.Tensor:
    """What one speaker adds, by the specification: AdaIN, then attention to the five tokens of the frame, in float64."""

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + CFG.eps).rsqrt() * weight

    attention, adain = parts(audio.double())
    shift, scale = (torch.nn.functional.silu(global_FD) @ adain.linear.weight.T + adain.linear.bias).chunk(2, -1)
    centered = x_FPD - x_FPD.mean(-1, keepdim=True)
    y = centered * (centered.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * (1 + scale[:, None]) + shift[:, None]
    q, k, v = norm(attention.q(y), attention.norm_q.weight), norm(attention.k(local_FKD), attention.norm_k.weight), attention.v(local_FKD)
    q, k, v = (t.unflatten(-1, attention.heads) for t in (q, k, v))
    weights = (torch.einsum("fphd,fkhd->fphk", q, k) * CFG.head_dim**-0.5).softmax(-1)
    return attention.o(torch.einsum("fphk,fkhd->fphd", weights, v).flatten(-2))


def test_the_sum_of_what_each_speaker_adds_times_its_mask() -> None:
    x, local, total = drawn(1, 1, 3, 16, 64), drawn(2, 2, 3, 5, 64), drawn(3, 2, 3, 64)
    masks = token_masks(((0.0, 0.0, 0.5, 1.0), (0.5, 0.25, 1.0, 0.75)), GRID)  # the right column has tokens of nobody
    assert sorted(masks.sum(0).unique().tolist()) == [1, 2]
    out = injector().stream(Residual(x), 0, injector().audio_kv(0, local, total), masks)
    assert torch.equal(out.x, x)
    double = [by_hand(injector(), x[0].double(), local[a].double(), total[a].double()) for a in range(2)]
    want = masks[0].double() * double[0] + masks[1].double() * double[1]
    torch.testing.assert_close(out.y, want[None].float(), atol=2e-5, rtol=0)


def test_one_speaker_is_the_plain_injection() -> None:
    audio, x, local, total = injector(), drawn(1, 1, 3, 16, 64), drawn(2, 3, 5, 64), drawn(3, 3, 64)
    attention, adain = parts(audio)
    shift, scale = adain(total[None])[..., None, :].chunk(2, -1)
    u = torch.addcmul(shift, torch.nn.functional.layer_norm(x, (64,), eps=1e-5), 1 + scale)
    got = audio.stream(Residual(x), 0, audio.audio_kv(0, local[None], total[None]))
    assert got.y is not None
    torch.testing.assert_close(got.y, attention.stream(u, attention.keys_values(local)), atol=1e-6, rtol=1e-6)


def test_a_voice_reaches_no_token_of_another_speaker() -> None:
    audio, x, local, total = injector(), drawn(1, 1, 3, 16, 64), drawn(2, 2, 3, 5, 64), drawn(3, 2, 3, 64)
    masks, other = token_masks(HALVES, GRID), local.clone()
    other[1] += 1
    before, after = (audio.stream(Residual(x), 0, audio.audio_kv(0, tokens, total), masks).value() for tokens in (local, other))
    left = masks[0, 0, :, 0].bool()
    changed = (before != after).any(-1)[0]  # [F, P]
    assert not changed[:, left].any() and changed[:, ~left].all()


def two(b: Block, second: Block) -> Block:
    """The audio of both as that of two speakers."""
    both = {name: torch.stack([b.condition[name], second.condition[name]]) for name in b.condition}
    return replace(b, condition=both)


def opened(d: Denoiser, session: int, regions: tuple[Box, ...]) -> StepRole:
    role, plain = StepRole(d, SCHEDULE, 1), opening(session, latent=(8, 8))
    masks = {SPEAKERS: token_masks(regions, GRID)} if regions else {}
    role.open(OpenSession(session, plain.tensors | masks, plain.params))
    return role


def larger(index: int, session: int) -> Block:
    return replace(block(index, session), x=drawn(300 + index, 16, 3, 8, 8))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8-attention"])
def test_two_with_the_same_voice_are_one(dtype: str) -> None:
    d = denoiser(dtype=dtype)
    one, both = opened(d, 1, ()), opened(d, 2, HALVES)
    for index in range(3):
        a, b = one.run(larger(index, 1)).x, both.run(two(larger(index, 2), larger(index, 2))).x
        assert torch.allclose(a, b, atol=1e-6 if dtype == "float32" else 0.02), (index, (a - b).abs().max())


def test_a_slot_takes_the_regions_of_its_new_session() -> None:
    d, fresh = denoiser(sessions=1), denoiser(sessions=1)
    for session, regions in ((1, HALVES), (2, ROWS), (3, ()), (4, ROWS)):
        role = opened(d, session, regions)
        b = larger(0, session)
        got = role.run(two(b, larger(1, session)) if regions else b).x
        d.close(session)
        if session in (2, 4):
            other = opened(fresh, session, regions)
            assert torch.equal(got, other.run(two(larger(0, session), larger(1, session))).x)
            fresh.close(session)


def test_masks() -> None:
    left, right = token_masks(HALVES, (2, 4))[:, 0, :, 0].view(2, 2, 4)
    assert left.tolist() == [[1, 1, 0, 0]] * 2 and torch.equal(right, 1 - left)
    odd = token_masks(HALVES, (1, 5))[:, 0, :, 0]  # a center on the edge belongs to the right
    assert odd.tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]]
    apart = token_masks(((0.0, 0.0, 0.25, 1.0), (0.75, 0.0, 1.0, 1.0)), (1, 4))[:, 0, :, 0]
    assert apart.tolist() == [[1, 1, 1, 0], [0, 1, 1, 1]]  # where nobody is, both are heard
    with pytest.raises(BadInput, match="smaller than one of the 4x4 tokens"):
        token_masks(((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 0.6, 1.0)), GRID)


WRONG = {
    "one": (HALVES[:1], "1 speakers"),
    "five": (tuple((i / 5, 0.0, (i + 1) / 5, 1.0) for i in range(5)), "5 speakers"),
    "outside": ((HALVES[0], (0.5, 0.0, 1.1, 1.0)), "0.5,0,1.1,1"),
    "empty": ((HALVES[0], (0.7, 0.0, 0.7, 1.0)), "0.7,0,0.7,1"),
    "not finite": ((HALVES[0], (0.5, 0.0, float("nan"), 1.0)), "nan"),
    "overlap": ((HALVES[0], (0.4, 0.5, 1.0, 1.0)), "overlap"),
}


@pytest.mark.parametrize("case", WRONG)
def test_regions_that_cannot_be(case: str) -> None:
    regions, named = WRONG[case]
    with pytest.raises(BadInput, match=named):
        StreamConfig(speakers=regions)


def test_each_voice_is_leveled_and_encoded_alone(small_model: Path, face: Path) -> None:
    """A faint second voice: its tokens are those that it has in a session of its own."""
    model = LiveAvatar(small_model, None, Deployment())
    both = model.session(face, StreamConfig(speakers=HALVES))
    alone = [model.session(face, StreamConfig()) for _ in range(2)]
    lookback = both.format.lookback_samples
    assert both.format.audio_channels == 2 and alone[0].format.audio_channels == 1
    t = np.arange(10 * 7680) / 16_000
    speech_S = torch.from_numpy(np.random.default_rng(1).standard_normal(len(t)) * (1 + np.sin(2 * np.pi * 3 * t))).float()
    audio_2S = torch.nn.functional.pad(torch.stack([0.1 * speech_S, 0.004 * speech_S.flip(0)]), (lookback, 0))
    raised = False
    for index in range(10):
        window_2S = audio_2S[:, index * 7680 : index * 7680 + lookback + 7680]
        got = both.prepare(index, Window(window_2S, index * 7680, 12, False, 0))
        for a in range(2):
            want = alone[a].prepare(index, Window(window_2S[a], index * 7680, 12, False, 0))
            assert all(torch.equal(got[name][a], want[name]) for name in want)
        plain = model.conditioner.block(window_2S[1], "everface")
        raised |= not torch.equal(got["audio_local"][1], plain["audio_local"])
    assert raised  # the faint voice was leveled


def show(model: Path, face: Path, placement: str) -> torch.Tensor:
    t = np.arange(int(1.2 * 16_000)) / 16_000
    audio_2S = np.stack([np.sin(2 * np.pi * hz * t) * 0.2 for hz in (180, 230)]).astype(np.float32)
    stream = StreamConfig(seed=3, speakers=HALVES)
    with Avatar(model, deployment=Deployment(placement=placement)) as avatar, avatar.open(face, stream) as session:
        for part_2S in np.array_split(audio_2S, 7, axis=1):
            assert session.push_audio(part_2S)
        assert session.accepted == len(t)
        session.end_segment()
        return torch.cat([b.frames_THW3.clone() for b in session.frames()])


def test_every_placement_makes_the_same_bits(small_model: Path, face: Path) -> None:
    inline, worker = (show(small_model, face, placement) for placement in ("inline", "1"))
    assert len(inline) == 30 and torch.equal(inline, worker)


def test_who_cannot_have_two_speakers_says_so(small_model: Path, small_live_talk: Path, face: Path) -> None:
    with pytest.raises(BadInput, match="several speakers are possible with live-avatar only"):
        LiveTalk(small_live_talk, None, Deployment()).session(face, StreamConfig(speakers=HALVES))
    with Avatar(small_model, deployment=Deployment(sessions=1)) as avatar:
        for _ in range(2):  # the refused session is closed
            with pytest.raises(BadInput, match="a live session has one speaker"):
                avatar.open_live(face, StreamConfig(speakers=HALVES))
        with avatar.open(face, StreamConfig(speakers=HALVES)) as session, pytest.raises(BadInput, match="one speaker"):
            LiveSession(session)


SIDE = (ModelConfig.read(DEFAULT_WEIGHTS / "config.json").size or (0, 0))[0]  # of the bundled model's frames


def two_faces(width: int) -> Image.Image:
    """Two of the bundled people side by side, as high as the model makes them: whole ones twice as wide, or the middle of each."""
    both, cut = Image.new("RGB", (width, SIDE)), (2 * SIDE - width) // 4
    for left, name in ((0, "ada"), (width // 2, "ben")):
        face = Image.open(DEFAULT_WEIGHTS / f"{name}.png").convert("RGB").resize((SIDE, SIDE))
        both.paste(face.crop((cut, 0, SIDE - cut, SIDE)), (left, 0))
    return both


@pytest.mark.long
@pytest.mark.parametrize("width", [SIDE, 2 * SIDE])
def test_each_voice_moves_its_own_mouth(width: int, tmp_path: Path) -> None:
    """The bundled model, which was trained on one face in a square. Motion is the difference from a run in silence, around each mouth."""
    weights, size = tmp_path / "weights", (SIDE, width)
    weights.mkdir()
    for path in DEFAULT_WEIGHTS.glob("*.safetensors"):
        (weights / path.name).symlink_to(path)
    (weights / "config.json").write_text(json.dumps(json.loads((DEFAULT_WEIGHTS / "config.json").read_text()) | {"size": None, "smaller": []}))
    two_faces(width).save(tmp_path / "both.png")
    speech_S = np.concatenate(list(read_audio(DEFAULT_WEIGHTS / "speech.wav")))[:48_000]
    silence_S, made = np.zeros_like(speech_S), {}
    with Avatar(weights) as avatar:
        for name, voices in (("none", (silence_S, silence_S)), ("left", (speech_S, silence_S)), ("right", (silence_S, speech_S))):
            with avatar.open(tmp_path / "both.png", StreamConfig(seed=7, size=size, speakers=HALVES)) as session:
                assert session.push_audio(np.stack(voices))
                session.end_segment()
                made[name] = torch.cat([b.frames_THW3 for b in session.frames()]).float()

    def motion(name: str) -> list[float]:
        part = width // 8
        return [float((made[name] - made["none"])[:, 72 * SIDE // 128 : 112 * SIDE // 128, at : at + 2 * part].abs().mean()) for at in (part, 5 * part)]

    left, right = motion("left"), motion("right")
    print(f"width {width}: left speaks {left[0]:.1f} {left[1]:.1f}, right speaks {right[0]:.1f} {right[1]:.1f}")
    assert left[0] > 1.5 * left[1] and right[1] > 1.5 * right[0]
