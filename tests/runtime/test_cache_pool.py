"""Cache slots: what is shared, what is reused, the limit, memory, and that nothing is kept of an opening that failed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from everface.core.errors import Unavailable
from everface.runtime.cache_pool import CachePool


@dataclass(frozen=True)
class Layout:
    """Some values shared, some for each role, in two tensors of which one is a view of the other's memory."""

    shared_values: int = 16
    role_values: int = 64
    kind: str = ""

    def shared(self, device: torch.device | str) -> dict[str, torch.Tensor]:
        return {"shared": torch.zeros(self.shared_values, device=device)}

    def per_role(self, device: torch.device | str) -> dict[str, torch.Tensor]:
        whole = torch.zeros(self.role_values, device=device)
        return {"whole": whole, "half": whole[: self.role_values // 2]}


LAYOUT, OTHER = Layout(), Layout(kind="other")
HUGE = Layout(role_values=1 << 45)


def test_roles_share_some_tensors_and_have_others_of_their_own() -> None:
    pool = CachePool("cpu", 2)
    (a, used_a), (b, used_b) = pool.open(7, 0, LAYOUT), pool.open(7, 2, LAYOUT)
    assert a is b and not used_a and not used_b and len(pool) == 1 and list(a.roles) == [0, 2]
    assert a.roles[0]["whole"].data_ptr() != a.roles[2]["whole"].data_ptr()
    c, _ = pool.open(8, 0, LAYOUT)
    assert c.shared["shared"].data_ptr() != a.shared["shared"].data_ptr()


def test_the_next_session_takes_over_what_was_returned() -> None:
    pool = CachePool("cpu", 2)
    slot, used = pool.open(1, 0, LAYOUT)
    slot.attached["graph"] = "captured"
    pool.close(1)
    pool.close(1)
    assert len(pool) == 0 and not used
    again, used = pool.open(2, 0, LAYOUT)
    assert again is slot and used and again.attached == {"graph": "captured"}
    assert pool.open(3, 0, LAYOUT)[0] is not slot


def test_the_limit_counts_sessions_and_evicts_other_layouts() -> None:
    pool = CachePool("cpu", 2)
    first, _ = pool.open(1, 0, LAYOUT)
    pool.open(2, 0, LAYOUT)
    with pytest.raises(Unavailable, match="all 2 sessions"):
        pool.open(3, 0, LAYOUT)
    pool.close(1)
    assert pool.open(3, 0, OTHER)[0] is not first  # room was made for another layout
    pool.close(3)
    pool.close(2)
    assert pool.open(4, 0, LAYOUT)[0] is not first and len(pool) == 1


def test_short_memory_leaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = CachePool("cpu", 3)
    with pytest.raises(Unavailable, match="do not fit"):
        pool.open(1, 0, HUGE)  # the shared tensors fit, the role's do not
    assert len(pool) == 0 and not pool._waiting
    left = 4 * LAYOUT.role_values  # views are not counted twice
    monkeypatch.setattr(pool, "_free_bytes", lambda: 0 if pool._waiting else left)
    pool._waiting.append(CachePool("cpu", 1).open(9, 0, OTHER)[0])
    pool.open(2, 0, LAYOUT)  # only the waiting slot stood in the way
    assert not pool._waiting and len(pool) == 1
    left = 0
    with pytest.raises(Unavailable):
        pool.open(2, 1, LAYOUT)  # the second role's: the first is released with it
    assert len(pool) == 0 and not pool._waiting
