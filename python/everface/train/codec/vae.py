"""Training of the default model's video VAE: the Wan 2.1 architecture at small width, on drawn characters.

First single frames, which are cheap and teach space, then crops of 21 and 41 frames, which teach time. Loss: L1 +
squared error, spatial gradients (edges), temporal differences (no flicker between latents), weighted towards mouth and eyes.

The encoder is deeper than the decoder: it runs once a session, the decoder for every frame.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from everface.core.config import VAEConfig
from everface.core.errors import BadInput
from everface.model.vae import VAE
from everface.model.vae_layers import CausalConv3d, ResidualBlock, TemporalStride
from everface.train.engine.optimizer import Ema, Optimiser, autocast, read_checkpoint, write_checkpoint
from everface.train.engine.run_log import Journal
from everface.train.synthetic.characters import eyes_box, mouth_box, neutral, render, sample_identity, sample_motion
from everface.weights.files import open_file
from everface.weights.load import load_into

TINY_VAE = VAEConfig(
    dim=16, dim_mult=(1, 2, 4, 6), encoder_blocks=(1, 2, 4, 3), decoder_blocks=(2, 1, 1, 1), mean=(0.0,) * 16, std=(1.0,) * 16
)  # fmt: skip
STILL, MOVING = 5, 16  # frames of a training clip: the still picture, then motion
MEASURED = STILL + 64  # of an unseen one, to and fro
ENCODER_LAYERS = "encoder.downsamples."
OVERSHOOT = 16  # pixels by which a crop may be drawn beyond the picture, and is moved back to its edge


@dataclass(frozen=True)
class VAEPlan:
    """The schedule; phases and learning rate follow the clock."""

    minutes: float = 38.0
    iterations: int = 0  # 0: by the clock; else by steps, and a run is repeatable
    lr: float = 3e-3
    warmup_steps: int = 40
    singles: float = 0.2  # of the time, spent on single frames
    decay_from: float = 0.4  # of the time; linear to 2 % afterwards
    ema: float = 0.995
    clips: int = 1200
    unseen: int = 12  # characters to measure on
    seed: int = 1


def train_vae(
    run_dir: Path, plan: VAEPlan, config: VAEConfig = TINY_VAE, device: str = "cpu", init: Path | None = None
) -> Path:
    """Train, measure the latents' mean and std, and write run_dir/vae.safetensors and vae.json. Resumes.

    init: a safetensors file of a finished run, to go on from; its encoder may be shallower than `config`'s. It knows single frames, and
    the plan's rate would unlearn the rest (two thirds of it doubled a trained codec's loss): a sixth of it, and no frames alone.
    """
    if init is not None:
        plan = replace(plan, singles=0.0, lr=plan.lr / 6)
    run_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    vae = new_vae(config)
    if init is not None:
        load_into(vae, grown(open_file(init), vae))
    vae = vae.to(device)
    optimiser, ema = Optimiser(vae), Ema(vae, plan.ema)
    progress = read_checkpoint(run_dir, vae, ema, optimiser)
    clips = draw_clips(run_dir, plan.clips, plan.seed)
    unseen = draw_clips(run_dir, plan.unseen, plan.seed + 1000)
    size = clips.shape[-1]
    weight = region_weight(size).to(device)
    began, saved = time.monotonic() - progress.seconds, time.monotonic()
    with Journal(run_dir) as journal:
        while (done := vae_done(plan, progress.step, time.monotonic() - began)) < 1:
            generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + progress.step)
            video, mask = draw_batch(clips, weight, done < plan.singles, generator)
            with autocast(device):
                z = vae.encode(video.to(device))
                out = vae.decode(z + 0.05 * torch.randn(z.shape, generator=generator).to(z))
            loss = vae_loss(out.float(), video.to(device), mask.to(device)) + 1e-4 * z.float().square().mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimiser.step(plan.lr * vae_rate(done, progress.step, plan))
            ema.update(vae)
            progress.step, progress.seconds = progress.step + 1, time.monotonic() - began
            journal.add(loss=loss.item())
            if progress.step % 25 == 0:
                row: dict[str, float] = {"step": progress.step, "seconds": round(progress.seconds)}
                if progress.step % 200 == 0:
                    with ema.swapped(vae):
                        row |= measure(vae, unseen)
                journal.write(row)
            if time.monotonic() - saved > 90:
                write_checkpoint(run_dir, vae, ema, optimiser, progress)
                saved = time.monotonic()
        write_checkpoint(run_dir, vae, ema, optimiser, progress)
        with ema.swapped(vae):
            journal.write({"step": progress.step, "seconds": round(progress.seconds)} | measure(vae, unseen))
    config = latent_statistics(vae, ema, clips[:150], config)
    path = run_dir / "vae.safetensors"
    save_file({n: t.contiguous() for n, t in ema.weights.items()}, path)
    (run_dir / "vae.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    return path


def new_vae(config: VAEConfig) -> VAE:
    """Fresh weights: residual branches start quiet, the past unseen, time re-sampling as plain repeat and skip. What single
    frames teach then holds for video from its first step."""
    vae = VAE(config)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, ResidualBlock):
                module.residual["6"].weight.mul_(0.1)  # type: ignore[index]
            if isinstance(module, CausalConv3d):
                module.weight[:, :, :2] = 0
            if isinstance(module, TemporalStride) or (isinstance(module, CausalConv3d) and module.kernel_size[1] == 1):
                module.weight.zero_()
                eye = torch.eye(module.in_channels).repeat(module.out_channels // module.in_channels, 1)
                module.weight[:, :, 2, 0, 0] = eye
                module.bias.zero_()  # type: ignore[union-attr]
    return vae


def grown(held: Mapping[str, torch.Tensor], vae: VAE) -> dict[str, torch.Tensor]:
    """The weights of `held` under the names they have in `vae`, whose encoder may have more residual blocks at the end of a level.
    Those begin as identity, so that the codec is at first what it was. Raises BadInput where `held` has more than `vae`."""
    new = vae.state_dict()
    before, now = {place: number for number, place in encoder_layers(held).items()}, encoder_layers(new)
    if surplus := before.keys() - now.values():
        raise BadInput(f"the encoder to go on from is deeper than the one to train (layers more: {len(surplus)}): it can be deepened, not cut")
    out = {name: held[name] for name in held if not name.startswith(ENCODER_LAYERS)}
    for name, tensor in new.items():
        if name.startswith(ENCODER_LAYERS):
            number, leaf = name.removeprefix(ENCODER_LAYERS).split(".", 1)
            place = now[int(number)]
            if place in before:
                out[name] = held[f"{ENCODER_LAYERS}{before[place]}.{leaf}"]
            else:
                out[name] = torch.zeros_like(tensor) if leaf.startswith("residual.6.") else tensor
    return out


def encoder_layers(names: Iterable[str]) -> dict[int, tuple[int, int]]:
    """Number of a layer -> (level, how many residual blocks of it come before); the down-sampling that ends a level is (level, -1)."""
    own = [name.removeprefix(ENCODER_LAYERS).split(".", 2) for name in names if name.startswith(ENCODER_LAYERS)]
    strides = {int(number) for number, part, *_ in own if part == "resample"}
    out, level, block = {}, 0, 0
    for number in sorted({int(number) for number, *_ in own}):
        if number in strides:
            out[number], level, block = (level, -1), level + 1, 0
        else:
            out[number], block = (level, block), block + 1
    return out


def draw_clips(run_dir: Path, count: int, seed: int) -> torch.Tensor:
    """uint8 clips [N, 3, 5 + 16, H, W] of `count` characters, rendered once and kept in the run's folder."""
    path = run_dir / f"clips_{seed}_{count}.safetensors"
    if not path.exists():
        out = []
        for n in range(count):
            g = torch.Generator().manual_seed(seed * 1_000_003 + n)
            mouth = torch.rand(2, MOVING // 4 + 2, generator=g)  # any opening, any width, changing at the pace of speech
            open_T, wide_T = F.interpolate(mouth[None], size=MOVING, mode="linear")[0].clamp(0, 1)
            rest = float(torch.rand(1, generator=g) < 0.15)
            anim = sample_motion(open_T * (1 - rest), wide_T, g)
            identity = sample_identity(1, g)
            frames = [render(identity, neutral(1)).expand(STILL, -1, -1, -1), render(identity.expand(MOVING, -1), anim)]
            out.append(torch.cat(frames).add(1).mul(127.5).round().to(torch.uint8).transpose(0, 1))
        save_file({"clips": torch.stack(out)}, path)
    return load_file(path)["clips"]


def draw_batch(clips: torch.Tensor, weight_HW: torch.Tensor, single: bool, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(video [B, 3, T, H, W] in -1..1, weight [B, 1, T, H, W]): whole single frames, or crops of 21 and 41 frames.

    The picture's own edges are in many crops: drawn evenly they were in one of 65, and a fifth of all that the codec lost was lost in the
    lowest sixteen rows. What an encoder remembers reaches back 80 frames. Taught on 13 at a time it lost the colours of some faces within
    a second; so some crops are longer than the clips, which then run to and fro. The first frames are four times as wrong as later
    ones, and a session never shows them, though its reference is encoded so. They weigh less, or most of what is learned would be theirs.
    """

    def pick(n: int) -> int:
        return int(torch.randint(n, (1,), generator=g))

    def crop(side: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        clip = clips[pick(len(clips))]
        t = pick(len(order)) if single else 0  # the still, then a jump
        y, x = (min(max(pick(size - side + 1 + 2 * OVERSHOOT) - OVERSHOOT, 0), size - side) for _ in range(2))
        if pick(3) == 0:  # a third of the crops around the features
            top, bottom, left, right = (mouth_box, eyes_box)[pick(2)](size)
            y = min(max((top + bottom - side) // 2 + pick(17) - 8, 0), size - side)
            x = min(max((left + right - side) // 2 + pick(33) - 16, 0), size - side)
        return clip[:, order[t : t + frames], y : y + side, x : x + side].float() / 127.5 - 1, weight_HW[y : y + side, x : x + side]

    size = clips.shape[-1]
    side, frames, batch = (size, 1, 12) if single else ((64, 41, 2), (64, 41, 2), (64, 41, 2), (96, 21, 2), (size, 21, 1))[pick(5)]
    order = to_and_fro(clips.shape[2], frames)
    # Of two crops the one with more to see: flat backgrounds are soon learned.
    drawn = [max((crop(side, frames) for _ in range(2)), key=lambda one: one[0].diff(dim=-1).abs().mean().item()) for _ in range(batch)]
    weights = torch.stack([weight for _, weight in drawn])[:, None, None]
    return torch.stack([video for video, _ in drawn]), weights * lead_in(frames).to(weights)[:, None, None]


def lead_in(frames: int) -> torch.Tensor:
    """Loss weight [T] of a crop's frames: from 0.4 to 1 over the first twelve, after which a stream's quality is level. Mean 1."""
    weight = (0.4 + torch.arange(frames) / 20).clamp(max=1)
    return weight / weight.mean()


def to_and_fro(length: int, count: int) -> list[int]:
    """Numbers of a clip's frames, all of them in order; where `count` is more, its moving part goes back and forth for the rest."""
    order = list(range(length))
    while len(order) < count:
        order += [*range(length - 2, STILL, -1), *range(STILL, length)]
    return order[: max(count, length)]


def region_weight(size: int) -> torch.Tensor:
    """Loss weight [H, W]: 1, and 2 over mouth and eyes."""
    weight = torch.ones(size, size)
    for top, bottom, left, right in (mouth_box(size), eyes_box(size)):
        weight[top:bottom, left:right] = 2.0
    return weight / weight.mean()


def vae_loss(out: torch.Tensor, video: torch.Tensor, mask: torch.Tensor, lead: int = 1, seams: float = 3.0) -> torch.Tensor:
    """L1 + 40 squared + 0.5 edges + 2 temporal differences, weighted; `seams` times that where one latent's frames follow another's,
    which is where a codec flickers. mask [B, 1, T or 1, H, W]. `lead`: frames before the first whole latent."""
    error = out - video
    loss = (mask * (error.abs() + 40 * error.square())).mean()
    loss = loss + 0.5 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
    if video.shape[2] > 1:
        change = error.diff(dim=2).abs()
        seam = (torch.arange(change.shape[2], device=change.device) + 1 - lead) % 4 == 0
        loss = loss + 2 * (mask[:, :, -change.shape[2] :] * change * (1 + (seams - 1) * seam)[:, None, None]).mean()
    return loss


def vae_done(plan: VAEPlan, step: int, seconds: float) -> float:
    """How much of the run is behind."""
    return step / plan.iterations if plan.iterations else seconds / (60 * plan.minutes)


def vae_rate(done: float, step: int, plan: VAEPlan) -> float:
    """Factor of the learning rate: warm-up by steps, then constant, then linear to 2 % by the clock."""
    fall = 1 - max(0.0, done - plan.decay_from) / (1 - plan.decay_from)
    return min(1.0, (step + 1) / plan.warmup_steps) * max(0.02, fall)


@torch.inference_mode()
def measure(vae: VAE, unseen: torch.Tensor) -> dict[str, float]:
    """What `worth` says of unseen characters, after their still frames, over streams of MEASURED: loss of colour shows late."""
    video = unseen[:, :, to_and_fro(unseen.shape[2], MEASURED)].float() / 127.5 - 1
    out = torch.stack([vae.decode(vae.encode(v[None]))[0] for v in video])
    return worth(out[:, :, STILL:], video[:, :, STILL:])


def worth(out_N3THW: torch.Tensor, video_N3THW: torch.Tensor) -> dict[str, float]:
    """PSNR of whole frames and of the mouth in dB; `edge`: how much more the error changes from frame to frame at the edge of a latent
    than inside one. The first frame is the first of a latent."""
    error = out_N3THW.clamp(-1, 1) - video_N3THW
    top, bottom, left, right = mouth_box(error.shape[-1])

    def psnr(error: torch.Tensor) -> float:
        return round((10 * torch.log10(4 / error.square().flatten(1).mean(1))).mean().item(), 2)

    change = error.diff(dim=2).abs().mean(dim=(0, 1, 3, 4))  # what the VAE adds to a frame's change
    edges = change[3::4].mean() / change[[i for i in range(len(change)) if i % 4 != 3]].mean()
    return {"psnr": psnr(error), "mouth": psnr(error[..., top:bottom, left:right]), "edge": round(edges.item(), 2)}


@torch.inference_mode()
def latent_statistics(vae: VAE, ema: Ema, clips: torch.Tensor, config: VAEConfig) -> VAEConfig:
    """The configuration with mean and std of each latent channel, so that normalised latents are about N(0, 1)."""
    with ema.swapped(vae):
        z = torch.cat([vae.encode(c[None].float() / 127.5 - 1) for c in clips])
    mean, std = z.mean(dim=(0, 2, 3, 4)).tolist(), z.std(dim=(0, 2, 3, 4)).tolist()
    return replace(config, mean=tuple(round(m, 5) for m in mean), std=tuple(round(s, 5) for s in std))

