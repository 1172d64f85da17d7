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
    status: Literal["ok", "failed"] = "ok"


class Readiness(BaseModel):
    status: Literal["ready", "loading", "recovering", "failed", "closed", "draining"]
    sessions: int
    reason: str | None = None


def health_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["health"], responses={code: {"model": ErrorReport} for code in (401, 403)})

    @router.get("/healthz", response_model=Health, responses={503: {"model": Health}})
    async def healthz() -> JSONResponse:
        """The process answers: 200. 503 when its pipeline is lost for good, so that only another process can help."""
        failed = service.backend.state == "failed"
        return JSONResponse({"status": "failed" if failed else "ok"}, 503 if failed else 200)

    @router.get("/readyz", responses={503: {"model": Readiness}})
    async def readyz() -> JSONResponse:
        """New sessions are admitted: 200, else 503."""
        status = "draining" if service.draining else service.backend.state
        reason = service.backend.failure
        body = {"status": status, "sessions": service.sessions, "reason": None if reason is None else str(reason)}
        return JSONResponse(body, 200 if service.ready else 503)

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """In the Prometheus text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    return router
