"""The transformer against golden data, part by part; then what golden data cannot show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everface.core.config import DiTConfig
from everface.kernels.attention.cross import cross
from everface.kernels.fused.norm_rope import rotate
from everface.networks.transformer.dit import DiT, cache_shape
from everface.networks.transformer.framepack import MOTION_GROUPS
from everface.networks.transformer.layers import Ring, TransformerBlock
from everface.networks.transformer.linear import Residual
from everface.networks.transformer.rope import frames_table, motion_table

Data = dict[str, torch.Tensor]


def close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float, name: str = "") -> None:
    torch.testing.assert_close(got, wanted, atol=tolerance, rtol=0, msg=lambda m: f"{name}: {m}")


@pytest.fixture(scope="module")
def full() -> Data:
    return load_file(Path(__file__).parents[1] / "golden" / "dit_full.safetensors")


def test_released_model_has_the_official_parameters() -> None:
    with torch.device("meta"):
        model = DiT(DiTConfig())
    assert len(model.state_dict()) == 1260
    assert sum(p.numel() for p in model.parameters()) == 16_295_755_609
    ring, sink = cache_shape(model.cfg, 88, 48)
    assert ring == (40, 12_672, 40, 128) and sink == (40, 2640, 40, 128)


@torch.no_grad()
def test_one_block(golden: Path, dit: DiT) -> None:
    data = load_file(golden / "dit_block.safetensors")
    block = TransformerBlock(dit.cfg)
    held = {k[2:]: v for k, v in data.items() if k.startswith("w.")}  # a trimmed folder has them in the whole model only
    whole = load_file(golden / "dit_weights.safetensors")
    block.load_state_dict(held or {k[9:]: v for k, v in whole.items() if k.startswith("blocks.1.")}, strict=True)
    text_kv = block.cross_attn.keys_values(data["context_emb"][None])
    e0_noisy, e0_sink = data["e"][None, :, :, 0], data["e"][None, :1, :, 1]

    def turn(angle: torch.Tensor) -> torch.Tensor:
        return torch.stack((angle.cos(), angle.sin()), dim=-1)

    kept: list[torch.Tensor] = []

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        kept.extend((k[0], v[0]))
        table = turn(data["sink.rope_angle"])
        return cross(rotate(q, table), rotate(k, table), v)

    y = block(data["sink.x"][None, None], e0_sink, text_kv, attend)
    close(y[0, 0], data["sink.y"], 2e-5)
    close(kept[0], data["sink.cond_k"], 2e-5)
    close(kept[1], data["sink.cond_v"], 2e-5)

    def stream(x_TD: torch.Tensor, ring: Ring) -> torch.Tensor:
        x = Residual(x_TD.view(1, 3, -1, dit.cfg.dim))
        return block.stream(x, block.modulations(e0_noisy), block.cross_attn.text_kv(text_kv), ring).value()

    slots, tokens, sink = 384, 96, len(kept[0])
    sink_k = rotate(kept[0], turn(data["noisy.cond_rope_angle"]))
    k, v = (torch.cat((x, torch.zeros(slots, *x.shape[1:]))) for x in (sink_k, kept[1]))
    for index in (0, 1):
        table = frames_table(3 * index, 3, (4, 8), dit.cfg.head_dim)
        ring = Ring(k, v, sink + index * tokens, sink + (index + 1) * tokens, table)
        y = stream(data["noisy.x"], ring)
        close(y.view(tokens, -1), data[f"noisy.block{index}.y"], 2e-5)
    close(v[sink:][: 2 * tokens], data["kv.v"], 2e-5)

    ring = Ring(k, v, sink, sink + tokens, frames_table(0, 3, (4, 8), dit.cfg.head_dim))
    y = stream(data["noisy_small.x"], ring)
    close(y.view(tokens, -1), data["noisy_small.y"], 2e-5)


@torch.no_grad()
def test_whole_model(dit: DiT, full: Data) -> None:
    checked: list[str] = []

    def check(name: str, got: torch.Tensor, tolerance: float = 2e-5) -> None:
        if name in full:
            close(got.reshape(full[name].shape), full[name], tolerance, name)
            checked.append(name)

    time, still = dit.time(full["t"][0]), dit.time(0.0)
    for name, mod in (("noisy", time), ("sink", still)):
        row = {"noisy": 0, "sink": 3}[name]
        if f"{name}.time_e" in full:
            close(mod.e_D, full[f"{name}.time_e"][row], 2e-5, f"{name}.time_e")
            close(mod.e0_6D.flatten(), full[f"{name}.time_e0"][row], 2e-5, f"{name}.time_e0")
    context = dit.embed_text(full["context"])
    check("noisy.context_emb", context)
    text_kv = dit.text_kv(context)
    ref, motion = full["ref_latents"], full["motion_latents"]
    check("sink.tokens_in", torch.cat((dit.embed_reference(ref[None]), dit.embed_motion(motion[None])), 1))
    check("noisy.tokens_in", dit.embed_patches(full["x"][None], full["pose"][None]))
    audio = dit.casual_audio_encoder.encode_block(full["audio_input"])
    check("noisy.audio_emb", audio[0])
    check("noisy.audio_emb_global", audio[1])

    cache = dit.new_cache(ref.shape[-2], ref.shape[-1])
    cache.prime(*dit.prefill_sink(ref, motion, text_kv))
    velocity = dit(full["x"], time, text_kv, audio, cache, 0, 30, full["pose"])
    check("velocity", velocity, 5e-5)
    for layer in range(dit.cfg.num_layers):
        check(f"cond_k.layer{layer}", cache.sink_k_LCHd[layer])
        check(f"cond_v.layer{layer}", cache.sink_v_LCHd[layer])
    assert "velocity" in checked

    if "velocity_fp16rope" in full:
        sink = dit.prefill_sink(ref, motion, text_kv, rope_fp16=True)
        cache = dit.new_cache(ref.shape[-2], ref.shape[-1])
        cache.prime(*sink)
        got = dit(full["x"], time, text_kv, audio, cache, 0, 30, full["pose"], rope_fp16=True)
        close(got, full["velocity_fp16rope"], 5e-5)


@torch.no_grad()
def test_two_thousand_blocks_in(dit: DiT, full: Data) -> None:
    text_kv = dit.text_kv(dit.embed_text(full["context"]))
    audio = dit.casual_audio_encoder.encode_block(full["audio_input"])
    cache = dit.new_cache(8, 16)
    cache.prime(*dit.prefill_sink(full["ref_latents"], full["motion_latents"], text_kv))
    time = dit.time(602.1505737304688)
    for i, block in enumerate(range(1996, 2001)):
        velocity = dit(full["large.x"][i], time, text_kv, audio, cache, block, 30)
        close(velocity, full["large.velocity"][i], 5e-5, f"block {block}")


@torch.no_grad()
def test_framepack(golden: Path, dit: DiT) -> None:
    data = load_file(golden / "framepack.safetensors")
    cases = [name[:-3] for name in data if name.startswith("T") and name.endswith(".in")]
    assert cases
    for case in cases:
        motion = data[f"{case}.in"]
        close(dit.frame_packer(motion[None])[0], data[f"{case}.tokens"], 2e-5, case)
        table = motion_table(dit.grid(motion), MOTION_GROUPS, dit.cfg.head_dim)
        close(table, data[f"{case}.cos_sin"], 1e-6, case)


@torch.no_grad()
def test_audio_injection(golden: Path, dit: DiT) -> None:
    data = load_file(golden / "audio_encoder_injector.safetensors")
    local, audio = data["block12.local_used"][None], data["block12.global_used"].view(1, 3, -1)
    for index, layer in enumerate(dit.cfg.audio_inject_layers):
        y = dit.audio_injector(data["inject.x"].view(1, 3, -1, dit.cfg.dim), index, local, audio)
        close(y.flatten(0, 2), data[f"inject.block{layer}.y"], 2e-5)
    small = data["inject_small.x"].view(1, 3, -1, dit.cfg.dim)
    close(dit.audio_injector(small, 0, local, audio).flatten(0, 2), data["inject_small.y"], 2e-5)


def random_cfg(**changes: object) -> DiTConfig:
    sizes = dict(
        dim=48, ffn_dim=64, freq_dim=16, num_heads=4, num_layers=3, text_dim=6, text_len=1, audio_dim=5, wav2vec_layers=2,
        num_audio_token=2, audio_inject_layers=(1,), window_blocks=2,
    )  # fmt: skip
    return DiTConfig.from_dict(sizes | changes)


def test_a_window_in_training_equals_the_stream_and_has_gradients() -> None:
    """Four blocks of two samples at once, attending by plain slices, against two streams of four forwards each."""
    torch.manual_seed(0)
    cfg = random_cfg()
    model, batch, blocks, h, w = DiT(cfg), 2, 4, 6, 10
    frames, grid = cfg.block_frames, (h // 2, w // 2)
    tokens = frames * grid[0] * grid[1]
    x = torch.randn(batch, 16, blocks * frames, h, w)
    ref, motion = torch.randn(batch, 16, 1, h, w), torch.randn(batch, 16, 7, h, w)
    audio = torch.randn(batch, 2, 5, 5 + 4 * blocks * frames)
    distance, t = [9, 30, 4, 17], 857.0

    text_kv = model.text_kv(model.embed_text(torch.zeros(1, cfg.text_dim)))
    local, global_ = model.casual_audio_encoder.encode_blocks(audio)
    sink = model.prefill(ref, motion, text_kv)
    table = frames_table(0, blocks * frames, grid, cfg.head_dim)
    mod = model.time(torch.full((batch, blocks * frames), t))
    y = model.embed_patches(x)
    for layer, block in enumerate(model.blocks):
        sink_k, sink_v = sink[layer]

        def attend(q, k, v, sink_k=sink_k, sink_v=sink_v):
            q, k, parts = rotate(q, table), rotate(k, table), []
            for i in range(blocks):
                seen = slice(max(0, i + 1 - cfg.window_blocks) * tokens, (i + 1) * tokens)
                rolled = rotate(sink_k, model.sink_table(grid, max(30, frames * i + distance[i])))
                keys, values = torch.cat((k[:, seen], rolled), 1), torch.cat((v[:, seen], sink_v), 1)
                parts.append(cross(q[:, i * tokens : (i + 1) * tokens], keys, values))
            return torch.cat(parts, 1)

        y = model.inject(layer, block(y, mod.e0_6D, text_kv[layer], attend), local, global_)
    window = model.head(y, mod.e_D, grid)

    for sample in range(batch):
        cache = model.new_cache(h, w)
        cache.prime(*model.prefill_sink(ref[sample], motion[sample], text_kv))
        for i in range(blocks):
            part = slice(i * frames, (i + 1) * frames)
            audio = (local[sample, part].detach(), global_[sample, part].detach())
            velocity = model(x[sample, :, part], model.time(t), text_kv, audio, cache, i, distance[i])
            close(velocity, window[sample, :, part].detach(), 1e-5, f"sample {sample} block {i}")

    window.square().mean().backward()
    dead = {name for name, p in model.named_parameters() if p.grad is None}
    # one text key: queries and keys of the text attention have no effect; without a pose only the bias of its encoder has one
    assert {n for n in dead if "cross_attn" not in n and "norm3" not in n} == {"cond_encoder.weight"}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "self_attn.q.weight" in n and p.grad is not None)


@torch.no_grad()
def test_one_text_key_equals_two_of_the_same() -> None:
    torch.manual_seed(1)
    cfg = random_cfg()
    block = TransformerBlock(cfg)
    x, e0 = torch.randn(2, 3, 5, cfg.dim), torch.randn(2, 3, 6, cfg.dim)
    once = block.cross_attn.keys_values(torch.randn(1, 1, cfg.dim))
    twice = (once[0].repeat(1, 2, 1, 1), once[1].repeat(1, 2, 1, 1))
    close(block(x, e0, once, cross), block(x, e0, twice, cross), 1e-6)


@torch.no_grad()
def test_grids_that_do_not_pool_still_fill_the_sink_they_were_given() -> None:
    cfg = random_cfg()
    model = DiT(cfg)
    text_kv = model.text_kv(model.embed_text(torch.zeros(1, cfg.text_dim)))
    for h, w in ((2, 4), (6, 10), (10, 12), (12, 18)):
        k, v = model.prefill_sink(torch.randn(16, 1, h, w), torch.randn(16, 19, h, w), text_kv)
        assert k.shape == v.shape == cache_shape(cfg, h, w)[1] and k.isfinite().all()


@torch.no_grad()
def test_bfloat16_stays_near_float32(dit: DiT, full: Data) -> None:
    half = DiT(dit.cfg)
    half.load_state_dict(dit.state_dict())
    half.bfloat16()
    text_kv = half.text_kv(half.embed_text(full["context"]))
    audio = half.casual_audio_encoder.encode_block(full["audio_input"])
    cache = half.new_cache(8, 16)
    sink = half.prefill_sink(full["ref_latents"].bfloat16(), full["motion_latents"].bfloat16(), text_kv)
    cache.prime(*sink)
    time = half.time(full["t"][0])
    got = half(full["x"].bfloat16(), time, text_kv, audio, cache, 0, 30, full["pose"].bfloat16())
    assert got.dtype == cache.k_LSHd.dtype == torch.bfloat16 and time.e0_6D.dtype == torch.float32
    error = (got.float() - full["velocity"]).square().mean().sqrt() / full["velocity"].std()
    assert error < 0.02
