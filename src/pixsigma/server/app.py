"""The application: our own API, OpenAI's, the studio, and what operators look at."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Path, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, StreamingResponse
from starlette.exceptions import HTTPException

from pixsigma._version import __version__
from pixsigma.server.doorway import Doorway, add_refusals, client_of
from pixsigma.server.events import described, events
from pixsigma.server.keys import Keys
from pixsigma.server.openai_api import add_openai_api
from pixsigma.server.reference import add_reference
from pixsigma.server.service import JobRequest, Service

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names that this machine has for itself; without keys no other is answered to, so that no page
can pass itself off as this server (DNS rebinding)."""

EVERY_METHOD = ["GET", "POST", "PUT", "PATCH", "DELETE"]

JobId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


def create_app(
    service: Service,
    *,
    keys: Keys | None = None,
    hosts: Collection[str] | None = LOOPBACK,
    origins: Collection[str] = (),
    studio: bool = False,
    grace: float = 10.0,
) -> FastAPI:
    """The application around a service, which it starts and stops.

    `keys` None lets everybody in who reaches it; `hosts` are the names that it answers to,
    None any; pages of `origins`, such as https://shop.example, may use it. `studio` puts the web
    page at `/`. Raises MissingExtraError where that needs Gradio.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.stop(grace)

    app = FastAPI(
        title="pixsigma",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages load their scripts from elsewhere; ours is in reference.py
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    add_refusals(app)
    client = client_of(keys)
    add_jobs_api(app, service, client)
    add_openai_api(app, service, client)
    add_operations(app, service, client)
    add_reference(app)
    if studio:
        from pixsigma.server.studio.mount import mount

        app = mount(app, service, keys)
    if origins:
        told = ["Location", "Retry-After"]
        app.add_middleware(
            CORSMiddleware, origins, allow_methods=["*"], allow_headers=["*"], expose_headers=told
        )
    app.add_middleware(Doorway, service.limits.max_body, hosts, origins)
    return app


def add_jobs_api(app: FastAPI, service: Service, client: Any) -> None:
    """`/v1/jobs`: any request of the schema."""

    @app.post("/v1/jobs", status_code=202, tags=["jobs"])
    def accept(
        wanted: JobRequest,
        response: Response,
        who: Annotated[str, Depends(client)],
        idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
    ) -> dict[str, Any]:
        """Accept a job; with a known Idempotency-Key the earlier one is told."""
        job = service.submit(wanted, who, idempotency_key)
        response.headers["Location"] = f"/v1/jobs/{job.id}"
        return described(service.status(job.id))

    @app.get("/v1/jobs/{id}", tags=["jobs"])
    def look(id: JobId, who: Annotated[str, Depends(client)]) -> dict[str, Any]:
        """How a job stands."""
        return described(service.status(id, who))

    @app.get("/v1/jobs/{id}/events", tags=["jobs"], response_class=StreamingResponse)
    def follow(
        id: JobId, who: Annotated[str, Depends(client)], previews: bool = True
    ) -> StreamingResponse:
        """Server-sent events: queued, step, preview, then done, failed or cancelled."""
        service.status(id, who)
        return StreamingResponse(
            events(service, id, who, previews),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    @app.delete("/v1/jobs/{id}", tags=["jobs"])
    def cancel(id: JobId, who: Annotated[str, Depends(client)]) -> dict[str, Any]:
        """Cancel a job between two steps; delete one that is over, with its pictures."""
        return described_after(service, service.cancel(id, who).id)

    @app.get("/v1/jobs/{id}/results/{name}", tags=["jobs"], response_class=FileResponse)
    def fetch(id: JobId, name: Annotated[str, Path(max_length=40)]) -> FileResponse:
        """A picture; the job's id is the secret that opens it."""
        job = service.status(id).job
        if name not in job.files:  # the name is compared, never made into a path
            raise KeyError(name)
        path = service.results / job.id / job.files[job.files.index(name)]
        if not path.is_file():
            raise KeyError(name)
        return FileResponse(path)


def described_after(service: Service, id: str) -> dict[str, Any]:
    """A job as it is now, or that it is deleted."""
    try:
        return described(service.status(id))
    except KeyError:
        return {"id": id, "state": "deleted"}


def add_operations(app: FastAPI, service: Service, client: Any) -> None:
    """`/healthz`, `/readyz` and `/metrics`."""

    @app.get("/healthz", tags=["operations"])
    def healthy() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["operations"])
    def ready(response: Response) -> dict[str, Any]:
        """Jobs are taken in and drawn; 503 where not."""
        alive = service.worker.alive
        response.status_code = 200 if alive else 503
        return {"status": "ok" if alive else "stopped", "models": list(service.pipes)}

    @app.api_route("/v1/{rest:path}", methods=EVERY_METHOD, include_in_schema=False)
    def nothing(rest: str) -> None:
        """What no other route takes; the studio's page would answer it in another form."""
        raise HTTPException(404, f"there is nothing at /v1/{rest[:80]}; /docs has what there is")

    @app.get("/metrics", tags=["operations"])
    def metrics(who: Annotated[str, Depends(client)]) -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")
