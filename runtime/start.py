"""Starts the pipeline of a placement."""

from __future__ import annotations

import json
import time
from typing import Any

from everface.core.config import Deployment
from everface.core.errors import BadInput
from everface.core.log import log
from everface.runtime.pipeline import Pipeline
from everface.runtime.planning.placement import Placement


def start_pipeline(placement: Placement, model: str, spec: dict[str, Any], deployment: Deployment) -> Pipeline:
    """Build every role where it runs. `model` is the import path of a registered model; `spec` goes to its roles as plain data.

    Raises BadInput if `spec` is not JSON, Unavailable if a stage does not start.
    """
    try:
        json.dumps(spec, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInput(f"the roles' specification must be plain JSON: {error}") from None
    start_s = time.monotonic()
    if placement.inline:
        from everface.runtime.inline_pipeline import InlinePipeline

        pipeline: Pipeline = InlinePipeline(placement, model, spec, deployment)
    else:  # needs msgspec, which an inline pipeline does without
        from everface.runtime.cluster.process_pipeline import ProcessPipeline

        pipeline = ProcessPipeline(placement, model, spec, deployment)
    log.info("pipeline started in %.1f s", time.monotonic() - start_s)
    return pipeline
