"""`everface doctor`: optional packages and attention backends; --plan: the official model's placement on other machines."""

from __future__ import annotations

import pytest
import torch

from everface import cli
from everface.core.config import ModelConfig
from everface.doctor import machine
from everface.kernels.attention import backend
from everface.networks.sizes import ring_values


def plan(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    code = cli.main(["doctor", "--plan", *flags])
    out, err = capsys.readouterr()
    return code, out + err


def test_a_table_for_every_number_of_devices(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = plan(capsys, "--devices", "8", "--memory", "80")
    rows = {line.split()[0]: line for line in text.splitlines() if line[:1].isdigit() and "steps and" not in line}
    assert code == 0 and list(rows) == ["1", "2", "3", "4", "5", "6-8"]
    assert "does not fit" in rows["1"] and "!" in rows["1"]  # 30 GiB of weights, four rings of 10
    assert rows["5"].startswith("5 *") and "45.2" in rows["5"] and text.count("*") == 2
    assert "4.6 " in rows["5"] and "as 5" in rows["6-8"]
    assert "* best: " in text


def test_flags_reach_the_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    _, text = plan(
        capsys, "--devices", "4", "--memory", "141", "--sampler", "skip-null", "--dtype", "fp8", "--sessions", "2",
        "--step-ms", "120", "--decode-ms", "60", "--size", "384x704",
    )  # fmt: skip
    assert "3 steps and the decoder at 384x704, weights in fp8, 2 session(s); a forward takes 120 ms" in text
    best = next(line for line in text.splitlines() if line.startswith("4 *"))
    assert "step0 | step1 | step2 | decode" in best and "100.0" in best
    assert len(text.splitlines()[3:7]) == 4


def test_a_plan_that_does_not_fit_names_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = plan(capsys, "--devices", "2", "--memory", "40")
    ring = 2 * 2 * ring_values(ModelConfig().dit, 48, 88) / 2**30
    assert code == 2 and text.count("\n") == 1 and f"2 KV rings {ring:.1f}" in text and "weights without text 26.5" in text


@pytest.mark.parametrize("sampler", ["official", "skip-null"])
def test_80_gib_hold_every_role_in_fp8(sampler: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = plan(capsys, "--devices", "1", "--memory", "80", "--dtype", "fp8", "--sampler", sampler)
    left = {"official": 4.2, "skip-null": 15.8}[sampler]
    assert code == 0 and f"It fits, with {left} GiB left on the fullest device: process 1.0 + weights 18.6 + " in text


def test_8_bit_attention_halves_the_rings(capsys: pytest.CaptureFixture[str]) -> None:
    _, text = plan(capsys, "--devices", "1", "--memory", "80", "--dtype", "fp8-attention")
    assert "4 KV rings 23.4" in text and "weights 18.6" in text


def test_where_nothing_fits_the_text_weights_go_to_host_memory(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = plan(capsys, "--devices", "1", "--memory", "73", "--dtype", "fp8")
    assert code == 0 and 'weights in fp8, with Deployment(text_weights="host"), 1 session(s)' in text and "weights without text 14.8" in text
    _, text = plan(capsys, "--devices", "1", "--memory", "70", "--dtype", "fp8")
    assert 'with Deployment(text_weights="host", image_encoder="cpu")' in text and "session process" not in text
    assert "text_weights" not in plan(capsys, "--devices", "1", "--memory", "80", "--dtype", "fp8")[1]


def test_without_a_gpu_it_asks_for_devices(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert plan(capsys) == (2, "everface: this machine has no CUDA device to plan for: describe some, as in --devices 5 --memory 80\n")
    assert "the memory of each" in plan(capsys, "--devices", "2")[1]
    assert "multiples of 64" in plan(capsys, "--devices", "2", "--memory", "80", "--size", "700x384")[1]


def test_every_optional_package_is_listed_once_with_its_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in (
        "nvidia-nccl-cu12", "nvidia-nccl-cu13", "flash-attn", "xformers", "cupy-cuda12x", "cupy-cuda13x", "pybind11", "pytest-benchmark",
    ):  # fmt: skip
        [line] = [line for line in lines if line.startswith(name + " ")]
        assert len(line.split(maxsplit=2)[2]) > 15
    assert machine.native_line() in next(line for line in lines if line.startswith("everface._native"))


def test_it_names_the_attention_of_each_device_and_why_not_another(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        assert machine.attention() == ["the reference, on a CPU"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(backend, "select_backend", lambda *_: backend.Selection("triton", "asked for"))
    monkeypatch.setattr(backend, "find_fault", lambda name, *_: "it is not installed" if name == "xformers" else "")
    monkeypatch.setattr(backend, "gpu_model", lambda _: ("NVIDIA A100", 80))
    assert machine.attention() == ["cuda:0 triton (asked for)", "cuda:0 not xformers: it is not installed"]
    monkeypatch.setattr(backend, "gpu_model", lambda _: ("NVIDIA H200", 90))
    assert machine.attention()[1] == "cuda:0 triton in fp8-attention (asked for)"
