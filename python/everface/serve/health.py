"""`/healthz`, `/readyz` and `/metrics`, for who watches the server."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from everface.serve.errors import ErrorReport
from everface.serve.metrics import CONTENT_TYPE
from everface.serve.service import Service


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    status: Literal["ready", "loading", "failed", "closed", "draining"]
    sessions: int


def health_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["health"], responses={code: {"model": ErrorReport} for code in (401, 403)})

    @router.get("/healthz")
    async def healthz() -> Health:
        """The process answers."""
        return Health()

    @router.get("/readyz", responses={503: {"model": Readiness}})
    async def readyz() -> JSONResponse:
        """New sessions are admitted: 200, else 503."""
        status = "draining" if service.draining else service.backend.state
        return JSONResponse({"status": status, "sessions": service.sessions}, 200 if service.ready else 503)

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """In the Prometheus text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    return router
