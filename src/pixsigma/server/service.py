"""What every door of the server calls: take a request in, tell how it stands, let it go."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from pixsigma.diffusion.steering import sampler_for
from pixsigma.errors import BusyError, InputError, OutputError, PolicyError, UnknownNameError
from pixsigma.provenance import check_room
from pixsigma.requests import GenerationRequest, request_from
from pixsigma.server.jobs import Job, JobStore
from pixsigma.server.limits import Limits, Rates, check_request
from pixsigma.server.metrics import Metrics
from pixsigma.server.policy import Policy
from pixsigma.server.telling import remembered
from pixsigma.server.worker import Glimpse, Worker

if TYPE_CHECKING:
    from pixsigma.pipeline import PixArtSigmaPipeline

Format: TypeAlias = Literal["png", "jpeg", "webp"]

LINGER_SECONDS = 60.0
"""A job that is over stays this long after it should go: its client may be about to fetch it."""

_TOLD_LATER = 500  # bytes of settings that are known only after the drawing, and some more


class JobRequest(BaseModel):
    """A request and how it is to be served."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    request: GenerationRequest
    model: str | None = Field(default=None, max_length=200)
    """One of GET /v1/models; None is the first."""
    format: Format = "png"
    priority: int = Field(default=0, ge=-10, le=0)
    """Below 0 the job lets others go first."""
    deadline_seconds: float | None = Field(default=None, gt=0, le=86_400)
    """The job fails where it is not done by then."""


@dataclass(frozen=True)
class Status:
    """A job as its client sees it."""

    job: Job
    place: int = 0
    """Jobs that are drawn before it, while it waits."""
    glimpse: Glimpse | None = None
    """While it runs."""


@dataclass
class Service:
    """Pipelines, store and worker, behind limits and policy."""

    pipes: Mapping[str, "PixArtSigmaPipeline"]
    data: Path
    limits: Limits = field(default_factory=Limits)
    policy: Policy = field(default_factory=Policy)
    loras: Mapping[str, Path] = field(default_factory=dict)
    """Adapters that clients may ask for, by name; no path of a client is ever opened."""
    at_once: int = 8
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        if not self.pipes:
            raise InputError("a server needs at least one model")
        self.results = self.data / "results"
        self.store = JobStore(self.data / "jobs.sqlite")
        self.rates = Rates(self.limits.rate)
        self._leaving: dict[str, float] = {}
        self.worker = Worker(
            self.store,
            self.pipes,
            self.results,
            policy=self.policy,
            metrics=self.metrics,
            at_once=self.at_once,
        )
        self.metrics.waiting.set_function(lambda: self.store.count("queued"))

    def start(self) -> None:
        """Begin to draw, what was left first; its deadlines begin anew."""
        for job in self.store.unfinished():
            if job.deadline is not None:
                self.worker.deadlines[job.id] = monotonic() + job.deadline
        self.worker.start()

    def stop(self, grace: float = 10.0) -> None:
        """Finish or hand back what runs, then close the store."""
        if self.worker.alive:
            self.worker.stop(grace)
        self.store.close()

    # In

    def submit(self, wanted: JobRequest, client: str, idempotency_key: str | None = None) -> Job:
        """Accept a job; it is on disk when this returns.

        Raises InputError for what is not drawn here, PolicyError, and BusyError where there is no
        room or the client is too quick.
        """
        try:
            return self._submit(wanted, client, idempotency_key)
        except (InputError, BusyError, OutputError) as error:
            self.metrics.refused.labels(type(error).__name__).inc()
            if isinstance(error, PolicyError):
                self.metrics.policy.labels("before").inc()
            raise

    def _submit(self, wanted: JobRequest, client: str, idempotency_key: str | None) -> Job:
        self.rates.take(client)
        model = wanted.model or next(iter(self.pipes))
        if model not in self.pipes:
            raise UnknownNameError(f"this server has {', '.join(self.pipes)}; got {model!r}")
        self._check(wanted, self.pipes[model])
        request = self._settled(wanted.request, self.pipes[model])
        if idempotency_key is None or not self.store.knows(client, idempotency_key):
            self._check_room(client)
        job, new = self.store.add(
            request.model_dump(mode="json"),
            client=client,
            model=model,
            format=wanted.format,
            priority=wanted.priority,
            deadline=wanted.deadline_seconds,
            idempotency_key=idempotency_key,
            seed_drawn=wanted.request.seed is None,
        )
        if new:
            self._accepted(job)
        return job

    def _accepted(self, job: Job) -> None:
        self.metrics.accepted.inc()
        self.worker.accepted[job.id] = monotonic()
        if job.deadline is not None:
            self.worker.deadlines[job.id] = monotonic() + job.deadline
        self.worker.wake()
        self._prune()

    def _check(self, wanted: JobRequest, pipe: "PixArtSigmaPipeline") -> None:
        request = wanted.request
        check_request(request, self.limits, pipe.default_size, pipe.multiple)
        sampler_for(request.sampler, request.eta, request.guidance)
        if wanted.format != "png":
            check_room(wanted.format.upper(), remembered(request), spare=_TOLD_LATER)
        self.policy.check_request(request)

    def _check_room(self, client: str) -> None:
        waiting = self.store.count("queued")
        if waiting >= self.limits.max_queue:
            raise BusyError(f"{waiting} jobs wait already; come again later", retry_after=10)
        mine = self.store.count("queued", "running", client=client)
        if mine >= self.limits.max_per_client:
            raise BusyError(
                f"a client may have {self.limits.max_per_client} jobs that are not over, and has "
                f"{mine}; wait for one",
                retry_after=5,
            )

    def _settled(
        self, request: GenerationRequest, pipe: "PixArtSigmaPipeline"
    ) -> GenerationRequest:
        """With a seed and a scale of guidance, so that a job that is begun anew draws the same, and
        files of adapters.
        """
        from secrets import randbelow

        known = ", ".join(self.loras) or "none"
        loras = []
        for choice in request.loras:
            if choice.path not in self.loras:
                raise UnknownNameError(f"the adapters here are {known}; got {choice.path!r}")
            loras.append({"path": str(self.loras[choice.path]), "weight": choice.weight})
        defaults = {"seed": randbelow(2**32), "guidance_scale": pipe.default_guidance}
        told = request.model_dump(exclude_none=True)
        return request_from(**defaults | told | {"loras": loras})

    # Out

    def status(self, id: str, client: str | None = None) -> Status:
        """How a job stands; raises KeyError where this client has no such job."""
        job = self.store.get(id)
        if client is not None and job.client != client:
            raise KeyError(id)
        if job.state == "queued":
            return Status(job, place=self.store.place(id))
        live = self.worker.live.get(id)
        return Status(job, glimpse=live.glimpse if live and job.state == "running" else None)

    def cancel(self, id: str, client: str | None = None) -> Job:
        """Cancel a job that is not over, forget one that is; raises KeyError."""
        job = self.status(id, client).job
        if job.over:
            self.forget(job)
            return job
        return self.worker.cancel(id)

    def forget(self, job: Job) -> None:
        """Delete a job that is over, and its pictures."""
        shutil.rmtree(self.results / job.id, ignore_errors=True)
        self.store.forget(job.id)

    def files(self, job: Job) -> Sequence[Path]:
        """The pictures of a job."""
        return [self.results / job.id / name for name in job.files]

    def _prune(self) -> None:
        now, leaving = monotonic(), self._leaving
        beyond = self.store.beyond(self.limits.kept)
        self._leaving = {job.id: leaving.get(job.id, now) for job in beyond}
        for job in beyond:
            if now - self._leaving[job.id] >= LINGER_SECONDS:
                self.forget(job)
