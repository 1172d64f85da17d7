"""Every placement of 3 and 4 steps and a decoder, against what a reader would choose, and the impossible ones."""

from dataclasses import replace

import pytest
from tests.runtime.toy import roles_of

from everface.core.errors import BadInput
from everface.runtime.model import RoleSpec
from everface.runtime.planning.placement import partitions, place

SIZES = {  # roles per device
    (3, "1"): (4,), (3, "2"): (2, 2), (3, "3"): (1, 1, 2), (3, "4"): (1, 1, 1, 1),
    (4, "1"): (5,), (4, "2"): (2, 3), (4, "3"): (1, 2, 2), (4, "4"): (1, 1, 1, 2), (4, "5"): (1, 1, 1, 1, 1),
}  # fmt: skip


def names(steps: int) -> tuple[str, ...]:
    return tuple(role.name for role in roles_of(steps))


def with_cost(name: str, cost: float) -> list[RoleSpec]:
    return [replace(role, cost=cost) if role.name == name else role for role in roles_of(4)]


@pytest.mark.parametrize(("steps", "placement"), SIZES)
def test_processes(steps: int, placement: str) -> None:
    placed = place(roles_of(steps), placement)
    assert placed.roles == names(steps) and not placed.inline
    assert tuple(len(d) for d in placed.devices) == SIZES[steps, placement]
    assert place(roles_of(steps), int(placement)) == placed


def test_inline() -> None:
    placed = place(roles_of(4), "inline")
    assert placed.inline and placed.devices == (names(4),)
    assert placed.threads == (names(4)[:4], ("decode",))
    assert place([RoleSpec("a"), RoleSpec("b"), RoleSpec("c")], "inline").threads == (("a", "b", "c"),)


def test_eight_devices_take_eight_roles() -> None:
    assert [len(d) for d in place(roles_of(7), 8).devices] == [1] * 8
    with pytest.raises(BadInput, match=r"9 roles: choose one of inline, 1, .*, 8; more than 8 devices take a second pipeline$"):
        place(roles_of(8), 9)


def test_partitions_are_all_there_and_keep_the_order() -> None:
    found = [p for n in range(1, 6) for p in partitions(names(4), n)]
    assert len(set(found)) == 2**4 and all(tuple(r for device in p for r in device) == names(4) for p in found)
    assert all(all(p) for p in found)


def test_processes_of_other_hosts() -> None:
    placed = place(roles_of(4), "2+1@10.0.0.1:29500")
    assert placed.devices == place(roles_of(4), 3).devices
    assert (placed.remote, placed.address) == (1, ("10.0.0.1", 29500))
    assert place(roles_of(4), "0+2@[fd00::1]:80").address == ("fd00::1", 80)
    for wrong in ("2+0@host:1", "+2@host:1", "2+1@host", "2@host:1"):
        with pytest.raises(BadInput, match="impossible"):
            place(roles_of(4), wrong)
    with pytest.raises(BadInput, match="placement 6 is impossible with 5 roles"):
        place(roles_of(4), "3+3@host:1")


def test_costs_move_the_cut() -> None:
    assert place(with_cost("decode", 3.0), 2).devices == (("step0", "step1", "step2"), ("step3", "decode"))
    assert place(with_cost("decode", 5.0), 2).devices == (("step0", "step1", "step2", "step3"), ("decode",))


@pytest.mark.parametrize(("steps", "placement"), [(3, "5"), (4, "6"), (4, "0"), (4, 0), (4, "seven"), (4, "-1"), (3, "2.0")])
def test_impossible(steps: int, placement: str) -> None:
    too_many = placement in ("5", "6")
    end = "; more than . devices take a second pipeline$" if too_many else "$"
    with pytest.raises(BadInput, match=r"choose one of inline, 1, 2, 3, 4" + (", 5" if steps == 4 else "") + end):
        place(roles_of(steps), placement)


@pytest.mark.parametrize("roles", [[], [RoleSpec("a"), RoleSpec("a")], with_cost("step0", 0.0), with_cost("decode", float("nan"))])
def test_bad_roles(roles: list[RoleSpec]) -> None:
    with pytest.raises(BadInput, match="a positive cost"):
        place(roles, 2)
