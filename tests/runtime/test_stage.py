"""A local channel: slots, urgency, abort. A stage: order, revisions, tombstones."""

import threading
import time

import pytest
import torch
from tests.runtime import toy

from everface.runtime.messages import Block, Cancel, Cancelled, CloseSession, Failure, OpenSession, Stop
from everface.runtime.stage import Stage
from everface.runtime.transport.base import ChannelError
from everface.runtime.transport.local import LocalChannel


def block(index: int, revision: int = 0) -> Block:
    return Block(1, revision, index, index * 7680, 12, toy.noise(index), {"audio": torch.zeros(3)})


def test_two_slots_then_wait_for_credit() -> None:
    cancels: list[Cancel] = []
    channel = LocalChannel(on_cancel=cancels.append, timeout_s=10.0)
    put: list[int] = []

    def give() -> None:
        for index in range(6):
            channel.send(block(index))
            put.append(index)

    sender = threading.Thread(target=give)
    sender.start()
    time.sleep(0.1)
    assert put == [0, 1]
    channel.send(Cancel(1, 1))
    channel.send(Stop())  # both reach a full channel
    assert cancels == [Cancel(1, 1)]
    messages = [channel.receive(1.0) for _ in range(7)]
    sender.join()
    assert [m.index for m in messages if isinstance(m, Block)] == list(range(6)) and channel.receive(0.0) is None


def test_abort_wakes_both_ends() -> None:
    broken: list[str] = []

    def wait(act) -> None:
        with pytest.raises(ChannelError) as caught:
            act()
        broken.append(str(caught.value))

    empty, full = LocalChannel(), LocalChannel(slots=1)
    full.send(block(0))
    threads = [threading.Thread(target=wait, args=(act,)) for act in (lambda: empty.receive(60.0), lambda: full.send(block(1)))]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    empty.abort("bang")
    full.abort("bang")
    for thread in threads:
        thread.join(5.0)
    assert broken == ["bang", "bang"]
    assert isinstance(full.receive(0.0), Block)  # what came before the end can still be had


def test_nobody_takes() -> None:
    channel = LocalChannel(slots=1, timeout_s=0.05)
    channel.send(block(0))
    with pytest.raises(ChannelError, match=r"received nothing for 0.05 s"):
        channel.send(block(1))


def test_stage_epochs_and_order() -> None:
    stage = Stage({role.name: toy.Toy.build_role(role.name, toy.SPEC) for role in toy.roles_of(3)})
    stage.run(OpenSession(1, {"bias": torch.zeros(toy.LATENT)}))
    assert isinstance(stage.run(block(0)), Block)
    stage.on_cancel(Cancel(1, 2))
    stage.on_cancel(Cancel(1, 1))  # the newest counts
    assert stage.run(block(1, revision=1)) == Cancelled(1, 1, 1)
    assert stage.run(Cancelled(1, 1, 2)) == Cancelled(1, 1, 2)
    assert isinstance(stage.run(block(3, revision=2)), Block)
    with pytest.raises(RuntimeError, match="came after block 3"):
        stage.run(block(3, revision=2))
    stage.run(CloseSession(1))
    failed = stage.run(block(4, revision=2))
    assert isinstance(failed, Failure) and "not open" in failed.reason


def test_interruption_between_two_roles_of_a_device() -> None:
    ran: list[str] = []

    class Interrupting(toy.ToyRole):
        def run(self, block: Block) -> Block:
            ran.append(self.name)
            stage.on_cancel(Cancel(1, 1))
            return super().run(block)

    stage = Stage({name: Interrupting(name, toy.SPEC) for name in ("step0", "step1")})
    stage.run(OpenSession(1, {"bias": torch.zeros(toy.LATENT)}))
    assert stage.run(block(0)) == Cancelled(1, 0, 0) and ran == ["step0"]


def test_failed_opening_frees_what_was_opened() -> None:
    class Short(toy.ToyRole):
        def open(self, opening: OpenSession) -> None:
            raise MemoryError("no room")

    first = toy.ToyRole("step0", toy.SPEC)
    stage = Stage({"step0": first, "step1": Short("step1", toy.SPEC)})
    failed = stage.run(OpenSession(1, {"bias": torch.zeros(toy.LATENT)}))
    assert failed == Failure(1, 0, -1, "step1", "MemoryError: no room")
    assert not first.state and not list(stage.sessions)


def test_a_failed_block_closes_its_session_on_this_stage() -> None:
    stage = Stage({role.name: toy.Toy.build_role(role.name, toy.SPEC) for role in toy.roles_of(3)})
    params = {"fault": "throw", "fail_role": "step1", "fail_at": 0}
    stage.run(OpenSession(1, {"bias": torch.zeros(toy.LATENT)}, params))
    stage.run(OpenSession(2, {"bias": torch.zeros(toy.LATENT)}))
    assert stage.run(block(0)) == Failure(1, 0, 0, "step1", "ArithmeticError: toy trouble at block 0")
    assert list(stage.sessions) == [2] and isinstance(stage.run(block(1)), Failure)
