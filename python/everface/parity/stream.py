"""Whole streams: blocks of all steps, free-running from noise, one ring a step, the sink refreshed where upstream does; and their video."""

from __future__ import annotations

from collections.abc import Callable

import torch

from everface.networks.transformer.dit import DiT
from everface.networks.transformer.kv_cache import KVCache
from everface.networks.transformer.layers import KV
from everface.networks.transformer.schedule import Schedule, sigmas
from everface.parity.dit import block_tokens, load_dit
from everface.parity.frontends import load_vae
from everface.parity.golden import Golden, Missing
from everface.parity.report import Check

DROPPED_FRAMES = 3  # of a stream, which begins in the middle of a latent
MOTION_LATENTS = 92  # what upstream puts before every clip that it decodes; files hold the newest


class Stream:
    """One run over a file; inputs that it lacks are taken from `dit_stream_seq`."""

    def __init__(self, file: Golden, check: Check, blocks: int | None = None, rope_fp16: bool = False) -> None:
        self.file, self.check, self.rope_fp16 = file, check, rope_fp16
        self.base = file if file.case == "dit_stream_seq" else file.beside("dit_stream_seq")
        self.rel_BS = (file if "rel_dist" in file else self.base)["rel_dist"][:blocks]
        self.blocks, self.steps = self.rel_BS.shape
        noise = next((f[n] for f in (file, self.base) for n in ("noise", "x_in") if n in f), None)
        if noise is None:
            raise Missing("noise")
        self.noise = noise[: self.blocks, 0] if noise.dim() == 6 else noise[: self.blocks]
        self.dit: DiT = load_dit(file, check.dtype, self.noise[0])
        self.clip_blocks = file.setting("blocks_per_clip")
        self.schedule = Schedule.from_sigmas(sigmas(self.steps, file.setting("shift")))
        self.text_kv = self.dit.text_kv(self.dit.embed_text(self.input("context")))
        pose = self.input("cond_states").to(check.dtype)
        self.pose = pose if pose.any() else None  # without a pose the model has its own way
        self.sinks: list[KV] = []
        self.reference = self.motion = torch.empty(0)

    def input(self, name: str) -> torch.Tensor:
        return (self.file if name in self.file else self.base)[name]

    def fill_sink(self, clip: int, latents: list[torch.Tensor]) -> KV:
        """The sink of a clip. Later clips see the first generated latent, and new motion latents when the file has some."""
        name = f"_clip{clip}"
        if clip:
            self.reference = latents[0][:, :1]
            self.check(f"ref_latents{name}", self.reference, 1e-4)
        else:
            self.reference = self.input(f"ref_latents{name}" if f"ref_latents{name}" in self.file else "ref_latents")
        if f"motion_latents{name}" in self.file:
            self.motion = self.file[f"motion_latents{name}"]
        elif not clip:
            self.motion = self.input("motion_latents")
        ref, motion = (x.to(self.check.dtype) for x in (self.reference, self.motion))
        return self.dit.prefill_sink(ref, motion, self.text_kv, rope_fp16=self.rope_fp16)

    def run(self, after: Callable[[int, int, KVCache], None] | None = None) -> torch.Tensor:
        """All blocks. Returns the final latents; `after(block, step, cache)` looks at a ring."""
        refresh = "ref_latents_clip1" in self.file
        times = [self.dit.time(t) for t in self.schedule.timesteps]
        caches = [self.dit.new_cache(self.noise.shape[-2], self.noise.shape[-1]) for _ in times]
        latents: list[torch.Tensor] = []
        self.x_in: list[torch.Tensor] = []
        self.velocity: list[torch.Tensor] = []
        for b in range(self.blocks):
            if b == 0 or (refresh and b == self.clip_blocks):  # upstream refreshes once, before the second clip
                self.sinks.append(self.fill_sink(len(self.sinks), latents))
                for cache in caches:
                    cache.prime(*self.sinks[-1])
            audio = self.dit.casual_audio_encoder.encode_block(self.input("audio_input")[b])
            x = self.noise[b].to(self.check.dtype)
            for s in range(self.steps):
                rel = int(self.rel_BS[b, s])
                v = self.dit(x, times[s], self.text_kv, audio, caches[s], b, rel, self.pose, rope_fp16=self.rope_fp16)
                self.x_in.append(x)
                self.velocity.append(v)
                x = self.schedule.advance(x, v, s)
                if after:
                    after(b, s, caches[s])
            latents.append(x)
        return torch.stack(latents)

    def compare(self, latents: torch.Tensor) -> None:
        """What every stream file may hold."""
        self.check("x_in", torch.stack(self.x_in), 1e-4)
        self.check("velocity", torch.stack(self.velocity), 1e-4)
        self.check("latents", latents, 1e-4)
        for name, levels, tolerance in (("sigmas", self.schedule.sigmas, 1e-6), ("timesteps", self.schedule.timesteps, 1e-4)):
            if name in self.file:
                self.check.compare(name, torch.tensor(levels), self.file[name], tolerance)
        if "current_start" in self.file:
            self.check("current_start", torch.arange(self.blocks) * block_tokens(self.dit.cfg, self.noise[0]), 0)

    def compare_sinks(self, prefixes: list[str]) -> None:
        for prefix, sink in zip(prefixes, self.sinks, strict=True):
            if not self.file.below(f"{prefix}."):
                continue  # a kind of file that never had them
            for layer in range(self.dit.cfg.num_layers):
                for letter, got in zip("kv", sink, strict=True):
                    self.check(f"{prefix}.layer{layer}.cond_{letter}", got[layer], 5e-5)


def sequential(file: Golden, check: Check) -> None:
    """Upstream's one-process pipeline, with or without the refresh of its online decoder."""
    stream = Stream(file, check)
    latents = stream.run()
    stream.compare(latents)
    if len(stream.sinks) > 1:
        stream.compare_sinks(["sink0", "sink1"])
    if "video_frame_idx" in file.config:
        with check.part("video_frames"):
            decode_first_clip(file, check, latents)


def rounded_rotations(file: Golden, check: Check) -> None:
    """The same with every cos and sin rounded to float16."""
    stream = Stream(file, check, rope_fp16=True)
    stream.compare(stream.run())


def pipelined(file: Golden, check: Check) -> None:
    """Upstream's many-process pipeline: the reference is refreshed, the video is decoded as a stream."""
    stream = Stream(file, check)
    latents = stream.run()
    stream.compare(latents)
    stream.compare_sinks([f"sink{clip}" for clip in range(len(stream.sinks))])
    with check.part("video_frames"):
        decoder = load_vae(file)
        opened = decoder.warm_up(file["motion_latents"][None, :, : file.setting("vae_warmup_latents")])
        video = torch.cat([to_video(decoder.decode_stream(x[None].float(), opened)) for x in latents], 1)
        check("video_frames", video[:, DROPPED_FRAMES:][:, file.setting("video_frame_idx")], 2e-4)


def decode_first_clip(file: Golden, check: Check, latents: torch.Tensor) -> None:
    """The frames of clip 0: motion latents and clip as one video, the last frames kept.

    The file holds the newest motion latents of a still image. The older ones equal the oldest of these, as the encoder has seen only that
    image for long enough. Later clips need the image itself, as upstream encodes its frames again together with the output.
    """
    clip, kept = file.setting("blocks_per_clip"), file.setting("infer_frames")
    held = file["motion_latents"]
    motion = torch.cat((held[:, :1].expand(-1, MOTION_LATENTS - held.shape[1], -1, -1), held), 1)
    latent = torch.cat((motion, *latents[:clip].float()), 1)
    video = to_video(load_vae(file).decode(latent[None]))[:, -kept:][:, DROPPED_FRAMES:]
    index = file.setting("video_frame_idx")
    first = [i for i, frame in enumerate(index) if frame < video.shape[1]]
    later = [frame for frame in index if frame >= video.shape[1]]
    names = f"video_frames {','.join(str(index[i]) for i in first)}"
    check.compare(names, video[:, [index[i] for i in first]], file["video_frames"][:, first], 2e-4)
    if later:
        why = "decoding later clips needs the reference image, which is not in this folder"
        check.absent(f"video_frames {','.join(map(str, later))}", why)


def to_video(frames_B3THW: torch.Tensor) -> torch.Tensor:
    """Clamped frames [3, T, H, W], in -1..1."""
    return frames_B3THW[0].clamp(-1, 1)


def caches(file: Golden, check: Check) -> None:
    """Sinks and rings of `dit_stream_seq`, compared right after the blocks in their names."""
    rings = sorted({name.rsplit(".", 2)[0] for name in file if name.startswith("kv.b")})
    last = max((int(ring.split(".")[1][1:]) for ring in rings), default=0)

    def look(block: int, step: int, cache: KVCache) -> None:
        if f"kv.b{block}.s{step}" not in rings:
            return
        for layer in range(stream.dit.cfg.num_layers):
            for letter, got in (("k", cache.k_LSHd), ("v", cache.v_LSHd)):
                if (name := f"kv.b{block}.s{step}.layer{layer}.{letter}") in file:
                    check(name, got[layer], 5e-5)

    stream = Stream(file, check, blocks=last + 1)
    stream.run(look)
    stream.compare_sinks(["sink"])
