"""What the page's buttons do, without its widgets: wishes become jobs, jobs become scenes."""

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from PIL import Image

from pixsigma.buckets import asked_multiple
from pixsigma.errors import PixsigmaError
from pixsigma.images import picture_stem
from pixsigma.requests import request_from
from pixsigma.server.events import watch
from pixsigma.server.jobs import Job
from pixsigma.server.service import JobRequest, Service, Status
from pixsigma.server.studio import words
from pixsigma.server.studio.estimate import Estimate, Estimator, Work, work_of
from pixsigma.server.studio.wishes import NAMES, Native, request_fields

PATIENCE_SECONDS = 5.0
"""How long a drawing waits for its own cost."""

Mood: TypeAlias = Literal["idle", "busy", "asking"]
"""`asking` waits for a yes to a heavy drawing."""

TOLD = 80
"""Letters of a prompt in a caption."""


class Named(type(Path())):  # type: ignore[misc]
    """A picture where it lies, which a browser saves under a name that tells what it shows.

    Gradio's gallery takes that from the path's last part; files of jobs are numbered there.
    """

    shown: str | None = None

    @property
    def name(self) -> str:
        """What it is saved as."""
        return self.shown or str(super().name)


def named(path: Path, stem: str) -> Named:
    """The picture at a path, saved under `stem` and the path's own ending."""
    made = Named(path)
    made.shown = stem + path.suffix
    return made


Pictures: TypeAlias = list[tuple[Path, str]]
"""Paths and captions."""


@dataclass(frozen=True)
class Scene:
    """What the page shows of a drawing; None leaves a part as it is."""

    words: str | None = None
    preview: str | None = None
    """HTML; empty takes it away."""
    pictures: Pictures | None = None
    job: str | None = None
    mood: Mood = "idle"


@dataclass
class Studio:
    """Drawing with the pipelines of a server."""

    service: Service
    estimator: Estimator = field(init=False)

    def __post_init__(self) -> None:
        self.estimator = Estimator(self.service.pipes, self.service.store)

    # Wishes

    def native(self, model: str) -> Native:
        """What a model draws best."""
        pipe = self.service.pipes[model]
        return Native(max(pipe.default_size), asked_multiple(pipe.multiple))

    def fields(self, wish: Mapping[str, Any]) -> dict[str, Any]:
        """The wish as fields of a request; raises InputError."""
        fields = request_fields(wish, self.native(wish["model"]))
        request_from(NAMES, **fields)
        return fields

    def submit(self, fields: dict[str, Any], model: str, who: str) -> Job:
        """Accept the fields of a request; raises PixsigmaError."""
        request = request_from(NAMES, **fields)
        return self.service.submit(JobRequest(request=request, model=model), who)

    def weigh(
        self, fields: dict[str, Any], wish: Mapping[str, Any], who: str, num: int = 1
    ) -> tuple[Work, Estimate] | None:
        """What `num` such drawings one after another will take; None where it cannot be told."""
        canvas = wish.get("canvas") or {}
        given = canvas.get("background")
        work = work_of(fields, given.size if given is not None else None)
        if work is None:
            return None
        found = self.estimator.estimate(work, wish["model"], who)
        seconds = None if found.seconds is None else num * found.seconds
        return work, Estimate(found.peak, found.room, seconds)

    def plan(self, wish: Mapping[str, Any], who: str) -> str:
        """What the wish will cost, as far as it is known; empty for what will be refused."""
        with suppress(PixsigmaError, TypeError, ValueError):
            fields = request_fields({**wish, "prompt": "any"}, self.native(wish["model"]))
            if weighed := self.weigh(fields, wish, who):
                return words.plan(*weighed)
        return ""

    # Drawing

    async def draw(
        self, wish: Mapping[str, Any], who: str, *, sure: bool = False
    ) -> AsyncIterator[Scene]:
        """Draw a wish; what is heavy asks first, unless the person is sure."""
        try:
            fields = self.fields(wish)
            weighing = asyncio.to_thread(self.weigh, fields, wish, who)
            weighed = await asyncio.wait_for(weighing, PATIENCE_SECONDS)
        except TimeoutError:
            weighed = None  # the machine is busy, and the page told the cost when it was set
        except PixsigmaError as error:
            yield Scene(words.wrong(error))
            return
        if weighed and words.is_heavy(weighed[1]) and not sure:
            yield Scene(words.warning(*weighed), mood="asking")
            return
        async for scene in self.begin(lambda: (fields, wish["model"]), who):
            yield scene

    async def begin(
        self, make: Callable[[], tuple[dict[str, Any], str]], who: str
    ) -> AsyncIterator[Scene]:
        """Draw the fields and with the model that `make` tells."""
        try:
            fields, model = make()
            job = await asyncio.to_thread(self.submit, fields, model, who)
        except PixsigmaError as error:
            yield Scene(words.wrong(error))
            return
        async for scene in self.follow(job.id):
            yield scene

    async def follow(self, id: str) -> AsyncIterator[Scene]:
        """A job until it is over."""
        shown = 0
        yield Scene(words.note("going", "…"), job=id, mood="busy")
        try:
            async for status in watch(self.service, id, None, previews=True):
                seen, preview = status.glimpse, None
                if seen is not None and seen.preview is not None and seen.num_previews > shown:
                    shown, preview = seen.num_previews, picture(seen.preview)
                if not status.job.over:
                    yield Scene(words.sentence(status), preview, job=id, mood="busy")
                    continue
                drawn = self.pictures(status.job) if status.job.state == "done" else None
                yield Scene(words.sentence(status), "", drawn, id)
        except KeyError:
            yield Scene(words.wrong("it was deleted"), "", job="")

    async def resume(self, id: str, who: str) -> AsyncIterator[Scene]:
        """The drawing that a page showed before it was loaded anew; nothing where it is gone."""
        with suppress(KeyError):
            status = await asyncio.to_thread(self.service.status, id, who)
            if status.job.state in ("queued", "running", "done"):
                async for scene in self.follow(id):
                    yield scene

    def stop(self, id: str) -> bool:
        """Cancel a job between two steps; False where it is over, or there is none."""
        with suppress(KeyError):
            if id and not self.service.status(id).job.over:
                self.service.cancel(id)
                return True
        return False

    def is_busy(self, id: str) -> bool:
        """Whether this job is under way."""
        status = self.status(id) if id else None
        return status is not None and not status.job.over

    def status(self, id: str) -> Status | None:
        """A job's status; None where it was deleted."""
        with suppress(KeyError):
            return self.service.status(id)
        return None

    def pictures(self, job: Job) -> Pictures:
        """The pictures of a job for a gallery."""
        prompt = str(job.request.get("prompt", ""))
        return [
            (named(path, picture_stem(prompt, seed)), f"{prompt[:TOLD]} · seed {seed}")
            for path, seed in zip(self.service.files(job), job.seeds, strict=True)
            if path.exists()
        ]

    def image(self, status: Status | None, index: int = 0) -> Image.Image | None:
        """A picture of a job that is done; None where there is none."""
        if status is None or index >= len(status.job.files):
            return None
        try:
            with Image.open(self.service.files(status.job)[index]) as image:
                return image.convert("RGB")
        except OSError:
            return None


def picture(jpeg: bytes) -> str:
    """A preview as HTML; no file is made, so nothing stays of it."""
    data = base64.b64encode(jpeg).decode("ascii")
    return f"<img class='coming' src='data:image/jpeg;base64,{data}' alt='the picture as it comes'>"


def any_seed() -> int:
    """A seed as a person can read it out."""
    return random.randrange(10**6)
