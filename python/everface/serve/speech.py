"""`POST /v1/speech`: text spoken by espeak-ng, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import threading

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from everface.serve.errors import ErrorReport, HttpError

PROGRAM = "espeak-ng"
MOST_TEXT = 1000  # characters
TIMEOUT_S = 20.0
AT_ONCE = 2
WAIT_S = 5.0


class SpeechRequest(BaseModel):
    """`voice`: a language of espeak-ng, as in en-us, de, fr."""

    model_config = ConfigDict(extra="forbid")
    text: str = Field(min_length=1, max_length=MOST_TEXT)
    voice: str = Field("en-us", pattern="^[a-z]{2,3}(-[a-z0-9]{2,8})*$", max_length=24)


def available() -> bool:
    return shutil.which(PROGRAM) is not None


def speech_routes() -> APIRouter:
    router = APIRouter(tags=["live"])
    slots = threading.BoundedSemaphore(AT_ONCE)

    errors = {code: {"model": ErrorReport} for code in (400, 401, 403, 413, 415, 422, 429, 501)}

    @router.post("/v1/speech", response_class=Response, responses={200: {"content": {"audio/wav": {}}}, **errors})
    def speech(request: SpeechRequest) -> Response:
        """A wav file of the text, spoken."""
        if not available():
            raise HttpError(501, "no_speech", "this server cannot speak text: install espeak-ng on it, or send audio")
        if not slots.acquire(timeout=WAIT_S):
            raise HttpError(429, "busy", "too much text is being spoken: try again later", {"Retry-After": "5"})
        try:
            return Response(speak(request.text, request.voice), media_type="audio/wav")
        finally:
            slots.release()

    return router


def speak(text: str, voice: str) -> bytes:
    """A wav file. Raises HttpError."""
    command = [PROGRAM, "--stdout", "--stdin", "-b", "1", "-v", voice]
    try:
        done = subprocess.run(command, input=text.encode("utf-8", "replace"), capture_output=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        raise HttpError(501, "no_speech", "espeak-ng did not speak this text: shorten it") from None
    if done.returncode or len(done.stdout) <= 44:
        raise HttpError(400, "bad_input", f"espeak-ng cannot speak this text with the voice {voice}: choose another")
    return done.stdout
