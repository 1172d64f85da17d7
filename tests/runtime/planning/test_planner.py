"""The chooser on figures that a reader can add up: rate first, then first frame, then devices; memory rules cuts out."""

from __future__ import annotations

import pytest

from everface.core.errors import BadInput
from everface.models.live_avatar.forecast import DeviceMemory, block_times
from everface.runtime.model import RoleSpec
from everface.runtime.planning.forecast import Times
from everface.runtime.planning.placement import place
from everface.runtime.planning.planner import GIB, Option, best, explain, refuse
from everface.runtime.planning.planner import options as plan_options

NEEDS = DeviceMemory(
    process=1 * GIB, weights=30 * GIB, step_work=1 * GIB, session_ring=10 * GIB, session_sink=2 * GIB,
    decoder=1 * GIB, decode_work=2 * GIB, session_decode=1 * GIB, front=3 * GIB,
)  # fmt: skip
TIMES = block_times(4, 100.0, 60.0, transfer_ms=0.0)


def names(option: Option) -> list[int]:
    return [len(device) for device in option.placement.devices]


def options(steps: int, limits_gib: list[float], memory: DeviceMemory, times: Times, sessions: int = 1) -> list[Option]:
    return plan_options([*(f"step{i}" for i in range(steps)), "decode"], limits_gib, memory, times, sessions)


def test_memory_is_the_sum_of_what_a_device_holds() -> None:
    found = {tuple(names(o)): o for o in options(4, [1000.0] * 5, NEEDS, TIMES, sessions=2)}
    assert len(found) == 16
    assert found[5,].memory_gib == (1 + 30 + 1 + 2 * 2 + 4 * 2 * 10 + 1 + 2 + 2 * 1 + 3,)
    assert found[1, 1, 1, 1, 1].memory_gib == (59.0, 56.0, 56.0, 56.0, 1 + 3 + 2)
    assert found[2, 2, 1].memory_gib == (59.0 + 20, 56.0 + 20, 6.0)


@pytest.mark.parametrize("devices", range(1, 6))
def test_the_best_is_what_place_would_cut_when_memory_is_plenty(devices: int) -> None:
    found = [o for o in options(4, [500.0] * 5, NEEDS, TIMES) if len(o.placement.devices) == devices]
    chosen = best(found)
    placed = place([*(RoleSpec(f"step{i}", 100.0) for i in range(4)), RoleSpec("decode", 60.0)], devices)
    assert chosen and chosen.forecast.fps == pytest.approx(next(o for o in found if o.placement == placed).forecast.fps)


def test_fewer_devices_among_equals() -> None:
    slow_decoder = block_times(4, 100.0, 400.0, transfer_ms=0.0)  # it rules the rate from two devices on
    found = options(4, [500.0] * 5, NEEDS, slow_decoder)
    chosen = best(found)
    assert chosen and names(chosen) == [4, 1]
    words = explain(chosen, found, slow_decoder)
    assert "takes 400 ms a block" in words and words.endswith("5 devices would do no better")


def test_memory_decides() -> None:
    tight = options(4, [56.0] * 3, NEEDS, TIMES)  # two rings do not fit beside the session's process
    chosen = best(tight)
    assert chosen and names(chosen) == [1, 2, 2]
    assert best(options(4, [57.0] * 2, NEEDS, TIMES)) is None  # 58 for two steps and the decoder
    small_first = options(4, [46.0, 80.0, 80.0], NEEDS, TIMES)
    assert best(small_first) is None  # 30 + 1 + 1 + 2 + 10 + 3 = 47 for one step beside the session
    large_last = options(3, [50.0, 45.0, 100.0], NEEDS, TIMES)
    chosen = best(large_last)
    assert chosen and names(chosen) == [1, 1, 2]
    narrow = options(3, [100.0, 45.0], NEEDS, TIMES)
    chosen = best(narrow)
    assert chosen and names(chosen) == [3, 1]
    assert "step0+step1 | step2+decode would be, but needs 48.0 of 45.0 GiB" in explain(chosen, narrow, TIMES)


def test_what_does_not_fit_is_refused_with_its_arithmetic() -> None:
    found = options(4, [40.0] * 2, NEEDS, TIMES)
    assert best(found) is None
    words = str(refuse(found, NEEDS, 1))
    assert words.startswith("nothing fits on up to 2 devices: the closest needs 58.0 GiB for step2+step3+decode where there are 40.0 (")
    assert "weights 30.0 + forward 1.0 + sink 2.0 + 2 KV rings 20.0 + decoder 3.0 + decoder streams 1.0)" in words


@pytest.mark.parametrize("memory", [[], [80.0] * 9, [80.0, 0.0]])
def test_impossible_machines(memory: list[float]) -> None:
    with pytest.raises(BadInput, match="1 to 8 devices"):
        options(4, memory, NEEDS, TIMES)
