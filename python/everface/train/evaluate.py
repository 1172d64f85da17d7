"""The judge: does the default model follow the sound, stay the same person, look sharp and run without seams?

Unseen characters speak with unseen voices. The model under judgement comes in as two functions, so the judge knows no model:
    generate(picture_3HW float32 -1..1, pcm_S float32 16 kHz) -> frames_THW3 uint8, 25 per second
    vae_reconstruct(rgb_T3HW float32 -1..1) -> rgb_T3HW float32: the ceiling that the codec sets
Ground truth goes through the same reader first (the gate), then through the VAE (the ceiling), then comes the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from everface.core.errors import BadInput
from everface.core.log import log
from everface.train import characters, metrics, voices
from everface.train.reader import GATE, Reader

Generate = Callable[[Tensor, Tensor], Tensor]
Reconstruct = Callable[[Tensor], Tensor]
HELD_OUT_SEED = 4_000_000_000  # people from generator seeds above this are never trained on (seeds are 32 bits wide)
FIT_FRAMES = 4

# name, statistic over characters, key, comparison, bar, what it says
BARS = (
    ("reader gate on truth", "min", "gate", ">=", GATE, "every character is readable"),
    ("opening correlation, mean", "mean", "open_corr", ">=", 0.90, "the mouth follows the sound"),
    ("opening correlation, min", "min", "open_corr", ">=", 0.80, "for everybody"),
    ("lag in frames, worst", "max_abs", "lag", "<=", 1.0, "and in time"),
    ("wrong sound, abs mean correlation", "abs_mean", "wrong_corr", "<=", 0.15, "because of this sound, not any"),
    ("VAE PSNR, dB", "mean", "vae_psnr", ">=", 31.0, "the codec keeps the picture"),
    ("identity fit-PSNR, dB", "mean", "fit_psnr", ">=", 26.0, "it stays the same person"),
    ("sharpness against truth", "mean", "sharpness", ">=", 0.65, "it is not a blur"),
    ("block-edge flicker", "mean", "block_flicker", "<=", 2.0, "no seam between blocks"),
)
NOTES = (
    "open_amplitude", "wide_corr", "latent_flicker", "motion_ratio", "blinks_per_minute", "truth_blinks_per_minute",
    "vae_open_corr", "vae_wide_corr", "vae_fit_psnr", "vae_sharpness", "vae_block_flicker", "vae_latent_flicker", "gate_wide",
)  # fmt: skip


def held_out_sounds(folder: Path, count: int, seconds: float, seed: int = 0) -> list[Tensor]:
    """`count` stretches of held-out voices from a folder of make_speech, each from another clip while clips last."""
    paths = sorted(path for path in Path(folder).glob("*.wav") if voices.held_out(path))
    if not paths:
        raise BadInput(f"{folder} holds no held-out speech ({', '.join(voices.HELD_OUT)}); make it with make_speech.")
    generator, length, sounds = torch.Generator().manual_seed(seed), int(seconds * voices.RATE), []
    order = torch.randperm(len(paths), generator=generator).tolist()
    for i in range(count):
        pcm_S = voices.read_wav(paths[order[i % len(paths)]])
        if len(pcm_S) < length:
            raise BadInput(f"{paths[order[i % len(paths)]]} is shorter than {seconds} s; ask for shorter clips.")
        at = torch.randint(len(pcm_S) - length + 1, (1,), generator=generator).item()
        sounds.append(pcm_S[int(at) : int(at) + length])
    return sounds


def evaluate(
    generate: Generate,
    vae_reconstruct: Reconstruct,
    reader: Reader,
    sounds_S: Sequence[Tensor],
    out_dir: Path,
    seed: int = 0,
    size: int = 128,
) -> dict:
    """Judge one character per sound. Writes report.json, report.md and sheet.png to out_dir and returns the report.

    report: {"pass": bool, "bars": [{name, value, comparison, bar, pass, says}], "notes": {name: mean}, "characters": [{...}]}.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(HELD_OUT_SEED + seed)
    id_NP = characters.sample_identity(len(sounds_S), generator)
    targets = [voices.mouth_targets(pcm_S) for pcm_S in sounds_S]
    rows, reads, panels = [], [], []
    for i, (pcm_S, (open_T, wide_T)) in enumerate(zip(sounds_S, targets)):
        anim_TA = characters.sample_motion(open_T, wide_T, generator)
        with torch.no_grad():
            picture_3HW = characters.render(id_NP[i : i + 1], characters.neutral(1), size)[0]
            truth = metrics.as_rgb(metrics.as_frames(characters.render(id_NP[i : i + 1], anim_TA, size)))
            vae = vae_reconstruct(truth)
        made = metrics.as_rgb(generate(picture_3HW, pcm_S))
        T = min(len(made), len(truth), len(vae))
        row, read_T = _judge(id_NP[i], reader, made[:T], truth[:T], vae[:T], open_T[:T], wide_T[:T])
        rows.append(row)
        reads.append(read_T)
        panels.append(_panel(picture_3HW, made[:T], truth[:T]))
        log.info("character %d/%d: %s", i + 1, len(sounds_S), " ".join(f"{k} {v:.3f}" for k, v in row.items()))
    for i, row in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        pairs = [(reads[i], targets[j][0]) for j in others] or [(reads[i], targets[i][0].flip(0))]
        wrong = [metrics.correlation(a[: min(len(a), len(b))], b[: min(len(a), len(b))]) for a, b in pairs]
        row["wrong_corr"] = sum(wrong) / len(wrong)
    report = _report(rows)
    (out_dir / "report.json").write_text(json.dumps(report, indent=1))
    (out_dir / "report.md").write_text(table(report))
    _save_sheet(panels, out_dir / "sheet.png")
    return report


def _judge(
    id_P: Tensor, reader: Reader, made: Tensor, truth: Tensor, vae: Tensor, open_T: Tensor, wide_T: Tensor
) -> tuple[dict[str, float], Tensor]:
    """All figures of one character but the wrong sound, and the mouth opening that was read."""
    read, read_truth, read_vae = reader.read(made), reader.read(truth), reader.read(vae)
    at = torch.linspace(len(made) * 0.3, len(made) - 1, FIT_FRAMES).long()

    def fit(rgb_T3HW: Tensor, reads: tuple[Tensor, Tensor, Tensor]) -> float:
        start_NA = characters.neutral(FIT_FRAMES)
        start_NA[:, :3] = torch.stack(reads, 1)[at].clamp(0, 1)
        return metrics.identity_psnr(id_P, rgb_T3HW[at], start_NA)

    block, latent = metrics.edge_flicker(made)
    vae_block, vae_latent = metrics.edge_flicker(vae)
    true_sharpness = metrics.sharpness(truth)
    row = {
        "gate": metrics.correlation(read_truth[0], open_T),
        "gate_wide": metrics.correlation(read_truth[1], wide_T),
        "open_corr": metrics.correlation(read[0], open_T),
        "lag": float(metrics.lag(read[0], open_T)),
        "open_amplitude": metrics.amplitude_ratio(read[0], open_T),
        "wide_corr": metrics.correlation(read[1], wide_T),
        "fit_psnr": fit(made, read),
        "sharpness": metrics.sharpness(made) / true_sharpness,
        "block_flicker": block,
        "latent_flicker": latent,
        "motion_ratio": metrics.motion_energy(made) / metrics.motion_energy(truth),
        "blinks_per_minute": metrics.blinks_per_minute(read[2]),
        "truth_blinks_per_minute": metrics.blinks_per_minute(read_truth[2]),
        "vae_psnr": metrics.psnr(vae, truth),
        "vae_open_corr": metrics.correlation(read_vae[0], open_T),
        "vae_wide_corr": metrics.correlation(read_vae[1], wide_T),
        "vae_fit_psnr": fit(vae, read_vae),
        "vae_sharpness": metrics.sharpness(vae) / true_sharpness,
        "vae_block_flicker": vae_block,
        "vae_latent_flicker": vae_latent,
    }
    return row, read[0]


def _report(rows: list[dict[str, float]]) -> dict:
    statistics: dict[str, Callable[[list[float]], float]] = {
        "mean": lambda v: sum(v) / len(v),
        "min": min,
        "max_abs": lambda v: max(abs(x) for x in v),
        "abs_mean": lambda v: abs(sum(v) / len(v)),
    }
    bars = []
    for name, statistic, key, comparison, bar, says in BARS:
        value = statistics[statistic]([row[key] for row in rows])
        passed = not math.isnan(value) and (value >= bar if comparison == ">=" else value <= bar)
        bars.append({"name": name, "value": value, "comparison": comparison, "bar": bar, "pass": passed, "says": says})
    notes = {key: statistics["mean"]([row[key] for row in rows]) for key in NOTES}
    return {"pass": all(bar["pass"] for bar in bars), "bars": bars, "notes": notes, "characters": rows}


def table(report: dict) -> str:
    """The report as markdown: bars with pass or MISS, figures without a bar, one line per character."""
    lines = [f"{len(report['characters'])} unseen characters, unseen voices: {'PASS' if report['pass'] else 'MISS'}", ""]
    lines += ["| measure | value | bar | | |", "|---|---|---|---|---|"]
    lines += [
        f"| {b['name']} | {b['value']:.3f} | {b['comparison']} {b['bar']:g} | {'pass' if b['pass'] else 'MISS'} | {b['says']} |"
        for b in report["bars"]
    ]
    lines += [
        "",
        "| without a bar | mean |",
        "|---|---|",
        *(f"| {key} | {value:.3f} |" for key, value in report["notes"].items()),
    ]
    keys = [key for key in report["characters"][0] if key not in NOTES]
    lines += ["", f"| character | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
    lines += [f"| {i} | {' | '.join(f'{row[key]:.3f}' for key in keys)} |" for i, row in enumerate(report["characters"])]
    return "\n".join(lines) + "\n"


def _panel(picture_3HW: Tensor, made: Tensor, truth: Tensor) -> Tensor:
    """One character: the reference and eight generated frames; below, lips generated over lips true, the same moments."""
    size = picture_3HW.shape[-1]
    top, bottom, left, right = characters.mouth_box(size)
    at = torch.linspace(0, len(made) - 1, 8).long()
    faces = torch.cat([picture_3HW[None], made[at]]).permute(1, 2, 0, 3).flatten(2)
    count = faces.shape[-1] // (right - left)
    at = torch.linspace(0, len(made) - 1, count).long()
    lips = [rgb[at, :, top:bottom, left:right].permute(1, 2, 0, 3).flatten(2) for rgb in (made, truth)]
    return torch.cat([faces, *lips], 1)


def _save_sheet(panels: list[Tensor], path: Path) -> None:
    half = (len(panels) + 1) // 2
    columns = [torch.cat(part, 1) for part in (panels[:half], panels[half:]) if part]
    height = max(column.shape[1] for column in columns)
    columns = [torch.nn.functional.pad(column, (0, 8, 0, height - column.shape[1]), value=1.0) for column in columns]
    Image.fromarray(metrics.as_frames(torch.cat(columns, 2)[None])[0].numpy()).save(path)
