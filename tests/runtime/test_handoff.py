"""A local hop: slots, urgency, abort. A stage: order, epochs, tombstones."""

import threading
import time

import pytest
import torch
import toy

from everface.core.block import Block, Closing, Opening
from everface.runtime.handoff import Broken, Local
from everface.runtime.plan import roles_of
from everface.runtime.stage import Epoch, Failure, Stage, Stop, Tombstone


def block(index: int, epoch: int = 0) -> Block:
    return Block(1, epoch, index, index * 7680, 12, toy.noise(index), {"audio": torch.zeros(3)})


def test_two_slots_then_wait_for_credit() -> None:
    heard: list[Epoch] = []
    hop = Local(hear=heard.append, timeout_s=10.0)
    put: list[int] = []

    def give() -> None:
        for index in range(6):
            hop.put(block(index))
            put.append(index)

    giver = threading.Thread(target=give)
    giver.start()
    time.sleep(0.1)
    assert put == [0, 1]
    hop.put(Epoch(1, 1))
    hop.put(Stop())  # both reach a full hop
    assert heard == [Epoch(1, 1)]
    messages = [hop.take(1.0) for _ in range(7)]
    giver.join()
    assert [m.index for m in messages if isinstance(m, Block)] == list(range(6)) and hop.take(0.0) is None


def test_abort_wakes_both_ends() -> None:
    broken: list[str] = []

    def wait(act) -> None:
        with pytest.raises(Broken) as caught:
            act()
        broken.append(str(caught.value))

    empty, full = Local(), Local(slots=1)
    full.put(block(0))
    threads = [threading.Thread(target=wait, args=(act,)) for act in (lambda: empty.take(60.0), lambda: full.put(block(1)))]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    empty.abort("bang")
    full.abort("bang")
    for thread in threads:
        thread.join(5.0)
    assert broken == ["bang", "bang"]
    assert isinstance(full.take(0.0), Block)  # what came before the end can still be had


def test_nobody_takes() -> None:
    hop = Local(slots=1, timeout_s=0.05)
    hop.put(block(0))
    with pytest.raises(Broken, match=r"took nothing for 0.05 s"):
        hop.put(block(1))


def test_stage_epochs_and_order() -> None:
    stage = Stage({name: toy.build(name, toy.SPEC) for name in roles_of(3)})
    stage.run(Opening(1, {"picture": torch.zeros(toy.LATENT)}))
    assert isinstance(stage.run(block(0)), Block)
    stage.hear(Epoch(1, 2))
    stage.hear(Epoch(1, 1))  # the newest counts
    assert stage.run(block(1, epoch=1)) == Tombstone(1, 1, 1)
    assert stage.run(Tombstone(1, 1, 2)) == Tombstone(1, 1, 2)
    assert isinstance(stage.run(block(3, epoch=2)), Block)
    with pytest.raises(RuntimeError, match="came after block 3"):
        stage.run(block(3, epoch=2))
    stage.run(Closing(1))
    failed = stage.run(block(4, epoch=2))
    assert isinstance(failed, Failure) and "not open" in failed.reason


def test_interruption_between_two_roles_of_a_device() -> None:
    ran: list[str] = []

    class Interrupting(toy.Toy):
        def run(self, block: Block) -> Block:
            ran.append(self.name)
            stage.hear(Epoch(1, 1))
            return super().run(block)

    stage = Stage({name: Interrupting(name, toy.SPEC) for name in ("step0", "step1")})
    stage.run(Opening(1, {"picture": torch.zeros(toy.LATENT)}))
    assert stage.run(block(0)) == Tombstone(1, 0, 0) and ran == ["step0"]


def test_failed_opening_frees_what_was_opened() -> None:
    class Short(toy.Toy):
        def open(self, opening: Opening) -> None:
            raise MemoryError("no room")

    first = toy.Toy("step0", toy.SPEC)
    stage = Stage({"step0": first, "step1": Short("step1", toy.SPEC)})
    failed = stage.run(Opening(1, {"picture": torch.zeros(toy.LATENT)}))
    assert failed == Failure(1, 0, -1, "step1", "MemoryError: no room")
    assert not first.state and not list(stage.sessions)


def test_a_failed_block_closes_its_session_on_this_stage() -> None:
    stage = Stage({name: toy.build(name, toy.SPEC) for name in roles_of(3)})
    params = {"fault": "throw", "fail_role": "step1", "fail_at": 0}
    stage.run(Opening(1, {"picture": torch.zeros(toy.LATENT)}, params))
    stage.run(Opening(2, {"picture": torch.zeros(toy.LATENT)}))
    assert stage.run(block(0)) == Failure(1, 0, 0, "step1", "ArithmeticError: toy trouble at block 0")
    assert list(stage.sessions) == [2] and isinstance(stage.run(block(1)), Failure)
