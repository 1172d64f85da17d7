"""The routes. `build_app` makes an ASGI application from settings and a backend."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI, Response, WebSocket
from fastapi.responses import FileResponse
from pydantic import BaseModel

from everface.provenance.signing import find_signer
from everface.serve.backend import IMAGES
from everface.serve.errors import ErrorReport, add_handlers
from everface.serve.guard import Guard
from everface.serve.health import health_routes
from everface.serve.service import LiveSource, Service
from everface.serve.settings import ServeSettings
from everface.serve.speech import available, speech_routes
from everface.serve.stream.connection import StreamConnection
from everface.serve.stream.http_routes import session_routes
from everface.serve.stream.http_session import HttpSessions
from everface.serve.videos.jobs import Jobs, VideoJob
from everface.serve.videos.rendering import render_job
from everface.serve.videos.routes import video_routes

PAGE = Path(__file__).parent / "page"
FILES = {"page.js": "text/javascript", "player.js": "text/javascript", "chart.js": "text/javascript", "audio.js": "text/javascript",
         "worklet.js": "text/javascript", "style.css": "text/css"}  # fmt: skip


class About(BaseModel):
    images: list[str]
    fps: int | None  # null while the model is loaded
    speech: bool


def build_app(settings: ServeSettings, backend: LiveSource) -> FastAPI:
    """The application; `app.state.service` is what its routes share. The backend is loaded when it starts and closed when it ends."""
    service = Service(settings, backend)
    find_signer()  # a key that cannot be used is refused now, not at the first video

    def render(job: VideoJob) -> None:
        render_job(job, backend, service.stream(job.prompt, job.seed), settings.limits)

    jobs = service.jobs = Jobs(render, settings.limits, service.metrics)
    service.metrics.watch("everface_renders_waiting", "Renders that wait", lambda: jobs.waiting)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        threading.Thread(target=backend.load, name="everface load", daemon=True).start()
        try:
            yield
        finally:
            await app.state.sessions.close()
            await service.blocking(jobs.close)
            await service.blocking(backend.close)
            service.close()

    app = FastAPI(title="everface", version=settings.version, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service, app.state.sessions = service, HttpSessions(service)
    add_handlers(app)
    app.include_router(session_routes(service, app.state.sessions))  # before the videos: sessions is no video's name
    app.include_router(video_routes(service, jobs))
    app.include_router(speech_routes())
    app.include_router(health_routes(service))
    _add_page(app)

    @app.websocket("/v1/avatar/stream")
    async def stream(socket: WebSocket) -> None:
        await StreamConnection(socket, service).run()

    @app.get("/v1/avatar", tags=["live"], responses={code: {"model": ErrorReport} for code in (401, 403)})
    async def avatar() -> About:
        """What a live session may be started with, and whether POST /v1/speech speaks."""
        return About(images=list(IMAGES), fps=backend.fps, speech=available())

    app.add_middleware(Guard, settings=settings, metrics=service.metrics)
    return app


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name in FILES:
            return FileResponse(PAGE / name, media_type=FILES[name])
        return Response(status_code=404)

    @app.get("/page/images/{name}", include_in_schema=False)
    async def image(name: str) -> Response:
        return FileResponse(IMAGES[name]) if name in IMAGES else Response(status_code=404)
