"""Errors of the HTTP routes: a status, a word for programs, and a sentence for people."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException


class ErrorText(BaseModel):
    code: str
    message: str


class ErrorReport(BaseModel):
    """The body of every response that is an error."""

    error: ErrorText


class HttpError(Exception):
    """Raised by a route."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers


def add_handlers(app: FastAPI) -> None:
    """Give every error that a route or the framework raises the same form."""

    @app.exception_handler(HttpError)
    def refused(_: Request, error: HttpError) -> JSONResponse:
        return report(error.status, error.code, error.message, error.headers)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return report(422, "invalid", f"the request cannot be used ({where}: {first['msg']}): see docs/serve.md")

    @app.exception_handler(HTTPException)
    def framework(_: Request, error: HTTPException) -> JSONResponse:
        return report(error.status_code, "refused", f"{error.detail}: see docs/serve.md for the routes", dict(error.headers or {}))


def report(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    body = ErrorReport(error=ErrorText(code=code, message=message))
    return JSONResponse(body.model_dump(), status, headers)
