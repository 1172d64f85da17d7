"""The schedule that every training run has, and changing the fields of a plan from the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

from everface.core.errors import BadInput

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Fields = TypeVar("Fields", bound="DataclassInstance")


@dataclass(frozen=True)
class RunPlan:
    """Length and learning rate of a run. It follows the clock of this machine, or, with `iterations`, counts steps: then a run is
    repeatable to the bit."""

    minutes: float = 45.0
    iterations: int = 0  # 0: by the clock
    lr: float = 2e-3
    warmup_steps: int = 60
    decay_from: float = 0.6  # share of the run after which the learning rate falls linearly to 2 %
    ema: float = 0.998
    seed: int = 1


def learning_rate_factor(done: float, step: int, plan: RunPlan) -> float:
    """Warm-up by steps, then constant, then linear to 2 %. `done`: the share of the run that is behind."""
    decay = 1.0 if plan.decay_from >= 1 else max(0.02, 1 - max(0.0, done - plan.decay_from) / (1 - plan.decay_from))
    return min(1.0, (step + 1) / max(1, plan.warmup_steps)) * decay


def with_settings(held: Fields, phase: str, settings: list[str], others: tuple[str, ...] = ()) -> Fields:
    """`held` with fields replaced by `field=value`, the value as JSON. `others`: more names for the list in the error message.

    Raises BadInput for a field that the phase does not have and for a value of the wrong type.
    """
    known, given = {f.name: getattr(held, f.name) for f in fields(held)}, {}
    for setting in settings:
        name, _, text = setting.partition("=")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if name not in known:
            raise BadInput(f"{phase} has no field {name!r}: choose one of {', '.join(sorted([*known, *others]))}")
        kind = type(known[name])
        if kind is tuple and isinstance(value, list):
            value = tuple(tuple(v) for v in value)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise BadInput(f"{name}={text} is no {kind.__name__}, which {phase}.{name} is")
        given[name] = value
    return replace(held, **given)
