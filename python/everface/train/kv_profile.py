"""`everface profile kv`: how much each head needs of its keys, measured during a short stream. What comes of it is in docs/beyond.md."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from everface.core.config import SAMPLE_RATE, Deployment, StreamConfig
from everface.core.errors import BadInput
from everface.media.audio import read_audio
from everface.media.crop import target_size
from everface.media.image import fit_image, read_image
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS, KV_PROFILE
from everface.networks.transformer.dit import cache_shape
from everface.networks.transformer.kv_profile import NEVER, KVProfile
from everface.networks.transformer.layers import Ring
from everface.train.evaluate.offline_stream import OfflineModel, OfflineStream
from everface.weights.store import write_text

IMAGE, AUDIO = DEFAULT_WEIGHTS / "mia.png", DEFAULT_WEIGHTS / "sprache.wav"
SEED, SECONDS = 7, 8
QUERIES = 256  # at most so many of a block, evenly spread
SHARES = (0.8, 0.667, 0.5, 0.4, 0.333)


class Profiler:
    """Adds up masses and errors of blocks with a full ring, all heads of all layers and steps. Computes with tensors only, without waiting
    for them, so that it may be captured in a graph."""

    def __init__(self, model: OfflineModel, stream: OfflineStream, latent: tuple[int, int]) -> None:
        self.blocks, cfg = model.dit.transformer_blocks(), model.config.dit
        (_, ring, _, _), (_, self.sink, _, _) = cache_shape(cfg, *latent)
        self.frames, self.block_frames = cfg.window_blocks * cfg.block_frames, cfg.block_frames
        self.frame, self.slots = ring // self.frames, self.sink + ring
        self.mods = [role.mod for role in stream.roles]
        sizes, on = (len(stream.roles), cfg.num_layers, cfg.num_heads), model.deployment.device
        self.mass = torch.zeros(*sizes, 1 + cfg.window_blocks, dtype=torch.float64, device=on)
        self.error = torch.zeros(*sizes, 2, 1 + self.frames, dtype=torch.float64, device=on)
        self.count = torch.zeros(*sizes[:2], dtype=torch.float64, device=on)
        self.steps: dict[int, dict[int, int]] = defaultdict(dict)  # layer -> the address of a step's keys -> the step

    def observe(self, layer: int, q_THd: Tensor, ring: Ring) -> None:
        """As SelfAttention.observe of a layer."""
        if ring.used < self.slots:
            return
        step = self.steps[layer].setdefault(ring.k_NHd.data_ptr(), len(self.steps[layer]))
        q_QHd = q_THd[:: -(-len(q_THd) // QUERIES)].float()
        newest = ring.start - self.sink + self.block_frames * self.frame - 1  # of the ring's slots
        ring_N = torch.arange(self.slots - self.sink, device=q_THd.device)
        order = torch.cat((ring_N[: self.sink], self.sink + (newest - ring_N) % len(ring_N)))
        weight_DHd = self.blocks[layer].self_attn.o.weight.float() * self.mods[step].blocks[layer][2].reshape(-1, 1)
        weight_HdD = weight_DHd.unflatten(1, q_THd.shape[1:]).permute(1, 2, 0)
        self.count[step, layer] += 1
        for head, weight_dD in enumerate(weight_HdD):
            k_Nd, v_Nd = (x[:, head][order].float() for x in (ring.k_NHd, ring.v_NHd))
            p_QN = (q_QHd[:, head] @ k_Nd.T * k_Nd.shape[1] ** -0.5).softmax(-1)
            sink_Qd, sink_Q = p_QN[:, : self.sink] @ v_Nd[: self.sink], p_QN[:, : self.sink].sum(1)
            p_FQP = p_QN[:, self.sink :].unflatten(1, (self.frames, self.frame)).transpose(0, 1)
            frames_FQd, frames_FQ = p_FQP @ v_Nd[self.sink :].unflatten(0, (self.frames, self.frame)), p_FQP.sum(-1)
            sums_FQd, sums_FQ = (torch.cat((torch.zeros_like(x[:1]), x.cumsum(0))) for x in (frames_FQd, frames_FQ))
            for with_sink in (0, 1):
                o_FQd = (sums_FQd + with_sink * sink_Qd) / (sums_FQ + with_sink * sink_Q).clamp(min=1e-20)[..., None]
                change_FQD = (o_FQd - sums_FQd[-1] - sink_Qd) @ weight_dD
                self.error[step, layer, head, with_sink] += change_FQD.square().mean((1, 2))
            self.mass[step, layer, head, 0] += sink_Q.mean()
            self.mass[step, layer, head, 1:] += frames_FQ.mean(1).unflatten(0, (-1, self.block_frames)).sum(1)

    def profile(self) -> KVProfile:
        """What was seen."""
        count = self.count[..., None, None]
        error = (self.error / count[..., None]).cpu()
        error[..., 0, 0] = NEVER
        return KVProfile(self.sink, self.frame, (self.mass / count).cpu(), error)


def measure_profile(weights: Path | None, image: Path, audio: Path, deployment: Deployment) -> KVProfile:
    """Stream the first seconds of the audio and watch every head. Raises BadInput if they are too short to fill the ring."""
    model = OfflineModel(weights, deployment)
    rgb_HW3 = read_image(image)
    height, width = rgb_HW3.shape[:2]
    size = model.config.size or target_size(height, width, StreamConfig.area)
    pcm_S = torch.cat([torch.from_numpy(part) for part in read_audio(audio)])[: SECONDS * SAMPLE_RATE]
    with torch.inference_mode(), model.stream(fit_image(rgb_HW3, size), StreamConfig(seed=SEED)) as stream:
        rows, cols = stream.noise.shape[-2:]
        profiler = Profiler(model, stream, (rows, cols))
        for layer, block in enumerate(profiler.blocks):
            block.self_attn.observe = partial(profiler.observe, layer)
        for _ in stream.blocks([pcm_S]):
            pass
        if not bool(profiler.count.all()):
            raise BadInput(f"{audio} is too short to fill the KV cache: pass some {SECONDS} s of speech")
        return profiler.profile()


def write_profile(weights: Path | None, image: Path | None, audio: Path | None, deployment: Deployment) -> str:
    """Measure, and write kv_profile.json beside the weights. Returns a table of what shares of the keys would do."""
    profile = measure_profile(weights, image or IMAGE, audio or AUDIO, deployment)
    path = (weights or DEFAULT_WEIGHTS) / KV_PROFILE
    write_text(path, json.dumps(profile.to_dict(), separators=(",", ":")) + "\n")
    return f"{table(profile)}\nwritten to {path}; use it with --kv-keep"


def table(profile: KVProfile) -> str:
    """For some shares: attention flops, and heads by what they keep."""
    lines = [f"{'kv-keep':>8}{'FLOPs':>8}{'all keys':>10}{'no ring':>9}{'no sink':>9}  of {profile.mass_SLHB[..., 0].numel()} heads x steps"]
    for share in SHARES:
        kept = profile.choose(share)
        flops = sum(profile.share(k) for k in kept) / len(kept)
        sink, frames = torch.stack([k.sink_LH for k in kept]), torch.stack([k.frames_LH for k in kept])
        whole, no_ring, no_sink = (int(x.sum()) for x in (sink & (frames == profile.frames), frames == 0, ~sink))
        lines.append(f"{share:>8.3g}{f'/{1 / flops:.2f}':>8}{whole:>10}{no_ring:>9}{no_sink:>9}")
    return "\n".join(lines)
