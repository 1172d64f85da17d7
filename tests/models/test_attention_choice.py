"""The attention of a deployment, from the command line to the kernel that runs: 8-bit Gluon end to end, the fastest configuration forecast."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from everface.cli.flags import deployment
from everface.cli.parser import build_parser
from everface.core.config import AudioConfig, Deployment, DiTConfig, ModelConfig, TextConfig, VAEConfig
from everface.core.errors import BadInput, Unavailable
from everface.kernels.attention import backend, self_attention
from everface.kernels.attention.block_causal_fp8 import block_causal_fp8_reference
from everface.kernels.launch import tile_family
from everface.models.live_avatar.builders import check_dtype
from everface.models.live_avatar.role_factory import build_role
from everface.models.live_avatar.roles import StepRole
from everface.networks.transformer.dit import DiT
from everface.runtime.messages import Block, OpenSession

CFG = DiTConfig(
    dim=256, ffn_dim=96, freq_dim=32, num_heads=2, num_layers=3, text_dim=8, text_len=1, audio_dim=160, wav2vec_layers=1,
    audio_inject_layers=(0, 2),
)  # fmt: skip  heads of 128, as the kernel for sm_90 wants them
BEST = ["render", "a.png", "b.wav", "-o", "c.mp4", "--dtype", "fp8-attention", "--attention", "gluon"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    config = ModelConfig(CFG, VAEConfig(), AudioConfig("logmel", 40, 4), TextConfig("none"))
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    save_file({k: v.contiguous() for k, v in DiT(CFG).state_dict().items()}, tmp_path / "dit.safetensors")
    return tmp_path


@pytest.fixture(autouse=True)
def on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands for an H200: the op goes where it would go there. A process that has selected nothing yet."""
    monkeypatch.setattr(backend, "_requested", "auto")
    monkeypatch.setattr(backend, "_selected", {})
    monkeypatch.setattr(backend, "gpu_model", lambda _: ("NVIDIA H200", 90))
    monkeypatch.setattr(self_attention, "runs_fp8_attention", lambda *_: True)
    monkeypatch.setattr(self_attention, "block_causal_fp8_op", backend.attend_fp8)


def run_block(model: Path, chosen: Deployment) -> torch.Tensor:
    """One block through the first step, built as a worker builds it."""
    role = build_role("step0", {"weights": str(model), "lora": None, "sampler": "official", "deployment": asdict(chosen)})
    assert isinstance(role, StepRole)
    tensors = {"reference": torch.randn(16, 1, 4, 4), "motion": torch.randn(16, 19, 4, 4), "text": torch.randn(1, 8)}
    role.open(OpenSession(1, tensors, {"seed": 3, "rope_fp16": False}))
    audio = {"audio_local": torch.randn(3, 5, CFG.dim), "audio_global": torch.randn(3, CFG.dim)}
    return role.run(Block(1, 0, 0, 0, 12, torch.randn(16, 3, 4, 4), audio)).x


def test_the_command_line_reaches_the_8_bit_kernel_for_sm_90(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = deployment(build_parser().parse_args(BEST))
    assert (chosen.dtype, chosen.attention) == ("fp8-attention", "gluon")
    dtypes: list[torch.dtype] = []

    def hopper(q_THd: torch.Tensor, *rest: Any) -> torch.Tensor:
        dtypes.append(q_THd.dtype)
        return block_causal_fp8_reference(q_THd, *rest)

    monkeypatch.setattr(backend, "UNAVAILABLE", "")
    monkeypatch.setattr(backend, "launch_hopper_fp8", hopper)
    assert run_block(model, chosen).isfinite().all()
    assert dtypes == [torch.float8_e4m3fn] * CFG.num_layers


def test_a_machine_without_gluon_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "UNAVAILABLE", "this Triton has no Gluon")
    with pytest.raises(Unavailable, match="attention by gluon was requested, but cannot serve on NVIDIA H200: this Triton has no Gluon"):
        run_block(model, deployment(build_parser().parse_args(BEST)))


def test_a_card_without_the_shared_memory_for_8_bit_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """sm_120 is newer than sm_90 and has e4m3, but 99 KiB: attention would be the reference, with all scores in memory."""
    for found, accepted in (((12, 0), ("bfloat16", "fp8")), ((9, 0), ("bfloat16", "fp8", "fp8-attention")), ((8, 6), ("bfloat16",))):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, found=found: found)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a card")
        tile_family.cache_clear()
        for dtype in ("bfloat16", "fp8", "fp8-attention"):
            with contextlib.nullcontext() if dtype in accepted else pytest.raises(BadInput, match=f"does not compute in {dtype}"):
                check_dtype(Deployment(device="cuda", dtype=dtype))
    tile_family.cache_clear()
