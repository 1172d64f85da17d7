"""The choice of attention: what is asked for, what was measured, the rule; and the peers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.kernels.test_block_causal import DEVICE, TOLERANCE, draw, error

from everface.core.config import ATTENTIONS, Deployment
from everface.core.errors import BadInput, Unavailable
from everface.kernels.attention import backend, peers
from everface.kernels.attention.block_causal import block_causal

CPU, BF16 = torch.device("cpu"), torch.bfloat16
H200, A100 = ("NVIDIA H200", 90), ("NVIDIA A100", 80)
RESULTS = Path(__file__).parents[2] / "bench" / "results"


@pytest.fixture(autouse=True)
def auto(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test begins as a process does. The CPU stands for a chip, so that peers are really tried out, there."""
    monkeypatch.setattr(backend, "_asked", "auto")
    monkeypatch.setattr(backend, "_chosen", {})
    monkeypatch.setattr(backend, "MEASURED", dict(backend.MEASURED))
    monkeypatch.setattr(backend, "chip", lambda _: H200)
    yield


def serves(patch: pytest.MonkeyPatch, *names: str) -> None:
    patch.setattr(peers, "trouble", lambda name, *_: "" if name in names else f"no {name} here")


def test_measured_names_files_that_exist() -> None:
    for (kind, dtype), (name, file) in backend.MEASURED.items():
        assert name in ATTENTIONS[1:] and (RESULTS / file).is_file() and hasattr(torch, dtype), (kind, dtype)


def test_where_nothing_was_measured_the_rule_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    backend.MEASURED.clear()
    serves(monkeypatch, "cudnn")
    assert backend.choose(CPU, BF16, 128).name == "cudnn"
    assert backend.choose(CPU, BF16, 64).name == "triton"  # small heads
    assert backend.choose(CPU, torch.float8_e4m3fn, 128).name == "triton"
    monkeypatch.setattr(backend, "chip", lambda _: A100)
    assert backend.choose(CPU, BF16, 128).name == "triton"


def test_a_peer_of_the_rule_that_cannot_serve_is_replaced_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    backend.MEASURED.clear()
    serves(monkeypatch)
    assert backend.choose(CPU, BF16, 128) == backend.Choice(
        "triton", "not measured here; cudnn would be the rule, but cannot serve: no cudnn here"
    )


def test_what_was_measured_wins_and_what_is_asked_for_wins_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    serves(monkeypatch, "flash", "cudnn")
    backend.MEASURED[("NVIDIA H200", "bfloat16")] = "flash", "nvidia-h200/attention.json"
    assert backend.choose(CPU, BF16, 128) == backend.Choice("flash", "fastest in nvidia-h200/attention.json")
    backend.ask("triton")
    assert backend.choose(CPU, BF16, 128) == backend.Choice("triton", "asked for")


def test_it_is_chosen_once_and_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    serves(monkeypatch)
    backend.ask("triton")
    with caplog.at_level(logging.INFO, "everface"):
        monkeypatch.setattr(logging.getLogger("everface"), "propagate", True)
        backend.choose(CPU, BF16, 128)
        backend.choose(CPU, BF16, 128)
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("attention")]
    assert lines == ["attention: triton on NVIDIA H200 in bfloat16, heads of 128 (asked for)"]


def test_what_is_asked_for_and_cannot_serve_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda _: None)
    for cached in (peers.over_keys, peers.peer, peers.trouble):
        cached.cache_clear()
    for name in peers.PACKAGES:
        backend.ask(name)
        with pytest.raises(Unavailable, match=rf"attention by {name} was asked for.* NVIDIA H200: ImportError: {name} is not installed"):
            backend.choose(CPU, BF16, 128)
    backend.ask("gluon")
    with pytest.raises(Unavailable, match="it is for heads of 128 in bfloat16 or e4m3, not of 64 in bfloat16"):
        backend.choose(CPU, BF16, 64)
    monkeypatch.setattr(backend, "chip", lambda _: A100)
    with pytest.raises(Unavailable, match="it is for sm_90, and NVIDIA A100 is sm_80"):
        backend.choose(CPU, BF16, 128)
    with pytest.raises(BadInput, match="unknown attention 'magic'"):
        backend.ask("magic")


def test_a_broken_peer_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that raises what it likes, and one that answers nonsense."""
    peers.trouble.cache_clear()

    def broken(*_: torch.Tensor) -> torch.Tensor:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(peers, "peer", lambda _: broken)
    assert peers.trouble("flash", CPU, BF16, 64) == "OSError: libcudart.so.12: cannot open shared object file"
    peers.trouble.cache_clear()
    monkeypatch.setattr(peers, "peer", lambda _: lambda q, k, v, used: q)
    assert "off by" in peers.trouble("flash", CPU, BF16, 64)
    peers.trouble.cache_clear()


@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_equal_the_reference(name: str) -> None:
    """Those that can serve here; slots that are not used hold NaN."""
    device = torch.device(DEVICE)
    trouble = peers.trouble(name, device, BF16, 128)
    if trouble:
        pytest.skip(trouble)
    for sizes in ((67, 230, 230, 1), (33, 112, 56, 3), (65, 64, 64, 2)):
        case = draw(*sizes, 128, BF16)
        o = backend.attend(*case, by=name)
        assert o.shape == case[0].shape and o.is_contiguous()
        assert error(o, case) <= TOLERANCE[BF16]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["triton", "gluon", *peers.PEERS])
def test_backends_are_captured_after_one_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real chip
    trouble = backend.why_not(name, torch.device(DEVICE), BF16, 128)
    if trouble:
        pytest.skip(trouble)
    case = draw(300, 1400, 1100, 2, 128, BF16)
    backend.attend(*case, by=name)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = backend.attend(*case, by=name)
    case[0].copy_(torch.randn_like(case[0]))
    graph.replay()
    torch.cuda.synchronize()
    assert error(o, case) <= TOLERANCE[BF16]


def test_a_deployment_names_a_backend_that_exists() -> None:
    assert set(ATTENTIONS[1:]) == {"triton", "gluon", *peers.PEERS}
    assert Deployment(attention="gluon").attention == "gluon"
    with pytest.raises(BadInput, match="unknown attention 'fast': choose one of auto, triton"):
        Deployment(attention="fast")


def test_on_a_cpu_it_is_the_reference_whatever_is_asked_for() -> None:
    backend.ask("gluon")
    case = draw(9, 25, 17, 2, 16, torch.float32)
    if DEVICE == "cpu":
        assert error(block_causal(*case), case) <= TOLERANCE[torch.float32]
