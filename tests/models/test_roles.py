"""Step roles as a stage runs them: which slot of the ring, when the sink changes, what a session leaves behind, what is noted."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from everface.core.config import Deployment, DiTConfig, ModelConfig, VAEConfig
from everface.core.errors import BadInput, Unavailable
from everface.kernels.fused.flow_step import flow_step_tokens
from everface.models.live_avatar.builders import decoder_dtype, dtype_of
from everface.models.live_avatar.names import CLEAN, DISSOLVE, FINITE, HEAD, IMAGE, SHOT
from everface.models.live_avatar.roles import DecodeRole, Denoiser, StepRole
from everface.networks.transformer.dit import DiT
from everface.networks.transformer.schedule import Schedule, sink_distance
from everface.networks.video.vae import VAE
from everface.runtime.messages import Block, CloseSession, OpenSession, Tensors
from everface.weights.quantize import quantize_for_dtype

CFG = DiTConfig(
    dim=64, ffn_dim=96, freq_dim=32, num_heads=2, num_layers=3, text_dim=8, text_len=4, audio_dim=16, wav2vec_layers=1,
    audio_inject_layers=(0, 2),
)  # fmt: skip
SCHEDULE = Schedule.for_sampler("official")
SEED, TOKENS = 3, 3 * 2 * 2


def drawn(seed: int, *size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def denoiser(sessions: int = 4, dtype: str = "float32") -> Denoiser:
    torch.manual_seed(1)
    deployment = Deployment(sessions=sessions, dtype=dtype)
    dit = DiT(CFG).to(dtype_of(deployment)).eval().requires_grad_(False).fuse()
    quantize_for_dtype(dit, dtype)
    return Denoiser(dit, ModelConfig(CFG), deployment)


def opening(session: int = 1, look: int = 0, latent: tuple[int, int] = (4, 4)) -> OpenSession:
    tensors = {
        "reference": drawn(look + 1, 16, 1, *latent), "motion": drawn(look + 2, 16, 19, *latent), "text": drawn(look + 3, 3, 8),
    }  # fmt: skip
    return OpenSession(session, tensors, {"seed": SEED, "rope_fp16": False})


def block(index: int, session: int = 1, brought: Tensors | None = None) -> Block:
    sound = {"audio_local": drawn(100 + index, 3, 5, 64), "audio_global": drawn(200 + index, 3, 64)}
    return Block(session, 0, index, 0, 12, drawn(300 + index, 16, 3, 4, 4), sound | (brought or {}))


@torch.inference_mode()
def poison(d: Denoiser, session: int = 1) -> None:
    """What no block has written must never be read."""
    caches = d.sessions[session].caches
    for step in caches.steps:
        cache = caches.cache(step)
        for part in (cache.k_LNHd, cache.v_LSHd):  # keys of the sink are turned anew
            part.fill_(float("nan"))


@pytest.mark.parametrize("dtype", ["float32", "fp8-attention"])
@pytest.mark.parametrize(
    "indices", [[0, 1, 2, 3, 4, 5], [37, 38, 39, 40, 41, 42], [0, 1, 6, 7, 13, 14]], ids=["unbroken", "re-opened", "interrupted"]
)
@torch.inference_mode()  # as a role is run
def test_only_written_slots_are_attended_to_and_time_is_absolute(indices: list[int], dtype: str) -> None:
    d = denoiser(dtype=dtype)
    role = StepRole(d, SCHEDULE, 1)
    role.open(opening())
    poison(d)
    got = [role.run(block(i)).x for i in indices]
    assert all(x.isfinite().all() for x in got)

    plain, known = d.dit, {name: tensor.to(d.dtype) for name, tensor in opening().tensors.items()}
    cache, text_kv = plain.new_cache(4, 4), plain.text_kv(plain.embed_text(known["text"]))
    cache.prime(*plain.prefill_sink(known["reference"], known["motion"], text_kv))
    mod, rope = plain.modulations(plain.time(SCHEDULE.timesteps[1])), plain.rope((2, 2))
    for run, index in enumerate(indices):
        b = block(index)
        heard, x = plain.audio_kv(b.condition["audio_local"].to(d.dtype), b.condition["audio_global"].to(d.dtype)), b.x.to(d.dtype)
        place = plain.block_position((2, 2), index, sink_distance(SEED, index, 1))._replace(
            start=cache.sink + TOKENS * (run % 4), used=cache.sink + TOKENS * min(run + 1, 4)
        )  # fmt: skip
        out = plain.tokens(x, mod, plain.stream_text_kv(text_kv), heard, cache, rope, place)
        want = flow_step_tokens(x[None], out, (2, 2), (2, 2), *SCHEDULE.sigmas[1:3])[0]
        assert torch.equal(got[run], want), (index, run)


def test_a_step_counts_its_own_blocks() -> None:
    """A block dropped between two steps of a device reaches the first only."""
    d = denoiser()
    first, second = (StepRole(d, SCHEDULE, s) for s in (0, 1))
    for role in (first, second):
        role.open(opening())
    poison(d)
    first.run(block(0))
    assert second.run(first.run(block(1))).x.isfinite().all()
    assert d.sessions[1].runs == {0: 2, 1: 1}


@torch.inference_mode()  # as a role is run
def test_a_change_of_picture_or_text_primes_each_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    d, fresh = denoiser(), denoiser()
    roles = [StepRole(d, SCHEDULE, s) for s in (0, 1, 2)]
    for role in roles:
        role.open(opening())
    primed: list[int] = []
    prime = d.prime
    monkeypatch.setattr(d, "prime", lambda *args: (primed.append(1), prime(*args)))

    def run(b: Block) -> Block:
        for role in roles:
            b = role.run(b)
        return b

    run(block(0))
    assert not primed
    now, had = opening(look=50).tensors, opening().tensors
    for index, brought, wanted in (
        (1, {"sink": now["reference"]}, had | {"reference": now["reference"]}),
        (2, {"text": now["text"]}, had | {"reference": now["reference"], "text": now["text"]}),
        (3, {"sink": had["reference"], "motion": now["motion"]}, now | {"reference": had["reference"]}),
    ):
        before = d.sessions[1].caches.sink_k_LCHd.clone()
        rode = run(block(index, brought=brought)).condition
        assert primed == [1] * index and brought.keys() <= rode.keys()  # later devices need it too
        fresh.open(replace(opening(session=index), tensors=wanted), 0)
        mine, other = d.sessions[1].caches, fresh.sessions[index].caches
        for a, b in zip((mine.sink_k_LCHd, *mine.text), (other.sink_k_LCHd, *other.text), strict=True):
            assert torch.equal(a, b)
        assert all(torch.equal(mine.cache(step).sink_v_LCHd, other.cache(0).sink_v_LCHd) for step in (0, 1, 2))
        assert not torch.equal(mine.sink_k_LCHd, before)


def test_sound_is_heard_once_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    d = denoiser()
    roles = [StepRole(d, SCHEDULE, s) for s in range(4)]
    for role in roles:
        role.open(opening())
    heard: list[int] = []
    hear = DiT.audio_kv
    monkeypatch.setattr(DiT, "audio_kv", lambda self, *a, **k: (heard.append(1), hear(self, *a, **k))[1])
    b = block(0)
    for role in roles:
        b = role.run(b)
    roles[0].run(block(1))
    assert len(heard) == 2


@pytest.mark.parametrize("dtype", ["float32", "fp8-attention"])
def test_closing_keeps_the_memory_for_the_next_and_only_for_its_like(dtype: str) -> None:
    d = denoiser(sessions=1, dtype=dtype)
    roles = [StepRole(d, SCHEDULE, s) for s in (0, 1)]
    for role in roles:
        role.open(opening(1))
    first = [role.run(block(0)).x for role in roles]
    slot, steps = d.sessions[1].caches.slot, dict(d.sessions[1].slot_state.steps)
    with pytest.raises(Unavailable):
        roles[0].open(opening(2))
    assert 2 not in d.sessions and len(d.pool) == 1
    for role in roles:
        role.close(CloseSession(1))
    for role in roles:
        role.open(opening(2))
    assert d.sessions[2].caches.slot is slot
    poison(d, 2)
    again = [role.run(block(0, session=2)).x for role in roles]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)) and d.sessions[2].slot_state.steps == steps

    gone = [weakref.ref(t) for made in (slot.shared, *slot.roles.values()) for t in made.values()]
    del slot, steps
    for role in roles:
        role.close(CloseSession(2))
    gc.disable()
    try:
        roles[0].open(opening(3, latent=(4, 8)))  # another size of picture
        assert not any(ref() is not None for ref in gone), "an evicted slot's tensors must not wait for the garbage collector"
    finally:
        gc.enable()


def test_an_opening_that_fails_half_way_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    d = denoiser()
    role = StepRole(d, SCHEDULE, 0)

    def short(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(d.dit, "write_sink", short)
    with pytest.raises(Unavailable, match="does not fit"):
        role.open(opening())
    assert not d.sessions and len(d.pool) == 0


@torch.no_grad()
def test_a_loaded_decoder_in_bfloat16_runs() -> None:
    """Its mean and deviation stay float32, as no file holds them."""
    vae = VAE(VAEConfig(dim=4, encoder_blocks=(1, 1, 1, 1), decoder_blocks=(1, 1, 1, 1)), encoder=False)
    for p in vae.parameters():
        p.data = p.data.bfloat16()
    stream = vae.warm_up(drawn(1, 1, 16, 3, 2, 2).bfloat16())
    assert vae.decode_stream(drawn(2, 1, 16, 1, 2, 2).bfloat16(), stream).isfinite().all()


def decoded(frames: str, device: str = "cpu") -> torch.Tensor:
    """The frames of one block by a small decoder, handed out as the deployment says."""
    torch.manual_seed(0)
    vae = VAE(VAEConfig(dim=4, encoder_blocks=(1, 1, 1, 1), decoder_blocks=(1, 1, 1, 1)), encoder=False).to(device)
    role = DecodeRole(vae, Deployment(device=device, frames=frames))
    role.open(OpenSession(1, {"motion": drawn(1, 16, 7, 4, 4)}, {}))
    return role.run(Block(1, 0, 0, 0, 12, drawn(2, 16, 3, 4, 4), {})).x


def test_the_head_moves_in_decoded_frames() -> None:
    def frames(condition: dict[str, torch.Tensor]) -> torch.Tensor:
        torch.manual_seed(0)
        role = DecodeRole(VAE(VAEConfig(dim=4, encoder_blocks=(1, 1, 1, 1), decoder_blocks=(1, 1, 1, 1)), encoder=False), Deployment())
        role.open(OpenSession(1, {"motion": drawn(1, 16, 7, 4, 4)}, {}))
        return role.run(Block(1, 0, 0, 0, 12, drawn(2, 16, 3, 4, 4), condition)).x.int()

    moved_8T = torch.zeros(8, 12)
    moved_8T[1, 6:] = 0.2  # yaw, from the seventh frame on
    still, moved = frames({}), frames({HEAD: moved_8T})
    assert (still[:6] - moved[:6]).abs().max() <= 1 and (still[6:] - moved[6:]).abs().float().mean() > 0.5


@torch.no_grad()
def test_detail_is_of_the_image_that_is_shown() -> None:
    """An opening's, then that of a change, whose frames are decoded on from what was before it: here the same latents."""
    torch.manual_seed(0)
    still = torch.zeros(16, 1, 4, 4)
    motion, x = {"motion": still.expand(-1, 7, -1, -1)}, still.expand(-1, 3, -1, -1)
    vae = VAE(VAEConfig(dim=4, encoder_blocks=(1, 1, 1, 1), decoder_blocks=(1, 1, 1, 1)), encoder=False)
    for p in vae.decoder.head.parameters():
        p *= 0.1  # or, as weights are random, no frame would be like another
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    role = DecodeRole(vae, Deployment())
    role.open(OpenSession(1, motion | {IMAGE: images[0]}, {}))
    shown, missing = [], []
    for n, condition in enumerate([{}, motion | {IMAGE: images[1]}, {}]):
        shown.append(role.run(Block(1, 0, n, 7680 * n, 12, x, condition)).x)
        missing.append(role.details[1].missing_3HW)
    role.close(CloseSession(1))
    role.open(OpenSession(1, motion, {}))
    plain = [role.run(Block(1, 0, n, 7680 * n, 12, x, {})).x for n in range(3)]
    assert 1 not in role.details
    assert not torch.equal(missing[0], missing[1]) and torch.equal(missing[1], missing[2])
    for with_detail, without, of in zip(shown, plain, missing, strict=True):
        added_3HW = (with_detail.float() - without.float())[-1].permute(2, 0, 1)
        assert F.cosine_similarity(added_3HW.flatten(), of.flatten(), dim=0) > 0.8


@pytest.mark.parametrize(("kept", "faded", "turned"), [(12, 0, 0.0), (12, 6, 0.0), (5, 0, 0.0), (12, 0, 0.2)])
def test_a_block_in_parts_is_the_same_block(kept: int, faded: int, turned: float) -> None:
    """Two blocks, of which the second begins a shot where something fades, and of which `kept` frames are wanted. turned: a head, ever farther."""
    torch.manual_seed(0)
    vae = VAE(VAEConfig(dim=4, encoder_blocks=(1, 1, 1, 1), decoder_blocks=(1, 1, 1, 1)), encoder=False)
    seen = {}
    for parts in (False, True):
        role = DecodeRole(vae, Deployment())
        image = {IMAGE: torch.arange(3 * 32 * 32).view(3, 32, 32).to(torch.uint8)} if turned else {}  # of a model with motion
        role.open(OpenSession(1, {"motion": drawn(1, 16, 7, 4, 4)} | image, {}))
        condition = {"motion": drawn(3, 16, 7, 4, 4), SHOT: torch.zeros(1), DISSOLVE: torch.zeros(1 + faded)} if faded else {}
        head = {HEAD: torch.linspace(0, turned, 12).expand(8, 12)} if turned else {}
        second = {**condition, **head, CLEAN: drawn(5, 16, 1, 4, 4)}
        blocks = [Block(1, 0, 0, 0, kept, drawn(2, 16, 3, 4, 4), {}), Block(1, 0, 1, 7680, kept, drawn(4, 16, 3, 4, 4), second)]
        made = [list(role.run_parts(b)) if parts else [role.run(b)] for b in blocks]
        assert [[part.first for part in block] for block in made] == ([[0, 4, 8]] * 2 if parts else [[0]] * 2)
        assert [[CLEAN in part.condition for part in block] for block in made] == ([[False] * 3, [False, False, True]] if parts else [[False], [True]])
        assert all(part.condition[FINITE].tolist() == [1] for block in made for part in block)
        seen[parts] = torch.cat([part.x for block in made for part in block]), role.shown_HW3[1]
    difference = (seen[True][0].int() - seen[False][0].int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 1e-3  # convolutions of other sizes may round otherwise
    assert (seen[True][1].int() - seen[False][1].int()).abs().max() <= 1


def test_frames_stay_where_they_are_asked_to() -> None:
    host, device = decoded("host"), decoded("device")
    assert torch.equal(host, device)
    assert np.from_dlpack(device).ctypes.data == device.data_ptr()  # whoever speaks DLPack takes them without a copy
    with pytest.raises(BadInput, match="inline"):
        Deployment("2", frames="device")
    with pytest.raises(BadInput, match="host, device"):
        Deployment(frames="gpu")


@pytest.mark.gpu
def test_frames_stay_on_the_gpu() -> None:
    frames = decoded("device", "cuda")
    assert frames.is_cuda and torch.equal(frames.cpu(), decoded("host", "cuda"))
    cupy = pytest.importorskip("cupy")
    assert cupy.from_dlpack(frames).data.ptr == frames.data_ptr()


def test_sessions_in_slots_of_codes_do_not_meet() -> None:
    """Two viewers, taken in turns, see what each alone sees; a new picture changes what is attended to and no scale."""
    alone, both = [denoiser(dtype="fp8-attention") for _ in range(2)], denoiser(dtype="fp8-attention")
    roles = [StepRole(d, SCHEDULE, 2) for d in (*alone, both)]
    new = {"sink": opening(look=9).tensors["reference"]}
    for session in (0, 1):
        roles[session].open(opening(session, look=session))
        roles[2].open(opening(session, look=session))
    for index in range(6):
        for session in (0, 1):
            b = block(index, session, new if index == 3 and session else None)
            assert torch.equal(roles[2].run(b).x, roles[session].run(b).x), (index, session)
    cache = both.sessions[0].caches.cache(2)
    assert [ring.dtype for ring in (cache.k_LNHd, cache.v_LNHd)] == [torch.float8_e4m3fn] * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8", "fp8-attention"])
@pytest.mark.parametrize("bad", [False, True])
def test_every_role_notes_whether_all_was_finite(bad: bool, dtype: str) -> None:
    d, deployment = denoiser(dtype=dtype), Deployment(dtype=dtype)
    torch.manual_seed(2)
    vae = VAE(VAEConfig(dim=4, encoder_blocks=(1, 1, 1, 1), decoder_blocks=(1, 1, 1, 1)), encoder=False)
    roles = [*(StepRole(d, SCHEDULE, s) for s in range(4)), DecodeRole(vae.eval().to(decoder_dtype(deployment)), deployment)]
    for role in roles:
        role.open(opening())
    b = block(0)
    b.condition["audio_local"][0, 0, 0] = float("nan") if bad else 1.0
    for place, role in enumerate(roles):
        b = role.run(b)
        noted = b.condition["finite"]
        assert noted.dtype == torch.uint8 and noted.tolist() == [0 if bad else 1] * (place + 1)
    assert b.x.dtype == torch.uint8 and "clean" in b.condition
