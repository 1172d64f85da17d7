"""Which accelerated profiles there are: read from the settings that StreamConfig and Deployment offer.

The choices of a setting `x` are the constant `XS` of core/config.py, from the exact one to the fastest. A profile changes one setting.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from everface.core import config
from everface.core.config import Deployment, StreamConfig

ACCELERATING = ("sampler", "dtype")
KV_CACHE = "kv"  # a setting of the KV cache begins so
EMULATED = "emulated on this CPU: values of 8 bits, multiplied in float32, so its speed says nothing"


@dataclass(frozen=True)
class Profile:
    """Settings of one run. `note`: what has to be known to read its figures."""

    name: str
    stream: StreamConfig
    deployment: Deployment
    note: str = ""


def offered_profiles(stream: StreamConfig, deployment: Deployment) -> tuple[list[Profile], dict[str, str]]:
    """The exact profile, which is the one given, then every faster choice of every setting; and accelerations that are not offered: why."""
    found, settings = [Profile("exact", stream, deployment)], [f.name for part in (stream, deployment) for f in fields(part)]
    cache = [name for name in settings if name.startswith(KV_CACHE)]
    for name in (*ACCELERATING, *cache):
        found += [_changed(stream, deployment, name, choice) for choice in _faster(stream, deployment, name)]
    missing = {} if cache else {"KV compression": "not offered: no setting of StreamConfig or Deployment compresses the KV cache by itself"}
    return found, missing


def _faster(stream: StreamConfig, deployment: Deployment, name: str) -> tuple[str, ...]:
    """The choices of a setting that come after the one in use."""
    choices: tuple[str, ...] = getattr(config, f"{name.upper()}S")
    now = getattr(stream, name, None) or getattr(deployment, name, None)
    return choices[choices.index(now) + 1 :]


def _changed(stream: StreamConfig, deployment: Deployment, name: str, choice: str) -> Profile:
    if hasattr(stream, name):
        return Profile(choice, replace(stream, **{name: choice}), deployment)
    note = EMULATED if deployment.device == "cpu" and "fp8" in choice else ""
    return Profile(choice, stream, replace(deployment, **{name: choice}), note)
