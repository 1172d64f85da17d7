"""Cases of components of the transformer: rotations, FramePack, audio, noise levels, adapters, 8-bit layers."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from everface.core.config import DiTConfig
from everface.kernels.fused.norm_rope import rotate
from everface.kernels.linear import fp8_linear as fp8
from everface.networks.audio.causal_encoder import CausalAudioEncoder
from everface.networks.transformer.framepack import MOTION_GROUPS
from everface.networks.transformer.linear import Residual
from everface.networks.transformer.rope import axis_pairs, axis_table, frames_table, frequencies, motion_table, sink_time
from everface.networks.transformer.schedule import Schedule, euler, sigmas
from everface.parity.dit import fill, load_dit
from everface.parity.golden import Golden
from everface.parity.report import Check
from everface.weights.lora import read_lora

FAR = 6000  # latent frames into a stream from where float64 angles differ between machines by more than a float32 step
PREFIX_FRAMES = 73  # copies of a block's first frame that upstream puts before it


def rope(file: Golden, check: Check) -> None:
    """Tables of noisy and sink tokens and what they do to vectors; `blockB` and `relR` are in the names."""
    d, (grid_rows, grid_columns), frames = file.setting("head_dim"), file.setting("patch_grid"), file.setting("frames_per_block")
    grid = (grid_rows, grid_columns)
    with check.part("freq_rows.cos_sin"):
        index = file["freq_rows.index"]
        rows = torch.cat([axis_table(index, frequencies(pairs), False) for pairs in axis_pairs(d)], 1)
        check("freq_rows.cos_sin", rows, 1e-5 if index.max() >= FAR else 1e-6)
    motion = motion_table(grid, MOTION_GROUPS, d)
    if "motion.cos_sin" in file:
        check("motion.cos_sin", motion, 1e-6)
    for name in [n for n in file if n.startswith(("noisy.block", "cond.block"))]:
        first = frames * int(re.findall(r"block(\d+)", name)[0])
        if name.startswith("noisy"):
            table = frames_table(first, frames, grid, d, fp16=name.endswith("_fp16"))
        else:
            rel = int(re.findall(r"rel(\d+)", name)[0])
            table = frames_table(sink_time(first, rel), 1, grid, d)
            if len(file[name]) > len(table):  # a grid that does not pool comes without motion
                table = torch.cat((table, motion))
        with check.part(name):
            if name.endswith("_rot"):
                check(name, rotate(file["q" if name.startswith("noisy") else "cond_k"], table), 1e-5)
            else:
                check(name, table, 0.0 if name.endswith("_fp16") else 1e-5 if first >= FAR else 1e-6)


def framepack(file: Golden, check: Check) -> None:
    """Packed motion and its rotations; `add_lastN` are ablations that keep only the N oldest groups of it."""
    dit = load_dit(file)
    for name in [n.removesuffix(".in") for n in file if n.endswith(".in")]:
        motion = file[f"{name}.in"].clone()
        if name.startswith("add_last"):
            newest = sum(file.setting("buckets")[: 2 - int(name.removeprefix("add_last"))])
            motion[:, motion.shape[1] - newest :] = 0
        check(f"{name}.tokens", dit.embed_motion(motion[None]) - dit.trainable_cond_mask.weight[2], 2e-5)
        if f"{name}.cos_sin" in file or not name.startswith("add_last"):
            check(f"{name}.cos_sin", motion_table(dit.grid(motion), MOTION_GROUPS, dit.cfg.head_dim), 1e-6)


def audio_encoder_injector(file: Golden, check: Check) -> None:
    """The audio encoder on raw windows and on a block, then what the injectors add; two speakers share an image by masks."""
    cfg = DiTConfig.from_dict(file.config)
    encoder = CausalAudioEncoder(cfg.dim, cfg.audio_dim, cfg.wav2vec_layers, cfg.num_audio_token)
    own = file.below("w.casual_audio_encoder.")
    fill(encoder, file, own or file.beside("dit_weights").below("casual_audio_encoder."))
    for name in [n.removesuffix(".input") for n in file if n.endswith(".input")]:
        features = file[f"{name}.input"]
        block = name.startswith("block")  # the others are windows as they are
        prefix = features[..., :1].expand(-1, -1, PREFIX_FRAMES if block else 0)
        local, global_ = encoder(torch.cat((prefix, features), -1)[None])
        check(f"{name}.local", local, 2e-5)
        check(f"{name}.global", global_, 2e-5)
        if block:
            local, global_ = encoder.encode_block(features)
            check(f"{name}.local_used", local, 2e-5)
            check(f"{name}.global_used", global_, 2e-5)

    dit = load_dit(file)
    first, frames = cfg.audio_inject_layers[0], file["block12.local_used"].shape[0]
    local, global_ = file["block12.local_used"][None], file["block12.global_used"].flatten(1)[None]
    x = file["inject.x"].view(1, frames, -1, cfg.dim)
    for layer in range(cfg.num_layers):
        if layer in cfg.audio_inject_layers or f"inject.block{layer}.y" in file:
            check(f"inject.block{layer}.y", dit.inject(layer, x, local, global_), 2e-5)
    with check.part("inject_small.y"):
        small = file["inject_small.x"].view(1, frames, -1, cfg.dim)
        check("inject_small.y", dit.inject(first, small, local, global_), 2e-5)
    with check.part("inject2.y"):
        audio_kv = dit.audio_kv(file["inject2.audio_local"], file["inject2.audio_global"].flatten(2))[0]
        masks = file["inject2.mask"].reshape(-1, frames, x.shape[2], 1)
        check("inject2.y", dit.audio_injector.stream(Residual(x), 0, audio_kv, masks).value(), 2e-5)


def sampler(file: Golden, check: Check) -> None:
    """Noise levels for any number of steps, and one chain of steps."""
    shift = file.setting("shift")
    for steps in sorted(int(name[1:].split(".")[0]) for name in file if name.endswith(".sigmas")):
        schedule = Schedule.from_sigmas(sigmas(steps, shift))
        check(f"n{steps}.sigmas", torch.tensor(schedule.sigmas), 1e-6)
        check(f"n{steps}.timesteps", torch.tensor(schedule.timesteps), 1e-4)
    steps = sum(name.endswith(".v") for name in file)
    schedule, x = Schedule.from_sigmas(sigmas(steps, shift)), file["x0_start"]
    for step in range(steps):
        v = file[f"step{step}.v"]
        check(f"step{step}.x", x, 1e-5)
        check(f"step{step}.x0_pred", euler(x, v, schedule.sigmas[step], 0.0), 1e-5)
        x = schedule.advance(x, v, step)
        check(f"step{step}.x_next", x, 1e-5)


def lora_merge(file: Golden, check: Check) -> None:
    """Adapters read from a file of their own, merged into the base; bfloat16 bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        save_file(file.below("lora."), path)
        lora = read_lora(path, file.setting("alpha"))
        check.compare("scaling", torch.tensor(lora.scale), torch.tensor(file.setting("scaling")), 0.0)
        for name in file.setting("merged_modules"):
            with check.part(f"merged.{name}"):
                base = file[f"base.{name}"]
                check(f"merged.{name}", lora.merge(name, base), 1e-6)
                if f"merged_bf16.{name}" in file:
                    check(f"merged_bf16.{name}", lora.merge(name, base.bfloat16()), 0.0)


def fp8_linear(file: Golden, check: Check) -> None:
    """Quantized values and scales exact in both roundings, the GEMM in float32 and bfloat16, and its distance from no quantization."""
    for case in sorted(name.removesuffix(".weight") for name in file if name.endswith(".weight")):
        x, w, bias = (file[f"{case}.{name}"] for name in ("x", "weight", "bias"))
        for name, value, ending in (("x", x, ""), ("weight", w, ""), ("weight", w.float(), "_from_f32")):
            quantized, scale = fp8.quantize_tensor(value)
            wanted = f"{case}.{name}_fp8{ending}"
            check.compare(wanted, quantized.view(torch.uint8), file[wanted].view(torch.uint8), 0.0)
            wanted = f"{case}.{name}_scale{ending}"
            check(wanted, scale, 1e-6 * float(file[wanted]))
        quantized_w, scale_w = fp8.quantize_tensor(w)
        exact = fp8.scaled_gemm_reference(*fp8.quantize_tensor(x), quantized_w, scale_w, bias, torch.float32)
        check(f"{case}.y_dequant_f32", exact, 1e-5 * float(file[f"{case}.y_dequant_f32"].abs().max()))
        y = fp8.fp8_linear(x, quantized_w, scale_w, bias)
        check(f"{case}.y_scaled_mm_bf16", y, 1, "ulp")
        check(f"{case}.y_unquantised_f32", y, 0.06, "rms")
