"""The transformer's cases that need no stream: one block, and the whole model with every intermediate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from everface.core.config import DiTConfig
from everface.core.errors import BadInput
from everface.kernels.attention.cross import cross
from everface.kernels.fused.norm_rope import rotate
from everface.networks.transformer.dit import DiT
from everface.networks.transformer.layers import AudioInjector, Ring, TransformerBlock
from everface.networks.transformer.linear import Residual
from everface.networks.transformer.rope import frames_table
from everface.parity.golden import Golden
from everface.parity.report import Check


def load_dit(file: Golden, dtype: torch.dtype = torch.float32, x_16Fhw: torch.Tensor | None = None) -> DiT:
    """The model of the folder's `dit_weights`; the size of one noisy block decides how many of them a ring holds."""
    weights = file.beside("dit_weights")
    cfg = DiTConfig.from_dict(weights.config)
    if x_16Fhw is not None:
        cfg = replace(cfg, block_frames=x_16Fhw.shape[1])
        cfg = replace(cfg, window_blocks=file.setting("kv_cache_tokens") // block_tokens(cfg, x_16Fhw))
    model = DiT(cfg)
    fill(model, weights, dict(weights))
    return model.to(dtype).eval().requires_grad_(False).fuse()


def block_tokens(cfg: DiTConfig, x_16Fhw: torch.Tensor) -> int:
    """How many tokens a noisy block makes."""
    return x_16Fhw[0].numel() // math.prod(cfg.patch_size)


def fill(model: torch.nn.Module, file: Golden, state: dict[str, torch.Tensor]) -> None:
    """Load weights strictly. Raises BadInput when they are another model's."""
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise BadInput(f"the weights of {file.path} do not fit their configuration: {error}") from None


def one_block(file: Golden, check: Check) -> None:
    """Sink pass, then two noisy blocks and a small one; the rotations of the sink are given as angles."""
    weights = file.beside("dit_weights")
    cfg = DiTConfig.from_dict(weights.config | file.config)
    block = TransformerBlock(cfg)
    index = int(file.setting("block").split("blocks.")[1].split()[0])
    fill(block, file, file.below("w.") or weights.below(f"blocks.{index}."))
    block.to(check.dtype).self_attn.fuse()
    frames, (rows, columns), tokens = file.setting("frames"), file.setting("patch_grid"), file["noisy.x"].shape[0]
    text_kv = block.cross_attn.keys_values(file["context_emb"][None].to(check.dtype))
    e0_noisy, e0_sink = file["e"][None, :, :, 0], file["e"][None, :1, :, 1]
    sink_table, read_table = (
        torch.stack((angle.cos(), angle.sin()), dim=-1) for angle in (file["sink.rope_angle"], file["noisy.cond_rope_angle"])
    )
    kept: list[torch.Tensor] = []

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        kept.extend((k[0], v[0]))
        return cross(rotate(q, sink_table), rotate(k, sink_table), v)

    check("sink.y", block(file["sink.x"][None, None].to(check.dtype), e0_sink, text_kv, attend), 2e-5)
    sink_k, sink_v = kept
    check("sink.cond_k", sink_k, 2e-5)
    check("sink.cond_v", sink_v, 2e-5)
    slots, sink = file.setting("cache_tokens"), len(sink_k)
    k, v = (torch.cat((x, x.new_zeros(slots, *x.shape[1:]))) for x in (rotate(sink_k, read_table), sink_v))

    def step(x_TD: torch.Tensor, at: int) -> torch.Tensor:
        table = frames_table(frames * at, frames, (rows, columns), cfg.head_dim)
        ring = Ring(k, v, sink + at * tokens, sink + (at + 1) * tokens, table)
        x = Residual(x_TD.to(check.dtype).view(1, frames, -1, cfg.dim))
        return block.stream(x, block.modulations(e0_noisy), block.cross_attn.text_kv(text_kv), ring).value()

    for at in (0, 1):
        check(f"noisy.block{at}.y", step(file["noisy.x"], at), 2e-5)
    check("kv.k", k[sink:][: 2 * tokens], 2e-5)
    check("kv.v", v[sink:][: 2 * tokens], 2e-5)
    with check.part("noisy_small.y"):
        check("noisy_small.y", step(file["noisy_small.x"], 0), 2e-5)


def whole_model(file: Golden, check: Check) -> None:
    """One sink pass and one forward with every intermediate, the same with rounded rotations, and blocks two thousand in."""
    dit = load_dit(file, check.dtype, file["x"])
    audio = dit.casual_audio_encoder.encode_block(file["audio_input"])
    context = dit.embed_text(file["context"])
    text_kv = dit.text_kv(context)
    ref, motion = file["ref_latents"].to(check.dtype), file["motion_latents"].to(check.dtype)
    sink = dit.prefill_sink(ref, motion, text_kv)

    def forward(name: str, **options: bool) -> torch.Tensor:
        """The velocity of the first block on a fresh ring."""
        cache = dit.new_cache(ref.shape[-2], ref.shape[-1])
        cache.prime(*(dit.prefill_sink(ref, motion, text_kv, **options) if options else sink))
        pose = file["pose"].to(check.dtype)
        rel = file.setting("rel_dist")
        velocity = dit(file["x"].to(check.dtype), dit.time(file["t"][0]), text_kv, audio, cache, 0, rel, pose, **options)
        check(name, velocity, 5e-5)
        return velocity

    with check.part("intermediates"):
        embeddings(file, check, dit, audio, context)
        with check_layers(check, dit):
            dit.prefill_sink(ref, motion, text_kv)
            velocity = forward("velocity")
        p, q = dit.cfg.patch_size[1:]
        cells_FRpCqc = velocity.unflatten(-1, (-1, q)).unflatten(-3, (-1, p)).permute(1, 2, 4, 3, 5, 0)
        check("noisy.head_out", cells_FRpCqc, 5e-5)
    for layer in range(dit.cfg.num_layers):
        check(f"cond_k.layer{layer}", sink[0][layer], 2e-5)
        check(f"cond_v.layer{layer}", sink[1][layer], 2e-5)
    with check.part("velocity_fp16rope"):
        forward("velocity_fp16rope", rope_fp16=True)
    with check.part("large.velocity"):
        cache = dit.new_cache(ref.shape[-2], ref.shape[-1])
        cache.prime(*sink)
        time, rel = dit.time(file.setting("t_large")), file.setting("rel_dist")
        made = [
            dit(x.to(check.dtype), time, text_kv, audio, cache, block, rel)
            for x, block in zip(file["large.x"], file.setting("large_blocks"), strict=True)
        ]
        check("large.velocity", torch.stack(made), 5e-5)


def embeddings(file: Golden, check: Check, dit: DiT, audio: tuple[torch.Tensor, torch.Tensor], context: torch.Tensor) -> None:
    """Everything that is computed before the first layer."""
    frames = file["x"].shape[1]
    moving, still = dit.time(file["t"]), dit.time(torch.zeros(frames))
    for row, first in (("noisy", moving), ("sink", still)):  # rows: the frames' own time, then as many at 0
        check(f"{row}.time_e", torch.cat((first.e_D, still.e_D)), 2e-5)
        check(f"{row}.time_e0", torch.cat((first.e0_6D, still.e0_6D)), 2e-5)
        check(f"{row}.context_emb", context, 2e-5)
    ref, motion = file["ref_latents"].to(check.dtype), file["motion_latents"].to(check.dtype)
    check("sink.tokens_in", torch.cat((dit.embed_reference(ref[None]), dit.embed_motion(motion[None])), 1), 2e-5)
    check("noisy.tokens_in", dit.embed_patches(file["x"][None].to(check.dtype), file["pose"][None].to(check.dtype)), 2e-5)
    check("noisy.audio_emb", audio[0], 2e-5)
    check("noisy.audio_emb_global", audio[1], 2e-5)


@contextmanager
def check_layers(check: Check, dit: DiT) -> Iterator[None]:
    """Compare the output of every layer as it runs: `forward` of the sink pass, `stream` of the noisy block."""
    injected, blocks = dit.cfg.audio_inject_layers, list(dit.blocks)

    def after_sink(block: torch.nn.Module, _args: object, out: torch.Tensor) -> None:
        check(f"sink.block{blocks.index(block)}.out", out, 2e-5)

    def watch_block(layer: int, block: TransformerBlock) -> None:
        def stream(*args: Any) -> Residual:
            out = TransformerBlock.stream(block, *args)
            check(f"noisy.block{layer}.out", out.value(), 2e-5)
            if layer not in injected:
                check(f"noisy.block{layer}.after_audio", out.value(), 2e-5)
            return out

        vars(block)["stream"] = stream

    def watched_audio(r: Residual, index: int, *args: Any) -> Residual:
        out = AudioInjector.stream(dit.audio_injector, r, index, *args)
        check(f"noisy.block{injected[index]}.after_audio", out.value(), 2e-5)
        return out

    hooks = [block.register_forward_hook(after_sink) for block in blocks]
    for layer, block in enumerate(blocks):
        assert isinstance(block, TransformerBlock)
        watch_block(layer, block)
    vars(dit.audio_injector)["stream"] = watched_audio
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in (*blocks, dit.audio_injector):
            vars(module).pop("stream")
