"""A fleet on Ray Serve: one replica is one server with its own pipeline, on the GPUs of one host.

    serve run everface.serve.ray:build weights=/weights sampler=official placement=5 gpus=5 sessions=2 most=8

A WebSocket stays with its replica as long as it is open, and counts as one ongoing request: that is what the fleet scales on. A replica that
is to go ends its sessions' work first, for `drain_s`. /v1/videos is not there, because another replica would not know the video.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from everface.core import env
from everface.core.config import Deployment, StreamConfig
from everface.core.errors import BadInput, Unavailable
from everface.serve.app import build_app
from everface.serve.backend import Backend
from everface.serve.service import LiveSource
from everface.serve.settings import Limits, ServeSettings

FILLED = 0.8  # of a replica's places, on the average: more, and the fleet grows
SPARE = 4  # requests of other kinds beside a replica's sessions
QUEUED = 64  # requests that wait for a replica with room; one more gets 503
NAMES = ("weights", "lora", "placement", "device", "dtype", "sampler", "gpus", "sessions", "least", "most")


def fleet(
    settings: ServeSettings, *, gpus: int = 0, least: int = 1, most: int = 4, make_backend: Callable[[ServeSettings], LiveSource] = Backend,
    shrink_s: float = 120.0,
) -> Any:  # fmt: skip
    """The application for `ray.serve.run`. `gpus`: of each replica; `least`, `most`: replicas; `shrink_s`: how long there must be too many.

    Raises BadInput, and Unavailable without Ray Serve.
    """
    if not 0 <= least <= most or most < 1 or gpus < 0:
        raise BadInput(f"a fleet of {least} to {most} replicas with {gpus} GPUs each cannot be: correct the numbers")
    try:
        serve = importlib.import_module("ray.serve")
    except ModuleNotFoundError as error:
        raise Unavailable(f"a fleet needs the package {error.name}: run pip install 'everface[ray]'") from None
    limits = settings.limits

    scaling = {
        "min_replicas": least, "max_replicas": most, "target_ongoing_requests": max(1.0, FILLED * limits.sessions),
        "upscale_delay_s": 2.0, "downscale_delay_s": shrink_s, "look_back_period_s": 4.0, "metrics_interval_s": 1.0,
    }  # fmt: skip
    # The GPUs of one actor are of one host, and the workers of its pipeline inherit them.
    deployment = serve.deployment(
        serve.ingress(lambda: replica_app(settings, make_backend(settings)))(), name="everface", max_ongoing_requests=limits.sessions + SPARE, max_queued_requests=QUEUED,
        autoscaling_config=scaling, graceful_shutdown_timeout_s=math.ceil(limits.drain_s), health_check_period_s=2.0,
        ray_actor_options={"num_gpus": gpus, "num_cpus": 1},
    )  # fmt: skip
    return deployment.bind()


def build(arguments: Mapping[str, str]) -> Any:
    """The same from text, as `serve run` and its configuration files pass it. The token is that of EVERFACE_TOKEN."""
    if unknown := set(arguments) - set(NAMES):
        raise BadInput(f"unknown arguments {', '.join(sorted(unknown))}: use {', '.join(NAMES)}")
    given = dict(arguments)
    try:
        gpus, sessions, least, most = (int(given.pop(name, usual)) for name, usual in (("gpus", 0), ("sessions", 4), ("least", 1), ("most", 4)))
    except ValueError as error:
        raise BadInput(f"gpus, sessions, least and most are whole numbers ({error}): correct them") from None
    weights, lora = (Path(given.pop(name)) if name in given else None for name in ("weights", "lora"))
    stream = StreamConfig(sampler=given.pop("sampler", "skip-null"))
    device, dtype = ("cuda", "bfloat16") if gpus else ("cpu", "float32")
    where = Deployment(given.get("placement", "inline"), given.get("device", device), given.get("dtype", dtype), sessions=sessions)
    settings = ServeSettings(token=env.token(), weights=weights, lora=lora, stream=stream, deployment=where, limits=Limits(sessions=sessions))
    return fleet(settings, gpus=gpus, least=least, most=most)


def replica_app(settings: ServeSettings, backend: LiveSource) -> Any:
    """The server of one replica."""
    app = build_app(settings, backend)
    app.router.routes[:] = [route for route in app.router.routes if not _is_video(route)]
    return app


def _is_video(route: Any) -> bool:
    """Whether it is, or holds, routes of /v1/videos."""
    inside = [route, *getattr(getattr(route, "original_router", None), "routes", [])]
    return any(str(getattr(entry, "path", "")).startswith("/v1/videos") for entry in inside)
