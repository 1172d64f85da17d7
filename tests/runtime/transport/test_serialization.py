"""Serialized messages come back bit for bit; what is not a message is refused."""

import pytest
import torch

from everface.core.errors import BadInput
from everface.runtime.messages import Block, Cancel, Cancelled, CloseSession, Message, OpenSession, Stop
from everface.runtime.transport import serialization
from everface.runtime.transport.block_layout import describe_tensor, empty_like_description

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(a[k], b[k]) for k in a
    )


def test_block() -> None:
    condition = {str(d): (torch.randn(3, 5) * 50).to(d) for d in DTYPES}
    condition |= {"scalar": torch.tensor(7), "empty": torch.zeros(0, 4), "strided": torch.randn(6, 4).t(), "x": torch.ones(1)}
    block = Block(3, 2, 10**6, 2**40, 11, torch.randn(16, 3, 2, 2), condition, last=True)
    back = serialization.decode(serialization.encode(block))
    assert isinstance(back, Block)
    assert [getattr(back, k) for k in ("session", "revision", "index", "pts", "frames", "last")] == [3, 2, 10**6, 2**40, 11, True]
    assert same({"x": block.x}, {"x": back.x}) and same(condition, back.condition)


def test_open_session_keeps_nan_and_infinity() -> None:
    image = torch.tensor([float("nan"), float("inf"), -0.0])
    back = serialization.decode(
        serialization.encode(OpenSession(1, {"image": image}, {"n": 2**62, "f": 0.1, "s": "é", "b": True}))
    )
    assert isinstance(back, OpenSession) and back.params == {"n": 2**62, "f": 0.1, "s": "é", "b": True}
    assert torch.equal(back.tensors["image"].view(torch.uint8), image.view(torch.uint8))


@pytest.mark.parametrize("message", [CloseSession(4), Cancel(4, 9), Cancelled(4, 9, 12), Stop()])
def test_messages_without_tensors(message: Message) -> None:
    assert serialization.decode(serialization.encode(message)) == message


def test_bad_bytes_and_tensors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    good = serialization.encode(Block(1, 0, 0, 0, 12, torch.randn(2, 3)))
    long = good.clone()
    long[:8].view(torch.int64)[0] = 10**9
    for bad in (good[:4], good[:-16], torch.cat([good, good]), long, torch.zeros(64, dtype=torch.uint8)):
        with pytest.raises(BadInput, match="not a message"):
            serialization.decode(bad)
    with pytest.raises(BadInput, match="cannot travel"):
        serialization.encode(Block(1, 0, 0, 0, 12, torch.zeros(2, dtype=torch.complex64)))
    monkeypatch.setattr(serialization, "MOST_BYTES", 1000)
    with pytest.raises(BadInput, match="beyond the limit of 1000"):
        serialization.encode(Block(1, 0, 0, 0, 12, torch.zeros(1000)))


def test_a_described_tensor_keeps_its_dtype_and_shape() -> None:
    for dtype in serialization.DTYPES.values():
        for shape in ((), (0, 3), (2, 3, 4)):
            like = empty_like_description(describe_tensor("x", torch.zeros(shape, dtype=dtype)))
            assert (like.dtype, like.shape, like.device.type) == (dtype, torch.Size(shape), "meta")
