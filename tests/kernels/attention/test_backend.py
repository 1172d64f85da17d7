"""Selection of the attention backend: what is requested, what was measured, the rule; and attention by libraries."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.kernels.attention.test_block_causal import draw, error
from tests.kernels.poison import DEVICE, attention_tolerance

from everface.core.config import ATTENTIONS, Deployment
from everface.core.errors import BadInput, Unavailable
from everface.kernels.attention import backend, library_backends
from everface.kernels.attention.self_attention import block_causal

CPU, BF16 = torch.device("cpu"), torch.bfloat16
H200, A100 = ("NVIDIA H200", 90), ("NVIDIA A100", 80)
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def auto(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test begins as a process does. The CPU stands for a GPU, so that libraries really run there."""
    monkeypatch.setattr(backend, "_requested", "auto")
    monkeypatch.setattr(backend, "_selected", {})
    monkeypatch.setattr(backend, "MEASURED", dict(backend.MEASURED))
    monkeypatch.setattr(backend, "gpu_model", lambda _: H200)
    yield


def only_serves(patch: pytest.MonkeyPatch, *names: str) -> None:
    patch.setattr(library_backends, "find_fault", lambda name, *_: "" if name in names else f"no {name} here")


def test_measured_names_files_that_exist() -> None:
    for (kind, dtype), (name, file) in backend.MEASURED.items():
        assert name in ATTENTIONS[1:] and (ROOT / file).is_file() and hasattr(torch, dtype), (kind, dtype)


def test_where_nothing_was_measured_the_rule_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    backend.MEASURED.clear()
    only_serves(monkeypatch, "cudnn")
    for dtype in (BF16, backend.FP8):
        assert backend.select_backend(CPU, dtype, 128).name == ("triton" if backend.UNAVAILABLE else "gluon")
        assert backend.select_backend(CPU, dtype, 64).name == "triton"  # small heads
    monkeypatch.setattr(backend, "gpu_model", lambda _: A100)
    assert backend.select_backend(CPU, BF16, 128).name == "triton"


def test_a_backend_of_the_rule_that_cannot_serve_is_replaced_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    backend.MEASURED.clear()
    monkeypatch.setattr(backend, "UNAVAILABLE", "needs Triton 3.6")
    only_serves(monkeypatch, "cudnn")
    assert backend.select_backend(CPU, BF16, 128).name == "cudnn"
    assert backend.select_backend(CPU, backend.FP8, 128).name == "triton"
    backend._selected.clear()
    only_serves(monkeypatch)
    assert backend.select_backend(CPU, BF16, 128) == backend.Selection(
        "triton", "not measured here; cannot serve: gluon: needs Triton 3.6; cudnn: no cudnn here"
    )


def test_a_measurement_wins_and_a_request_wins_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    only_serves(monkeypatch, "flash", "cudnn")
    backend.MEASURED[("NVIDIA H200", "bfloat16")] = "flash", "nvidia-h200/attention.json"
    assert backend.select_backend(CPU, BF16, 128) == backend.Selection("flash", "fastest in nvidia-h200/attention.json")
    backend.request_backend("triton")
    assert backend.select_backend(CPU, BF16, 128) == backend.Selection("triton", "requested")


def test_it_is_selected_and_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    only_serves(monkeypatch)
    backend.request_backend("triton")
    with caplog.at_level(logging.INFO, "everface"):
        monkeypatch.setattr(logging.getLogger("everface"), "propagate", True)
        backend.select_backend(CPU, BF16, 128)
        backend.select_backend(CPU, BF16, 128)
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("attention")]
    assert lines == ["attention: triton on NVIDIA H200 in bfloat16, heads of 128 (requested)"]


def test_a_request_that_cannot_serve_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_backends, "find_spec", lambda _: None)
    for cached in (library_backends.load_attention, library_backends.load_block_attention, library_backends.find_fault):
        cached.cache_clear()
    for name in library_backends.PACKAGES:
        backend.request_backend(name)
        with pytest.raises(Unavailable, match=rf"attention by {name} was requested.* NVIDIA H200: ImportError: {name} is not installed"):
            backend.select_backend(CPU, BF16, 128)
        with pytest.raises(Unavailable, match=rf"attention by {name} was requested.*8-bit keys are read by triton and gluon only"):
            backend.select_backend(CPU, backend.FP8, 128)
    backend.request_backend("gluon")
    with pytest.raises(Unavailable, match="it is for heads of 128 in bfloat16 or e4m3, not of 64 in bfloat16"):
        backend.select_backend(CPU, BF16, 64)
    monkeypatch.setattr(backend, "gpu_model", lambda _: A100)
    with pytest.raises(Unavailable, match="it is for sm_90, and NVIDIA A100 is sm_80"):
        backend.select_backend(CPU, BF16, 128)
    with pytest.raises(BadInput, match="unknown attention 'magic'"):
        backend.request_backend("magic")


def test_a_broken_library_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that raises what it likes, and one that returns nonsense."""
    library_backends.find_fault.cache_clear()

    def broken(*_: torch.Tensor) -> torch.Tensor:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(library_backends, "load_block_attention", lambda _: broken)
    assert library_backends.find_fault("flash", CPU, BF16, 64) == "OSError: libcudart.so.12: cannot open shared object file"
    library_backends.find_fault.cache_clear()
    monkeypatch.setattr(library_backends, "load_block_attention", lambda _: lambda q, k, v, used: q)
    assert "off by" in library_backends.find_fault("flash", CPU, BF16, 64)
    library_backends.find_fault.cache_clear()


@pytest.mark.parametrize("name", library_backends.LIBRARIES)
def test_libraries_equal_the_reference(name: str) -> None:
    """Those that can serve here; slots that are not used hold NaN."""
    device = torch.device(DEVICE)
    fault = library_backends.find_fault(name, device, BF16, 128)
    if fault:
        pytest.skip(fault)
    for sizes in ((67, 230, 230, 1), (33, 112, 56, 3), (65, 64, 64, 2)):
        case = draw(*sizes, 128, BF16)
        o = backend.attend(*case, backend=name)
        assert o.shape == case[0].shape and o.is_contiguous()
        assert error(o, case) <= attention_tolerance(BF16, 128)


def test_another_thread_keeps_its_own_attention() -> None:
    """A library's attention must leave torch's process-wide switches alone. Attention with dropout has the math backend only, so a thread
    that calls it finds none while another has switched everything but FlashAttention off."""
    if fault := library_backends.find_fault("flash", torch.device(DEVICE), BF16, 64):
        pytest.skip(fault)
    q, k, v = (torch.randn(n, 4, 64, device=DEVICE).to(BF16) for n in (256, 512, 512))
    attend, done, errors = library_backends.load_block_attention("flash"), threading.Event(), []

    def with_dropout() -> None:
        x = torch.randn(1, 1, 8, 8, device=DEVICE)
        while not done.is_set():
            try:
                F.scaled_dot_product_attention(x, x, x, attn_mask=x[0, 0], dropout_p=0.5)
            except RuntimeError as error:
                errors.append(error)
                return

    other = threading.Thread(target=with_dropout)
    other.start()
    for _ in range(100):
        attend(q, k, v, 512)
    done.set()
    other.join()
    assert errors == []


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["triton", "gluon", *library_backends.LIBRARIES])
def test_backends_are_captured_after_one_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real GPU
    fault = backend.find_fault(name, torch.device(DEVICE), BF16, 128)
    if fault:
        pytest.skip(fault)
    case = draw(300, 1400, 1100, 2, 128, BF16)
    backend.attend(*case, backend=name)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = backend.attend(*case, backend=name)
    case[0].copy_(torch.randn_like(case[0]))
    graph.replay()
    torch.cuda.synchronize()
    assert error(o, case) <= attention_tolerance(BF16, 128)


def test_a_deployment_names_a_backend_that_exists() -> None:
    assert set(ATTENTIONS[1:]) == {"triton", "gluon", *library_backends.LIBRARIES}
    assert Deployment(attention="gluon").attention == "gluon"
    with pytest.raises(BadInput, match="unknown attention 'fast': choose one of auto, triton"):
        Deployment(attention="fast")


def test_on_a_cpu_it_is_the_reference_whatever_is_requested() -> None:
    backend.request_backend("gluon")
    case = draw(9, 25, 17, 2, 16, torch.float32)
    if DEVICE == "cpu":
        assert error(block_causal(*case), case) <= attention_tolerance(torch.float32, 16)
