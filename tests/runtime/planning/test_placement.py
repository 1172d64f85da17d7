"""Every placement of 3 and 4 steps, against what a reader would choose, and the impossible ones."""

import pytest

from everface.core.errors import BadInput
from everface.runtime.planning.placement import partitions, place, roles_of

SIZES = {  # roles per device
    (3, "1"): (4,), (3, "2"): (2, 2), (3, "3"): (1, 1, 2), (3, "4"): (1, 1, 1, 1),
    (4, "1"): (5,), (4, "2"): (2, 3), (4, "3"): (1, 2, 2), (4, "4"): (1, 1, 1, 2), (4, "5"): (1, 1, 1, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize(("steps", "placement"), SIZES)
def test_processes(steps: int, placement: str) -> None:
    plan = place(steps, placement)
    assert plan.roles == roles_of(steps) and not plan.inline
    assert tuple(len(d) for d in plan.devices) == SIZES[steps, placement]
    assert place(steps, int(placement)) == plan


def test_inline() -> None:
    plan = place(4, "inline")
    assert plan.inline and plan.devices == (("step0", "step1", "step2", "step3", "decode"),)


def test_eight_devices_take_seven_steps() -> None:
    assert [len(d) for d in place(7, 8).devices] == [1] * 8
    with pytest.raises(BadInput, match=r"9 roles: choose one of inline, 1, .*, 8; more than 8 devices take a second pipeline$"):
        place(8, 9)


def test_partitions_are_all_there_and_keep_the_order() -> None:
    found = [p for n in range(1, 6) for p in partitions(roles_of(4), n)]
    assert len(set(found)) == 2**4 and all(tuple(r for device in p for r in device) == roles_of(4) for p in found)
    assert all(all(p) for p in found)


def test_costs_move_the_cut() -> None:
    assert place(4, 2, {"decode": 3.0}).devices == (("step0", "step1", "step2"), ("step3", "decode"))
    assert place(4, 2, {"decode": 5.0}).devices == (("step0", "step1", "step2", "step3"), ("decode",))


@pytest.mark.parametrize(("steps", "placement"), [(3, "5"), (4, "6"), (4, "0"), (4, 0), (4, "seven"), (4, "-1"), (3, "2.0")])
def test_impossible(steps: int, placement: str) -> None:
    too_many = placement in ("5", "6")
    end = "; more than . devices take a second pipeline$" if too_many else "$"
    with pytest.raises(BadInput, match=r"choose one of inline, 1, 2, 3, 4" + (", 5" if steps == 4 else "") + end):
        place(steps, placement)


@pytest.mark.parametrize("costs", [{"step9": 1.0}, {"step0": 0.0}, {"decode": float("nan")}])
def test_bad_costs(costs: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="positive numbers"):
        place(4, 2, costs)
