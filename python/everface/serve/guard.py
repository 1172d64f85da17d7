"""Stands before every route: who may ask, how much may be sent, and the headers of every response. Plain ASGI, so it sees bodies unread."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import re
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from everface.core.loopback import LOCAL_NAMES
from everface.serve.metrics import Metrics
from everface.serve.rate import RequestRate
from everface.serve.settings import ServeSettings

COOKIE = "everface_token"
PROTOCOL = "everface."  # a subprotocol of everface.TOKEN carries the token, where a client cannot set headers
MOST_BODY = 64 << 10  # bytes of a body that is no upload
LINGER_S, LINGER_BYTES = 1.0, 8 << 20  # of a refused body
PIECE_S = 20.0  # between two pieces of a body
HOLD_S, MOST_HELD = 1.0, 64  # responses to who asks too often are held back: a connection is as slow as they are
BUSY = 0.5  # an address that has less of its requests left
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": PAGE_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cache-control": "no-store",
}
FORM = ("multipart/form-data",)
TYPES = {
    ("POST", "/v1/videos"): FORM, ("POST", "/v1/videos/sessions"): FORM, ("POST", "/v1/speech"): ("application/json",),
    ("POST", "/v1/videos/sessions/ID/chunks"): ("application/octet-stream", "audio/wav", "audio/x-wav", "audio/wave"),
}  # fmt: skip
UPLOADS = [route for route in TYPES if route[1].startswith("/v1/videos")]


class Guard:
    """ASGI middleware."""

    def __init__(self, app: Any, settings: ServeSettings, metrics: Metrics) -> None:
        self._app, self._token, self._metrics = app, settings.token, metrics
        self._names = {*LOCAL_NAMES, settings.host.lower()}
        self._most = dict.fromkeys(UPLOADS, settings.limits.upload_bytes + MOST_BODY)
        self._rate, self._held = RequestRate(settings.limits.requests_per_s), 0
        self._turn, self._busy_turn = asyncio.Lock(), asyncio.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        left = self._rate.take((scope.get("client") or ("",))[0])
        too_often = left < 0
        problem = TOO_OFTEN if too_often else self._problem(scope, headers)
        if scope["type"] == "websocket":
            if problem:
                await _deny(send, scope, *problem)
            else:
                await self._app(scope, receive, send)
            return
        if problem is None:
            problem = self._body_problem(scope, headers)
        if problem is None and self._token and scope["path"] == "/" and _query_token(scope):
            await self._remember(self._wrapped(send))
            return
        if too_often:
            await self._hold()
        await self._take_turn(busy=left < BUSY)
        if problem:
            await _answer(self._wrapped(send), *problem, receive)
        else:
            await self._serve(scope, receive, send)

    def _problem(self, scope: Any, headers: Headers) -> tuple[int, str, str] | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._token is None and _name(host) not in self._names:
            return 403, "wrong_host", "this server may only be asked by its own name, to protect it from web pages: use localhost"
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "wrong_origin", "a web page of another site may not use this server: open the server's own page"
        if self._token is not None and not any(hmac.compare_digest(t.encode(), self._token.encode()) for t in _tokens(scope, headers)):
            return 401, "no_token", "a token is needed: send it as Authorization: Bearer TOKEN, or open the page with ?token=TOKEN"
        return None

    def _body_problem(self, scope: Any, headers: Headers) -> tuple[int, str, str] | None:
        route = _route(scope)
        wanted, most = TYPES.get(route), self._most.get(route, MOST_BODY)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > most:
            return _too_large(most)
        if wanted and headers.get("content-type", "").partition(";")[0].strip().lower() not in wanted:
            return 415, "wrong_type", f"the body must be {' or '.join(wanted[:2])}: set the Content-Type"
        return None

    async def _hold(self) -> None:
        """The next request of this connection is read only when this one has its response."""
        if self._held < MOST_HELD:
            self._held += 1
            try:
                await asyncio.sleep(HOLD_S)
            finally:
                self._held -= 1

    async def _take_turn(self, busy: bool) -> None:
        """One request begins at each turn of the event loop, so that a burst of them does not keep the frames of live sessions waiting; those of
        busy addresses wait for each other first, so that a burst does not keep the requests of other addresses waiting."""
        async with self._busy_turn if busy else contextlib.nullcontext(), self._turn:
            await asyncio.sleep(0)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        """Count the body as it comes. Beyond the limit the response is 413, and for the route the client is gone."""
        most, read, refused, complete = self._most.get(_route(scope), MOST_BODY), 0, False, False
        wrapped = self._wrapped(send)

        async def counted() -> Any:
            nonlocal read, refused, complete
            try:
                async with asyncio.timeout(None if complete or refused else PIECE_S):
                    message = await receive()
            except TimeoutError:
                refused = True
                await _answer(wrapped, *TOO_SLOW, receive)
                return {"type": "http.disconnect"}
            complete = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > most and not refused:
                refused = True
                await _answer(wrapped, *_too_large(most), receive)
            return {"type": "http.disconnect"} if refused else message

        async def unless_refused(message: Any) -> None:
            if not refused:
                await wrapped(message)

        try:
            await self._app(scope, counted, unless_refused)
        except ClientDisconnect:
            if not refused:
                raise

    def _wrapped(self, send: Any) -> Any:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(str(message["status"])).inc()
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        return with_headers

    async def _remember(self, send: Any) -> None:
        """The page was opened with ?token=: keep it in a cookie that scripts cannot read, and out of the address."""
        cookie = f"{COOKIE}={self._token}; HttpOnly; SameSite=Strict; Path=/"
        await send({"type": "http.response.start", "status": 303, "headers": [(b"location", b"/"), (b"set-cookie", cookie.encode())]})
        await send({"type": "http.response.body", "body": b""})


TOO_OFTEN = 429, "too_often", "too many requests came from this address: send fewer, and try again in a second"
TOO_SLOW = 408, "too_slow", f"nothing more of the body came for {PIECE_S:g} s: send it in one go"


def _route(scope: Any) -> tuple[str, str]:
    """Method and path, without a session's name."""
    return scope["method"], re.sub("(?<=^/v1/videos/sessions/)[^/]+", "ID", scope["path"])


def _too_large(most: int) -> tuple[int, str, str]:
    return 413, "too_large", f"the body is larger than {most} bytes, which is the limit here: send less"


def _tokens(scope: Any, headers: Headers) -> list[str]:
    """Whatever was sent as one."""
    found: list[str] = []
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        found.append(token.strip())
    found += [p.removeprefix(PROTOCOL) for p in scope.get("subprotocols", []) if p.startswith(PROTOCOL)]
    if query := _query_token(scope):
        found.append(query)
    try:
        cookie = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        cookie = SimpleCookie()
    if COOKIE in cookie:
        found.append(cookie[COOKIE].value)
    return found


def _query_token(scope: Any) -> str:
    """Of the routes that a browser opens by an address: the page and the WebSocket."""
    if scope["type"] == "http" and scope["path"] != "/":
        return ""
    try:
        return parse_qs(scope.get("query_string", b"").decode("ascii"), max_num_fields=8).get("token", [""])[0]
    except ValueError:
        return ""


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    host = host.lower()
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


async def _answer(send: Any, status: int, code: str, message: str, receive: Any) -> None:
    """An error. What comes of the body after it is thrown away, for a moment: a connection that is closed before may lose the response."""
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 429:
        headers.append((b"retry-after", b"1"))
    if status in (408, 413):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            read = 0
            while read < LINGER_BYTES and (came := await receive()).get("more_body"):
                read += len(came["body"])
    await send({"type": "http.response.body", "body": b""})


async def _deny(send: Any, scope: Any, status: int, code: str, message: str) -> None:
    """Refuse a WebSocket before it is accepted."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": message[:100]})
        return
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
