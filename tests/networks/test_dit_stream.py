"""Whole streams against golden data: twelve blocks of four steps, free-running from noise, one ring a step.

Files may hold fewer tensors than they could; what is there is checked.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everface.networks.transformer.dit import DiT
from everface.networks.transformer.schedule import Schedule

GOLDEN = Path(__file__).parents[1] / "golden"
Data = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def seq() -> Data:
    return load_file(GOLDEN / "dit_stream_seq.safetensors")


def close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float, name: str) -> None:
    torch.testing.assert_close(got, wanted, atol=tolerance, rtol=0, msg=lambda m: f"{name}: {m}")


def stream(dit: DiT, data: Data, seq: Data, sinks: dict[int, tuple[torch.Tensor, torch.Tensor]], *, kv: Data | None = None) -> None:
    """Run every block of `data`. `sinks`: block -> (reference, motion) latents that fill the sink before it."""
    schedule = Schedule.for_sampler("official")
    text_kv = dit.text_kv(dit.embed_text(data.get("context", seq["context"])))
    times = [dit.time(t) for t in schedule.timesteps]
    caches = [dit.new_cache(8, 16) for _ in times]
    source = data if {"noise", "x_in"} & set(data) else seq
    noise = source["noise"] if "noise" in source else source["x_in"][:, 0]
    checked = 0
    for b in range(len(data["rel_dist"])):
        if b in sinks:
            refill = dit.prefill_sink(*sinks[b], text_kv)
            for cache in caches:
                cache.prime(*refill)
            clip = sorted(sinks).index(b)
            names = {f"sink{clip}": data} | ({"sink": kv} if kv is not None else {})
            for prefix, held in names.items():
                for layer in range(dit.cfg.num_layers):
                    for letter, got in zip("kv", refill, strict=True):
                        name = f"{prefix}.layer{layer}.cond_{letter}"
                        if name in held:
                            close(got[layer], held[name], 5e-5, name)
                            checked += 1
        audio = dit.casual_audio_encoder.encode_block(seq["audio_input"][b])
        x = noise[b]
        for s in range(schedule.steps):
            if "x_in" in data:
                close(x, data["x_in"][b, s], 1e-4, f"x_in {b} {s}")
            rel = int(data["rel_dist"][b, s])
            v = dit(x, times[s], text_kv, audio, caches[s], b, rel)
            if "velocity" in data:
                close(v, data["velocity"][b, s], 1e-4, f"velocity {b} {s}")
                checked += 1
            x = schedule.advance(x, v, s)
            for layer in range(dit.cfg.num_layers):
                name = f"kv.b{b}.s{s}.layer{layer}"
                for part, ring in (("k", caches[s].k_LSHd), ("v", caches[s].v_LSHd)):
                    if kv is not None and f"{name}.{part}" in kv:
                        close(ring[layer], kv[f"{name}.{part}"], 5e-5, f"{name}.{part}")
                        checked += 1
        if "latents" in data:
            close(x, data["latents"][b], 1e-4, f"latents {b}")
            checked += 1
    assert checked


def test_sequential_with_its_caches(dit: DiT, seq: Data) -> None:
    sink = (seq["ref_latents"], seq["motion_latents"])
    stream(dit, seq, seq, {0: sink}, kv=load_file(GOLDEN / "dit_stream_kv.safetensors"))


def test_pipelined_refreshes_the_reference_only(dit: DiT, seq: Data) -> None:
    data = load_file(GOLDEN / "dit_stream_tpp.safetensors")
    assert torch.equal(data["ref_latents_clip1"], data["latents"][0][:, :1])
    stream(dit, data, seq, {4 * i: (data[f"ref_latents_clip{i}"], data["motion_latents"]) for i in (0, 1)})
