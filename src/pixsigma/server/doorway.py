"""What every HTTP request passes: its size, its origin, its sender, and how it is refused."""

from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pixsigma.errors import BusyError, InputError, OutputError, PixsigmaError, PolicyError
from pixsigma.server.keys import Keys

PAGE = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "media-src 'self' data: blob:; worker-src 'self' blob:; connect-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""For the studio, whose scripts stand in the page: nothing from elsewhere, nothing to elsewhere."""

BARE = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""For answers, pictures and the page about the API: no script at all."""

GUARDS = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
}

NO_JOB = "there is no such job, or it is not yours"

BARE_PATHS = ("/v1/", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics")


class Doorway:
    """Refuses bodies that are too large, foreign hosts and pages of other origins; tells browsers
    that nothing here asks another server.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body: int,
        hosts: Collection[str] | None,
        origins: Collection[str] = (),
    ) -> None:
        self.app, self.max_body, self.hosts, self.origins = app, max_body, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        send = guarded(send, BARE if scope["path"].startswith(BARE_PATHS) else PAGE)
        refusal = self.refusal(Headers(scope=scope))
        if refusal is not None:
            await refused(*refusal)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body:
                raise HTTPException(*self._too_large())
            return message

        await self.app(scope, counted, send)

    def refusal(self, headers: Headers) -> tuple[int, str] | None:
        """Status and message for what the headers alone forbid."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts is not None and _name(host) not in self.hosts:
            return 421, f"this server answers to {', '.join(sorted(self.hosts))}; got {host!r}"
        own = origin in (None, *self.origins) or _place(origin) == host
        if origin == "null":  # a page in a sandbox, or one of ours that tells nobody where it is
            own = headers.get("sec-fetch-site") in ("same-origin", "none")
        if not own:
            return 403, f"pages of other origins may not use this server; got {origin!r}"
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdecimal():
            return 400, "Content-Length must be a number"
        return self._too_large() if int(length[:20]) > self.max_body else None

    def _too_large(self) -> tuple[int, str]:
        return 413, f"a request may have {self.max_body:,} bytes"


def guarded(send: Send, policy: str) -> Send:
    """Sends the headers that bind a browser, too."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in {**GUARDS, "Content-Security-Policy": policy}.items():
                headers.setdefault(name, value)
        await send(message)

    return sent


def _place(origin: str | None) -> str | None:
    try:
        return urlsplit(origin or "").netloc
    except ValueError:
        return None


def _name(host: str) -> str:
    return host.rpartition("]")[0].strip("[") if host.startswith("[") else host.partition(":")[0]


def client_of(keys: Keys | None) -> Callable[[Request], str]:
    """A dependency: the name of who asks; without keys, the address."""

    def client(request: Request) -> str:
        if keys is None:
            return request.client.host if request.client else "local"
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            key = request.headers.get("x-api-key", "")
        if (owner := keys.owner(key.strip())) is None:
            raise HTTPException(401, "this server wants a key: Authorization: Bearer ps-…")
        return owner

    return client


# Refusals, in the form of OpenAI's


def refused(
    status: int, message: str, kind: str | None = None, param: str | None = None, **headers: str
) -> JSONResponse:
    """An error as JSON; ASCII, since a message may repeat what no encoding takes."""
    kind = kind or HTTPStatus(status).phrase.lower().replace(" ", "_")
    family = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": family, "code": kind, "param": param}
    plain = message.encode("utf-8", "backslashreplace").decode("utf-8")
    shown = {k.replace("_", "-"): v for k, v in headers.items()}
    return JSONResponse({"error": error | {"message": plain}}, status, headers=shown)


def refusal_of(error: PixsigmaError) -> JSONResponse:
    """What a client is told of an error of ours."""
    match error:
        case BusyError():
            seconds = str(max(1, round(error.retry_after + 0.5)))
            return refused(429, str(error), "rate_limit_exceeded", retry_after=seconds)
        case PolicyError():
            return refused(400, str(error), "content_policy_violation")
        case InputError():
            return refused(400, str(error), "invalid_value")
        case OutputError():
            return refused(507, "this server's disk takes no more", retry_after="60")
    return refused(500, str(error))


def add_refusals(app: FastAPI) -> None:
    """Tell the application how errors leave it."""

    @app.exception_handler(PixsigmaError)
    def ours(request: Request, error: PixsigmaError) -> JSONResponse:
        return refusal_of(error)

    @app.exception_handler(KeyError)
    def unknown(request: Request, error: KeyError) -> JSONResponse:
        return refused(404, NO_JOB)

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        return refused(error.status_code, str(error.detail), **dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    def schema(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["loc"][0] == "path":  # what no job can be called is no job
            return refused(404, NO_JOB)
        return refused(400, complaint(first), "invalid_value")


def complaint(first: dict[str, Any]) -> str:
    """One complaint of pydantic in a sentence."""
    ours = first.get("ctx", {}).get("error")
    if isinstance(ours, InputError):
        return str(ours)
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "request"))
    match first["type"]:
        case "extra_forbidden":
            return f"there is no field {where!r}; /docs has those that there are"
        case "missing":
            return f"{where or first['loc'][-1]} is missing"
        case "model_attributes_type" if not where:
            return "the body must be a JSON object, sent as application/json"
        case "json_invalid":
            return f"the body must be JSON: {first.get('ctx', {}).get('error', first['msg'])}"
    rule = first["msg"].replace("Input should", "must").replace("String should", "must")
    return f"{where or 'the request'}: {rule}"
