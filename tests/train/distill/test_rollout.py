"""The student's rollout is the runtime's stream to the bit, and a replay block by block has the gradient of the whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.train.miniature import SMALL_DIT, small_dit

from everface.core.config import Deployment, ModelConfig
from everface.kernels import cpu
from everface.models.live_avatar.conditions import Noise
from everface.models.live_avatar.roles import Denoiser, StepRole
from everface.networks.motion import FACE, POSE, pose_of
from everface.networks.transformer.dit import DiT
from everface.networks.transformer.schedule import Schedule
from everface.runtime.messages import Block, OpenSession
from everface.train.distill.plans import Stage2Plan
from everface.train.distill.rollout import CopyOnWriteCache, Rollout
from everface.train.distill.scenes import Course, Scene

PLAN = Stage2Plan(noise_correlation=0.5)


BLOCKS = 7


def scene(seed: int = 5, blocks: int = BLOCKS, channels: int = 12) -> Scene:
    g = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=g)  # noqa: E731  a name for a short expression
    return Scene(
        draw(16, 1, 8, 8), draw(16, 19, 8, 8), torch.zeros(1, 8), draw(1, channels, 5 + 12 * blocks), 3, draw(16, 3 * blocks, 8, 8)
    )  # fmt: skip


@torch.inference_mode()
def stream(dit: DiT, one: Scene, first: int) -> list[torch.Tensor]:
    """The same scene through the runtime's step roles: what entered each step, and the last result, by block: [steps + 1, 16, F, h, w]."""
    denoiser = Denoiser(dit, ModelConfig(SMALL_DIT), Deployment())
    roles = [StepRole(denoiser, Schedule.for_sampler("official"), s) for s in range(4)]
    for role in roles:
        tensors = {"reference": one.reference_16_1hw, "motion": one.motion_16Thw, "text": one.text_LC}
        role.open(OpenSession(1, tensors, {"seed": one.seed, "rope_fp16": False}))
    noise, clean, seen = Noise(one.seed, (16, 8, 8), 3, 4, PLAN.noise_correlation), None, []
    for b in range(BLOCKS):
        past = one.features_LCT[..., 12 * b : 12 * b + 17]
        local, glob = dit.casual_audio_encoder.encode_block(past[:, :12, 5:], past[:, :12, :5])
        condition = {"audio_local": local, "audio_global": glob}
        if len(past[0]) > 12:
            condition["pose"] = pose_of(past[0, 12:, 5:])
        if first + b == 4 and clean is not None:
            condition["sink"] = clean
        block = Block(1, 0, first + b, 0, 12, noise(first + b), condition)
        xs = [block.x]
        for role in roles:
            block = role.run(block)
            xs.append(block.x)
        clean = block.condition.get("clean", clean)
        seen.append(torch.stack(xs))
    return [t.clone() for t in torch.cat(seen, dim=2)]


@pytest.fixture
def torch_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream computes with the ops that training uses, also where everface._native is built."""
    monkeypatch.setattr(cpu, "native_cpu", lambda: None)


@pytest.mark.usefixtures("torch_ops")
@pytest.mark.parametrize(("first", "motion"), [(0, 0), (37, 0), (0, len(FACE))])
def test_a_rollout_is_the_runtimes_stream_to_the_bit(first: int, motion: int) -> None:
    """Seven blocks: the rings wrap around, the sink is refreshed. With the last step for exit, and the input of the third."""
    dit, one = small_dit(cond_dim=POSE).requires_grad_(False), scene(channels=12 + motion)
    expected = stream(dit, one, first)
    assert torch.equal(Rollout(dit, PLAN, one, Course(first, BLOCKS, 3)).run(), expected[4])
    early = Rollout(dit, PLAN, one, Course(first, 4, 2))
    early.run()
    assert torch.equal(torch.cat(early.entered, dim=1), expected[2][:, :12])


def test_what_makes_the_stream_long_matters() -> None:
    """Each of the paper's three means changes the stream, from the right block on."""
    dit = small_dit().requires_grad_(False)
    plain = Rollout(dit, PLAN, scene(), Course(0, BLOCKS, 3)).run()

    def first_change(**fields: object) -> int:
        other = Rollout(dit, replace(PLAN, **fields), scene(), Course(0, BLOCKS, 3)).run()
        return int(((other - plain).abs().amax(dim=(0, 2, 3)) > 0).nonzero()[0]) // 3

    assert first_change(refresh=False) == 4
    assert first_change(rolling=False) <= 4
    assert first_change(history="clean") == first_change(history="fixed", history_sigma=0.557) == 1


@pytest.mark.parametrize("fields", [{}, {"history": "clean"}, {"steps": 2}], ids=["own", "clean", "two steps"])
@pytest.mark.parametrize("course", [Course(0, BLOCKS, 1), Course(37, 5, 1, 1)], ids=["start", "from truth"])
def test_replay_has_the_gradient_of_one_graph_with_detached_caches(course: Course, fields: dict) -> None:
    """The whole: every block at once in one graph, each over a snapshot of the rings taken while the stream was made."""
    dit, plan = small_dit(), replace(PLAN, **fields)
    g = torch.randn(16, 3 * course.blocks, 8, 8, generator=torch.Generator().manual_seed(2))

    class Recorded(Rollout):
        """Keeps a copy of the ring as every block finds it at the exit step."""

        def _copy_slot(self, b: int):
            cache = self._cache(self.course.exit_step)
            found = CopyOnWriteCache(cache.k_LNHd.clone(), cache.v_LNHd.clone(), cache.sink_k_LCHd)
            self.found = [*getattr(self, "found", []), found]
            return super()._copy_slot(b)

    whole = Recorded(dit, plan, scene(), course)
    x0 = whole.run()
    made = []
    for b, cache in enumerate(whole.found):
        text_kv = dit.text_kv(dit.embed_text(whole.scene.text_LC))
        s = course.exit_step
        mod = dit.modulations(dit.time(whole.schedule.timesteps[s]))
        levels = whole.schedule.sigmas[s], 0.0
        made.append(dit.step(whole.entered[b], *levels, mod, dit.stream_text_kv(text_kv), whole._audio(b), cache, whole.rope, whole.position(b, s)))
    assert torch.equal(torch.cat(made, dim=1).detach(), x0)
    (torch.cat(made, dim=1) * g).sum().backward()
    expected = {n: p.grad for n, p in dit.named_parameters() if p.grad is not None}

    dit.zero_grad()
    rollout = Rollout(dit, plan, scene(), course)
    assert torch.equal(rollout.run(), x0)
    for b in reversed(range(course.blocks)):
        part = rollout.replay(b)
        assert torch.equal(part.detach(), x0[:, 3 * b : 3 * b + 3])
        (part * g[:, 3 * b : 3 * b + 3]).sum().backward()
    assert expected.keys() == {n for n, p in dit.named_parameters() if p.grad is not None} and len(expected) > 50
    for n, grad in expected.items():
        torch.testing.assert_close(dit.get_parameter(n).grad, grad, atol=1e-5 * max(1.0, float(grad.abs().max())), rtol=1e-4)


def test_replay_goes_backwards_only() -> None:
    rollout = Rollout(small_dit(), PLAN, scene(), Course(0, 3, 1))
    rollout.run()
    with pytest.raises(ValueError, match="last to the first"):
        rollout.replay(0)
