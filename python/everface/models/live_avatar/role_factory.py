"""Builds the roles of a pipeline from a checkpoint, in the process where they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from everface.core.config import Deployment
from everface.core.memory import keep_freed_memory
from everface.models.live_avatar.builders import build_decoder, build_dit, build_mouth_finder
from everface.models.live_avatar.names import DECODE
from everface.models.live_avatar.roles import DecodeRole, Denoiser, StepRole
from everface.networks.transformer.schedule import Schedule
from everface.runtime.model import PIPELINE
from everface.weights.load import open_checkpoint

_denoisers = WeakValueDictionary[str, Denoiser]()  # one transformer a pipeline and process, whatever the number of steps placed in it


def build_role(name: str, spec: dict[str, Any]) -> StepRole | DecodeRole:
    """The pipeline's factory: `step0`.. or `decode`, from a JSON-able spec. Builds only what this role runs."""
    deployment = Deployment(**{**spec["deployment"], "device": spec.get("device", spec["deployment"]["device"])})
    weights, lora = Path(spec["weights"]), Path(spec["lora"]) if spec["lora"] else None
    if deployment.device == "cpu":
        keep_freed_memory()
    if name == DECODE:
        return DecodeRole(build_decoder(weights, deployment), deployment, open_checkpoint(weights).config, build_mouth_finder(weights, deployment))
    key = repr((weights, lora, deployment, spec.get(PIPELINE)))  # sessions of two pipelines have the same numbers
    denoiser = _denoisers.get(key)
    if denoiser is None:
        config, dit = build_dit(weights, lora, deployment)
        denoiser = _denoisers[key] = Denoiser(dit, config, deployment)
    return StepRole(denoiser, Schedule.for_sampler(spec["sampler"]), int(name.removeprefix("step")))
