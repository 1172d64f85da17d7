"""LiveTalk's cases: rotations, noise levels, audio, one layer, the whole model, streams with their caches, the size of the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from everface.core.live_talk_config import LiveTalkConfig
from everface.kernels.fused.norm_rope import rotate
from everface.media.crop import plan_cover
from everface.networks.audio.wav2vec import build_wav2vec2, normalize
from everface.networks.audio.wav2vec_frames import FrameRateWav2Vec2, resample_ends
from everface.networks.transformer.backbone import sinusoid
from everface.networks.transformer.layers import KV, Ring, TransformerBlock
from everface.networks.transformer.linear import Residual
from everface.networks.transformer.live_talk import LiveTalkDiT, block_slot, pad_first
from everface.networks.transformer.rope import axis_pairs, axis_table, frames_table, frequencies
from everface.networks.transformer.schedule import TRAIN_STEPS, RenoiseSchedule
from everface.parity.dit import fill
from everface.parity.golden import Golden
from everface.parity.report import Check

WEIGHTS = "lt_dit_weights"


def load_live_talk(file: Golden, dtype: torch.dtype = torch.float32, window: int | None = None, sink: int = 0) -> LiveTalkDiT:
    """The model of the folder's `lt_dit_weights`. `window`, `sink`: blocks, if they are not the release's."""
    weights = file.beside(WEIGHTS)
    cfg = LiveTalkConfig.from_dict(weights.config)
    if window is not None:
        cfg = replace(cfg, window_blocks=window, sink_blocks=sink)
    model = LiveTalkDiT(cfg)
    fill(model, weights, dict(weights))
    return model.to(dtype).eval().requires_grad_(False).fuse()


def rope(file: Golden, check: Check) -> None:
    """Tables of the blocks in the names, and what they do to vectors."""
    d, (rows, columns), frames = file.setting("head_dim"), file.setting("patch_grid"), file.setting("frames_per_block")
    with check.part("freq_rows.cos_sin"):
        index = file["freq_rows.index"]
        check("freq_rows.cos_sin", torch.cat([axis_table(index, frequencies(pairs), False) for pairs in axis_pairs(d)], 1), 1e-6)
    for name in [n for n in file if n.startswith("block")]:
        table = frames_table(frames * int(name.removeprefix("block").split(".")[0]), frames, (rows, columns), d)
        with check.part(name):
            if name.endswith("q_rot"):
                check(name, rotate(file["q"], table), 1e-5)
            else:
                check(name, table, 1e-6)


def sampler(file: Golden, check: Check) -> None:
    """Noise levels and times of any number of steps, sinusoids, and a chain of steps with given noise."""
    shift = float(file.setting("shift"))
    for steps in sorted(int(name[1:].split(".")[0]) for name in file if name.endswith(".sigmas")):
        schedule = RenoiseSchedule.of_steps(steps, shift)
        check(f"n{steps}.sigmas", torch.tensor(schedule.sigmas), 1e-6)
        check(f"n{steps}.timesteps", TRAIN_STEPS * torch.tensor(schedule.sigmas), 1e-3)
        check(f"n{steps}.timesteps_bf16", torch.tensor(schedule.timesteps), 0.0)
    for name in [n for n in file if n.startswith("sinusoid.f")]:
        width = int(name.removeprefix("sinusoid.f").removesuffix("_bf16"))
        waves = sinusoid(file["sinusoid.t"], width)
        check(name, waves.bfloat16() if name.endswith("_bf16") else waves, 0.0 if name.endswith("_bf16") else 1e-6)
    steps = sum(name.endswith(".v") for name in file)
    schedule = RenoiseSchedule.of_steps(steps, shift)
    for step in range(steps):
        clean = file[f"step{step}.x"] - schedule.sigmas[step] * file[f"step{step}.v"]
        check(f"step{step}.x0", clean, 1e-5)
        if step + 1 < steps:
            check(f"step{step}.x_next", schedule.renoise(clean, file[f"step{step}.noise"], step + 1), 1e-5)
            check.compare(f"step{step + 1}.x", file[f"step{step}.x_next"], file[f"step{step + 1}.x"], 1e-5)


def audio_pack(file: Golden, check: Check) -> None:
    """Features of a clip's frames, packed, and the vectors of the layers."""
    model = load_live_talk(file)
    for name in [n.removesuffix(".features") for n in file if n.endswith(".features")]:
        features = pad_first(file[f"{name}.features"])
        check(f"{name}.packed", model.pack_audio(features), 1e-5)
        check(f"{name}.cond", model.audio_vectors(features), 1e-5)


def wav2vec2(file: Golden, check: Check) -> None:
    """A clip: normalized, through the convolutions, resampled to the frame rate, and the joined states."""
    front_end = FrameRateWav2Vec2(build_wav2vec2(file.config, file.below("w.")), 16_000 // file.setting("fps"), 0, 0)
    for case, rows in enumerate(file.setting("video_frames")):
        if f"case{case}.wave" not in file:
            continue
        heard = normalize(file[f"case{case}.wave"])
        check(f"case{case}.input", heard, 1e-5)
        conv = front_end.convolve(heard)
        check(f"case{case}.conv", conv, 1e-5)
        check(f"case{case}.resampled", resample_ends(conv, rows), 1e-5)
        check(f"case{case}.features", front_end.clip_features(heard, rows), 1e-4)


def one_block(file: Golden, check: Check) -> None:
    """One layer: a block over an empty cache, one over the cache it left, one that takes the place of the oldest in a full cache."""
    weights = file.beside(WEIGHTS)
    cfg = LiveTalkConfig.from_dict(weights.config | file.config)
    block = TransformerBlock(cfg)
    index = int(file.setting("block").split("blocks.")[1].split()[0])
    fill(block, file, weights.below(f"blocks.{index}."))
    block.to(check.dtype).self_attn.fuse()
    frames, (rows, columns), tokens = file.setting("frames"), file.setting("patch_grid"), len(file["empty.x"])
    text_kv = block.cross_attn.text_kv(block.cross_attn.keys_values(file["context_emb"][None].to(check.dtype)))

    def step(x_TD: torch.Tensor, e0: torch.Tensor, first: int, cache: KV, start: int, used: int) -> torch.Tensor:
        ring = Ring(*cache, start, used, frames_table(first, frames, (rows, columns), cfg.head_dim))
        x = Residual(x_TD.to(check.dtype).view(1, frames, -1, cfg.dim))
        return block.stream(x, block.modulations(e0[None]), text_kv, ring).value()

    k = torch.zeros(2 * tokens, *file["kv.k"].shape[1:], dtype=check.dtype)
    cache = (k, torch.zeros_like(k))
    check("empty.y", step(file["empty.x"], file["e0"], 0, cache, 0, tokens), 2e-5)
    check("cached.y", step(file["cached.x"], file["e0_second"], frames, cache, tokens, 2 * tokens), 2e-5)
    for letter, got in zip("kv", cache, strict=True):
        check(f"kv.{letter}", got, 2e-5)
    with check.part("rolled.y"):
        full = (file["rolled.k_before"].to(check.dtype).clone(), file["rolled.v_before"].to(check.dtype).clone())
        sink, slots = file.setting("sink_frames") // frames * tokens, len(full[0])  # the oldest behind the sink has to go
        check("rolled.y", step(file["rolled.x"], file["e0_second"], file.setting("rolled_first_frame"), full, sink, slots), 2e-5)
        order = [*range(sink), *range(sink + tokens, slots), *range(sink, sink + tokens)]  # the new block last
        for letter, got in zip("kv", full, strict=True):
            check(f"rolled.{letter}_after", got[order], 2e-5)


def whole_model(file: Golden, check: Check) -> None:
    """Three blocks over one cache with every intermediate of the last, other times, and a block far into a stream."""
    x, frames = file["x"].to(check.dtype), file.setting("frames_per_block")
    blocks = x.shape[1] // frames
    model = load_live_talk(file, check.dtype, window=blocks)
    ref, context = file["ref_latent"].to(check.dtype), model.embed_text(file["context"])
    text_kv, features = model.text_kv(context), pad_first(file["audio_features"])
    audio = model.audio_vectors(features)
    check("context_emb", context, 2e-5)
    check("audio_packed", model.pack_audio(features), 1e-5)
    check("audio_cond", audio, 1e-5)
    with check.part("y"):
        check_condition(check, "y", model, ref, file["y"], begins=True)

    def run(name: str, times: list[float], watch: int | None = None) -> tuple[torch.Tensor, KV]:
        cache, made = model.new_cache(*x.shape[-2:]), []
        for b in range(blocks):
            at = slice(frames * b, frames * (b + 1))
            with watched(check, model, name) if b == watch else unwatched():
                made.append(model(x[:, at], ref, model.time(times[at.start]), text_kv, audio[:, at], cache, b))
            if watch is not None:
                check(f"{name}.velocity{b}", made[-1], 5e-5)
        return torch.cat(made, 1), cache

    times = file["timestep"].tolist()
    velocity, cache = run("cached", times, watch=blocks - 1)
    check("nocache.velocity", velocity, 5e-5)
    last = model.time(file["timestep"][-frames:])
    check("cached.time_e", last.e_D, 2e-5)
    check("cached.time_e0", last.e0_6D, 2e-5)
    for layer in range(model.cfg.num_layers):
        for letter, got in zip("kv", cache, strict=True):
            if (name := f"cached.kv.layer{layer}.{letter}") in file:
                check(name, got[layer], 5e-5)
    with check.part("nocache2.velocity"):
        check("nocache2.velocity", run("nocache2", file["nocache2.timestep"].tolist())[0], 5e-5)
    with check.part("far.velocity"):
        at, run_of = slice(frames, 2 * frames), file.setting("far_first_frame") // frames
        grid, time = model.grid(x), model.time(file["nocache2.timestep"][frames])
        place = model.block_place(grid, 0)._replace(first=frames * run_of)
        made = model.place_forward(x[:, at], ref, time, text_kv, audio[:, at], model.new_cache(*x.shape[-2:]), place, begins=False)
        check("far.velocity", made, 5e-5)


def check_condition(check: Check, name: str, model: LiveTalkDiT, ref: torch.Tensor, y_17Fhw: torch.Tensor, begins: bool) -> None:
    """The constant part of the patch embedding against that of the condition channels themselves: reference repeated, mask."""
    reference_2PD, frames = model.embed_reference(ref), y_17Fhw.shape[1]
    got = reference_2PD[[0 if begins and f == 0 else 1 for f in range(frames)]]
    patch, first = model.patch_embedding, model.cfg.out_dim
    wanted = patch.project(y_17Fhw[None].to(check.dtype), patch.weight[:, first:], patch.bias)[0]
    check.compare(name, got, wanted, 1e-5)


@contextmanager
def unwatched() -> Iterator[None]:
    yield


@contextmanager
def watched(check: Check, model: LiveTalkDiT, name: str) -> Iterator[None]:
    """Compare what goes into and comes out of every layer, where the file has it."""

    def watch(layer: int, block: TransformerBlock) -> None:
        def stream(r: Residual, *args: Any) -> Residual:
            if f"{name}.block{layer}.in" in check.file:
                check(f"{name}.block{layer}.in", r.value(), 2e-5)
            out = TransformerBlock.stream(block, r, *args)
            if f"{name}.block{layer}.out" in check.file:
                check(f"{name}.block{layer}.out", out.value(), 2e-5)
            return out

        vars(block)["stream"] = stream

    for layer, block in enumerate(model.transformer_blocks()):
        watch(layer, block)
    try:
        yield
    finally:
        for block in model.transformer_blocks():
            vars(block).pop("stream")


After = Callable[[int, KV, LiveTalkDiT], None]


def run_stream(file: Golden, check: Check, after: After | None = None, quiet: bool = False) -> None:
    """All blocks, free-running from noise: four steps and the clean forward each, over one cache."""
    noise, renoise, ref = file["noise"], file["renoise"], file["ref_latent"].to(check.dtype)
    blocks, frames = len(noise), file.setting("frames_per_block")
    window, sink = file.setting("local_attn_frames") // frames, file.setting("sink_frames") // frames
    model = load_live_talk(file, check.dtype, *((window, sink) if window > 0 else (blocks, 0)))
    steps, shift = file.setting("steps"), float(file.setting("shift"))
    schedule = RenoiseSchedule.of_steps(steps, shift)
    if file.setting("timesteps").startswith("unrounded"):
        schedule = replace(schedule, timesteps=tuple(TRAIN_STEPS * sigma for sigma in schedule.sigmas))
    text_kv = model.text_kv(model.embed_text(file["context"]))
    audio = model.audio_vectors(pad_first(file["audio_features"]))
    cache, times = model.new_cache(*noise.shape[-2:]), [model.time(t) for t in schedule.timesteps]
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in ("x_in", "velocity", "x0", "latents", "context_velocity", "audio_cond")}
    for b in range(blocks):
        x, vectors = noise[b].to(check.dtype), audio[:, frames * b : frames * (b + 1)]
        clean = x
        for step in range(steps):
            if b == 0:
                x = torch.cat((ref, x[:, 1:]), 1)
            v = model(x, ref, times[step], text_kv, vectors, cache, b)
            clean = x - schedule.sigmas[step] * v
            seen["x_in"].append(x)
            seen["velocity"].append(v)
            seen["x0"].append(clean)
            if step + 1 < steps:
                x = schedule.renoise(clean, renoise[b, step], step + 1)
        latents = torch.cat((ref, clean[:, 1:]), 1) if b == 0 else clean
        seen["latents"].append(latents)
        seen["context_velocity"].append(model(latents, ref, model.time(0.0), text_kv, vectors, cache, b))
        seen["audio_cond"].append(vectors)
        if after:
            after(b, cache, model)
    if quiet:
        return
    for name, made in seen.items():
        if name in file or name == "latents":
            check(name, torch.stack(made), 1e-5 if name == "audio_cond" else 1e-4)
    check("sigmas", torch.tensor(schedule.sigmas), 1e-6)
    check("timesteps", torch.tensor(schedule.timesteps), 1e-3)
    tokens = noise[0, 0].numel() // (model.cfg.patch_size[1] * model.cfg.patch_size[2])
    check("current_start", tokens * torch.arange(blocks), 0)
    if "y" in file:
        for b, wanted in enumerate(file["y"]):
            check_condition(check, f"y.{b}", model, ref, wanted, begins=b == 0)


def stream(file: Golden, check: Check) -> None:
    """The whole loop, as far as the file goes into it."""
    run_stream(file, check)


def caches(file: Golden, check: Check) -> None:
    """The cache of `lt_stream` right after the blocks in the names, the newest block last."""

    def look(b: int, cache: KV, model: LiveTalkDiT) -> None:
        cfg, slots = model.cfg, cache[0].shape[1]
        block = slots // cfg.window_blocks
        held = range(b + 1) if b < cfg.window_blocks else [*range(cfg.sink_blocks), *range(b + 1 - cfg.window_blocks + cfg.sink_blocks, b + 1)]
        order = torch.cat([torch.arange(block) + block * block_slot(cfg, one) for one in held])
        for name in [n for n in file if n.startswith(f"kv.b{b}.layer")]:
            layer, letter = name.split("layer")[1].split(".")
            check(name, cache["kv".index(letter)][int(layer), order], 5e-5)

    inputs = file.beside("lt_stream")
    run_stream(inputs, check, look, quiet=True)


def preprocess(file: Golden, check: Check) -> None:
    """Size of the resized image, and the rows and columns added around it or cut from it."""
    columns = file.setting("columns")
    made = []
    for values in file["table"].tolist():
        row = dict(zip(columns, values, strict=True))
        crop = plan_cover(row["img_h"], row["img_w"], (row["out_h"], row["out_w"]))
        top, left = -crop.top, -crop.left
        bottom, right = row["out_h"] - crop.resized_h - top, row["out_w"] - crop.resized_w - left
        row |= {"resized_h": crop.resized_h, "resized_w": crop.resized_w}
        row |= {"pad_top": top, "pad_bottom": bottom, "pad_left": left, "pad_right": right}
        made.append([row[column] for column in columns])
    check("table", torch.tensor(made), 0)


LIVE_TALK_TRANSFORMER: dict[str, Callable[[Golden, Check], None]] = {
    "lt_dit_block": one_block,
    "lt_dit_full": whole_model,
    "lt_stream": stream,
    "lt_stream_kv": caches,
}
LIVE_TALK = LIVE_TALK_TRANSFORMER | {
    "lt_rope": rope,
    "lt_sampler": sampler,
    "lt_audio_pack": audio_pack,
    "lt_wav2vec2": wav2vec2,
    "lt_preprocess": preprocess,
}
