"""The thread that draws: takes jobs from the store, runs them together, writes what became of each.

Texts, decoding and files are errands for a thread beside it. Whatever goes wrong in a drawing ends
that drawing with a reason; the threads go on.
"""

import io
import logging
import shutil
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pixsigma._version import __version__
from pixsigma.denoising import Step
from pixsigma.errors import OutputError, PixsigmaError, PolicyError
from pixsigma.images import write_picture
from pixsigma.many import Ask, Company, elsewhere, stages_in_company
from pixsigma.pages import give_back_pages
from pixsigma.pipeline import PixArtSigmaPipeline
from pixsigma.provenance import COMPOSITE, MADE
from pixsigma.requests import request_from
from pixsigma.server.jobs import Job, JobStore
from pixsigma.server.metrics import Metrics
from pixsigma.server.policy import Policy
from pixsigma.server.telling import remembered, said
from pixsigma.server.warned import hear

_log = logging.getLogger(__name__)

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""Formats that pictures are handed out in, and the endings of their files."""

PREVIEW_SECONDS = 0.2
"""A preview is made no more often: nobody sees more."""

GIVE_BACK_SECONDS = 20.0
"""How often freed memory goes back to the system, which takes some milliseconds."""


class Stopped(Exception):
    """Raised inside a drawing that is not to go on: cancelled, too late, or handed back."""

    def __init__(self, state: str, reason: str | None = None) -> None:
        super().__init__(reason or state)
        self.state, self.reason = state, reason


@dataclass(frozen=True)
class Glimpse:
    """Where a running job stands; replaced as a whole, so that any thread may look."""

    stage: str = "text"
    index: int = 0
    total: int = 0
    seconds: float = 0.0
    """Since the drawing began."""
    seconds_left: float | None = None
    preview: bytes | None = field(default=None, repr=False)
    """A JPEG in the picture's size, from a linear map of the latents."""
    num_previews: int = 0


@dataclass
class Live:
    """What is known of a running job beside its row."""

    job: Job
    began: float
    glimpse: Glimpse = field(default_factory=Glimpse)
    stop: Stopped | None = None
    last_preview: float = 0.0


def share_cores() -> None:
    """Errands have half of the cores: the network, whose thread calls this not, has all."""
    torch.get_num_threads()  # a thread's first look takes over what another thread has set
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))


class Worker:
    """Draws the jobs of a store with the pipelines of a server, `at_once` of them in turn."""

    def __init__(
        self,
        store: JobStore,
        pipes: Mapping[str, PixArtSigmaPipeline],
        results: Path,
        *,
        policy: Policy | None = None,
        metrics: Metrics | None = None,
        at_once: int = 8,
    ) -> None:
        self.store, self.pipes, self.results = store, pipes, results
        self.policy, self.metrics = policy or Policy(), metrics or Metrics()
        resident = all(pipe.placement.mode == "resident" for pipe in pipes.values())
        self.at_once = at_once
        self.live: dict[str, Live] = {}
        self.deadlines: dict[str, float] = {}
        """Id to a moment of the monotonic clock."""
        self.accepted: dict[str, float] = {}
        """Id of a job that waits to the same clock, when it came."""
        self.speed: float | None = None
        """Pixels times steps a second of the latest drawings; None before the first."""
        self._watchers: dict[str, int] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        # parts that take turns on the device cannot be there side by side
        self._pool = ThreadPoolExecutor(1, "pixsigma-errands", share_cores) if resident else None
        self._clerk = ThreadPoolExecutor(1, "pixsigma-clerk")
        self._company = Company(self._pool, self._wake.set)
        self._stopping = False
        self._refused = float("-inf")
        self._given_back = time.monotonic()
        self._unwritten: list[tuple[str, dict[str, Any]]] = []
        self._thread = threading.Thread(target=self._run, name="pixsigma-worker", daemon=True)

    # For other threads

    def start(self) -> None:
        """Begin, with what an earlier server left behind first."""
        self.store.recover()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are being drawn."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """There is a new job."""
        self._wake.set()

    def stop(self, grace: float = 10.0) -> None:
        """Take no more; finish what runs within `grace` seconds, else hand it back."""
        self._stopping = True
        self.wake()
        self._thread.join(grace)
        for live in list(self.live.values()):
            live.stop = live.stop or Stopped("queued")
        self._thread.join()

    def cancel(self, id: str) -> Job:
        """Cancel a job, between two steps where it runs; raises KeyError for an unknown one."""
        job = self.store.cancel(id)
        if live := self.live.get(id):
            live.stop = Stopped("cancelled")
        elif job.state == "cancelled":
            self._waits_no_more(id, "cancelled")
        self.wake()
        return job

    def watch(self, id: str) -> None:
        """Make previews of this job from now on."""
        with self._lock:
            self._watchers[id] = self._watchers.get(id, 0) + 1

    def unwatch(self, id: str) -> None:
        """One looks no more."""
        with self._lock:
            self._watchers[id] -= 1
            if not self._watchers[id]:
                del self._watchers[id]

    # The thread

    def _run(self) -> None:
        # once and for all: drawings that change places must not find one another's setting
        torch.set_grad_enabled(False)
        cores = torch.get_num_threads()  # before an errand has it changed for new threads
        company = self._company
        while company.members or not self._stopping:
            try:
                self._wake.clear()
                if time.monotonic() >= self._refused + 1:
                    self._admit()
                if not company.idle:
                    self.metrics.calls.inc()
                company.step()
                if time.monotonic() >= self._given_back + GIVE_BACK_SECONDS:
                    give_back_pages()
                    self._given_back = time.monotonic()
                if company.idle:  # an errand that ends wakes it, or a job that comes
                    self._wake.wait(1.0)
            except Exception as error:
                _log.exception("the worker could not go on")
                self.metrics.errors.labels(type(error).__name__).inc()
                self._wake.wait(1.0)
        if self._pool is not None:
            self._pool.shutdown()
        self._clerk.shutdown()
        torch.set_num_threads(cores)
        self._retry()

    def _retry(self) -> None:
        for _ in range(len(self._unwritten)):
            self._write_down(*self._unwritten.pop(0))

    def _admit(self) -> None:
        """What the disk has refused, what waited too long, then new jobs."""
        self._retry()
        self._let_go()
        room = 0 if self._stopping else self.at_once - len(self._company.members)
        while room > 0 and (job := self._claimed()):
            room -= 1
            self.metrics.running.inc()
            live = self.live[job.id] = Live(job, now := time.monotonic())
            came = self.accepted.pop(job.id, now)
            self.metrics.stages.labels("queued").observe(now - came)
            self._company.join(job.id, partial(self._work, live))

    def _let_go(self) -> None:
        now = time.monotonic()
        late = [id for id, end in list(self.deadlines.items()) if now > end and id not in self.live]
        for id in late:
            reason = "it still waited when its deadline was over"
            try:
                ended = self.store.finish(id, "failed", of="queued", kind="Stopped", reason=reason)
            except OutputError:
                self._refuse()
                return
            if ended:
                self._waits_no_more(id, "failed")
            else:  # drawn, stopped or forgotten meanwhile
                self.deadlines.pop(id, None)

    def _waits_no_more(self, id: str, state: str) -> None:
        self.metrics.over.labels(state).inc()
        for known in (self.accepted, self.deadlines):
            known.pop(id, None)

    def _claimed(self) -> Job | None:
        try:
            return self.store.claim()
        except OutputError:
            self._refuse()
            return None

    def _work(self, live: Live, ask: Ask) -> Iterator[Step]:
        """One job from beginning to end; raises nothing."""
        job = live.job
        folder = self.results / job.id
        outcome: dict[str, Any] = {}
        heard = hear()
        try:
            step = yield from self._draw(live, folder, ask)
            files = elsewhere(ask, self._save, live, step, folder)
            outcome = {"state": "done", "files": files, "seeds": step.seeds}
        except Stopped as stop:
            outcome = {"state": stop.state, "reason": stop.reason}
        except PolicyError as error:
            self.metrics.policy.labels("after").inc()
            outcome = {"state": "failed", "kind": "PolicyError", "reason": str(error)}
        except Exception as error:
            _log.warning("job %s failed", job.id, exc_info=not isinstance(error, PixsigmaError))
            outcome = {"state": "failed", "kind": type(error).__name__, "reason": said(error)}
        outcome["warnings"] = heard
        if outcome["state"] != "done":
            shutil.rmtree(folder, ignore_errors=True)
        self._conclude(live, outcome)
        self._clerk.submit(self._write_down, job.id, outcome)

    def _conclude(self, live: Live, outcome: dict[str, Any]) -> None:
        state = outcome["state"]
        self.metrics.over.labels(state).inc()
        self.metrics.running.dec()
        if state == "failed":
            self.metrics.errors.labels(outcome.get("kind", "Stopped")).inc()
        outcome["seconds"] = round(time.monotonic() - live.began, 3)

    def _write_down(self, id: str, outcome: dict[str, Any]) -> None:
        """Put the end of a job on disk; where it is full, it waits until there is room."""
        try:
            if outcome["state"] == "queued":
                self.store.hand_back(id)
            else:
                self.store.finish(id, **outcome)
            if outcome.get("kind") == PolicyError.__name__:
                self.store.empty(id)
        except OutputError:
            self._refuse()
            self._unwritten.append((id, outcome))
            return
        for known in (self.accepted, self.deadlines, self.live):
            known.pop(id, None)

    def _refuse(self) -> None:
        _log.exception("the disk takes no more")
        self.metrics.errors.labels("OutputError").inc()
        self._refused = time.monotonic()

    def _draw(self, live: Live, folder: Path, ask: Ask) -> Generator[Step, None, Step]:
        self._check(live)
        request = request_from(**live.job.request)
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed
        folder.mkdir(parents=True)
        at, stage = time.monotonic(), "text"
        for step in stages_in_company(self.pipes[live.job.model], request, ask):
            now = time.monotonic()
            if step.stage != stage:
                self.metrics.stages.labels(stage).observe(now - at)
                at, stage = now, step.stage
            if step.stage == "denoising" and step.index:
                self.metrics.steps.inc()
            self._look(live, step, now)
            self._check(live)
            yield step
        self._measure(step, time.monotonic() - live.began)
        return step

    def _check(self, live: Live) -> None:
        if live.stop is not None:
            raise live.stop
        if time.monotonic() > self.deadlines.get(live.job.id, float("inf")):
            raise Stopped(
                "failed", f"it was not done within the {live.job.deadline:g} s of its deadline"
            )

    def _look(self, live: Live, step: Step, now: float) -> None:
        took, left = now - live.began, None
        if 0 < step.index <= step.total:
            left = took / step.index * (step.total - step.index)
        seen = replace(
            live.glimpse,
            stage=step.stage,
            index=step.index,
            total=step.total,
            seconds=took,
            seconds_left=left,
        )
        wanted = live.job.id in self._watchers and now - live.last_preview >= PREVIEW_SECONDS
        if wanted and step.stage == "denoising" and step.index and (small := step.preview()):
            live.last_preview = now
            number = seen.num_previews + 1
            seen = replace(
                seen,
                preview=enlarged(small, self.pipes[live.job.model].factor),
                num_previews=number,
            )
        live.glimpse = seen

    def _measure(self, step: Step, seconds: float) -> None:
        now = sum(image.width * image.height for image in step.images) * step.total / seconds
        self.speed = now if self.speed is None else 0.7 * self.speed + 0.3 * now

    def _save(self, live: Live, step: Step, folder: Path) -> list[str]:
        for image in step.images:
            self.policy.check_picture(image)
        job = live.job
        request = request_from(**job.request)
        told = remembered(request) | {
            "model": job.model,
            "device": str(self.pipes[job.model].device),
            "dtype": str(self.pipes[job.model].dtype).removeprefix("torch."),
            "pixsigma": __version__,
            "num_images": 1,
        }
        mark = COMPOSITE if request.mask or request.extend else MADE
        suffix = SUFFIXES[job.format]
        for number, (image, seed) in enumerate(zip(step.images, step.seeds, strict=True)):
            settings = told | {"seed": seed}
            write_picture(image, folder, str(number), settings, suffix=suffix, source_type=mark)
            self.metrics.images.inc()
        return [f"{number}{suffix}" for number in range(len(step.images))]


def enlarged(small: Image.Image, factor: int) -> bytes:
    """A preview of latents, `factor` times as large, as a JPEG."""
    buffer = io.BytesIO()
    size = small.width * factor, small.height * factor
    small.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
