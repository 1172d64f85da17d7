"""Which accelerated profiles there are: read from the settings that StreamConfig and Deployment offer.

The choices of a setting `x` are the constant `XS` of core/config.py, from the exact one to the fastest. A profile changes one setting.
A share of the KV cache needs the weights' own profile of their heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from everface.core import config
from everface.core.config import Deployment, StreamConfig

ACCELERATING = ("sampler", "dtype", "kv_keep")
EMULATED = "emulated on this CPU: values of 8 bits, multiplied in float32, so its speed says nothing"


@dataclass(frozen=True)
class Profile:
    """Settings of one run. `note`: what has to be known to read its figures."""

    name: str
    stream: StreamConfig
    deployment: Deployment
    note: str = ""


def offered_profiles(stream: StreamConfig, deployment: Deployment, heads_profiled: bool) -> tuple[list[Profile], dict[str, str]]:
    """The exact profile, which is the one given, then every faster choice of every setting; and accelerations that are not offered: why."""
    found, missing = [Profile("exact", stream, deployment)], dict[str, str]()
    for name in ACCELERATING:
        if name == "kv_keep" and not heads_profiled:
            missing["kv-keep"] = "not available: the heads of these weights were not profiled, run everface profile kv"
        else:
            found += [_changed(stream, deployment, name, choice) for choice in _faster(stream, deployment, name)]
    return found, missing


def _faster(stream: StreamConfig, deployment: Deployment, name: str) -> tuple[Any, ...]:
    """The choices of a setting that come after the one in use. Of a number any value may be in use; smaller ones are faster."""
    choices: tuple[Any, ...] = getattr(config, f"{name.upper()}S")
    now = getattr(stream, name, None) or getattr(deployment, name, None)
    return tuple(choice for choice in choices if choice < now) if isinstance(now, float) else choices[choices.index(now) + 1 :]


def _changed(stream: StreamConfig, deployment: Deployment, name: str, choice: Any) -> Profile:
    title = choice if isinstance(choice, str) else f"{name.replace('_', '-')} {choice:g}"
    if hasattr(stream, name):
        return Profile(title, replace(stream, **{name: choice}), deployment)
    note = EMULATED if deployment.device == "cpu" and "fp8" in title else ""
    return Profile(title, stream, replace(deployment, **{name: choice}), note)
