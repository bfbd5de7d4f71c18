"""What was drawn before: shown, told, and where the next picture begins."""

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from PIL import Image

from pixsigma.errors import InputError
from pixsigma.server.jobs import Job
from pixsigma.server.studio import wishes, words
from pixsigma.server.studio.drawing import TOLD, Pictures, Scene, Studio

SHOWN = 60
"""Jobs that the history shows at first, and more at each asking."""

Chosen: TypeAlias = tuple[str, int] | None
"""A picture: the id of its job, and its place among the pictures of that."""

Changes: TypeAlias = Callable[[tuple[int, int]], dict[str, Any]]
"""From the (width, height) of a picture to the fields of a request that begins from it."""


@dataclass(frozen=True)
class Shown:
    """The pictures of a gallery, and which they are."""

    pictures: Pictures
    marks: list[tuple[str, int]]


@dataclass(frozen=True)
class History:
    """One visitor's pictures."""

    studio: Studio
    who: str

    def latest(self, num: int = SHOWN) -> Shown:
        """The pictures of the last `num` jobs, newest first."""
        pictures, marks = [], []
        for job in self.studio.service.store.latest(self.who, num):
            for index, (path, _) in enumerate(self.studio.pictures(job)):
                pictures.append((path, str(job.request.get("prompt", ""))[:TOLD]))
                marks.append((job.id, index))
        return Shown(pictures, marks)

    def job(self, chosen: Chosen) -> Job:
        """The job of a picture; raises InputError where it is gone, or was never theirs."""
        if chosen is None:
            raise InputError("choose a picture first")
        with suppress(KeyError):
            job = self.studio.service.status(chosen[0], self.who).job
            if chosen[1] < len(job.files):
                return job
        raise InputError("this picture was deleted")

    def told(self, chosen: Chosen) -> str:
        """The settings of a picture; raises InputError."""
        job = self.job(chosen)
        return words.told(job.request, job.seeds[_index(chosen)], job.model)

    def picture(self, chosen: Chosen) -> Image.Image:
        """The picture itself; raises InputError."""
        job = self.job(chosen)
        found = self.studio.image(self.studio.status(job.id), _index(chosen))
        if found is None:
            raise InputError("this picture was deleted")
        return found

    def widgets(self, chosen: Chosen) -> dict[str, Any]:
        """The settings of a picture as values of the widgets; raises InputError."""
        job = self.job(chosen)
        if job.model not in self.studio.service.pipes:
            raise InputError(f"this server no longer has the model {job.model!r}")
        native, loras = self.studio.native(job.model), self.studio.service.loras
        fields = job.request | {"seed": job.seeds[_index(chosen)]}
        return wishes.widgets_of(fields, job.model, native, loras)

    async def again(self, chosen: Chosen) -> AsyncIterator[Scene]:
        """The same once more, with another seed."""

        def make() -> tuple[dict[str, Any], str]:
            job = self.job(chosen)
            return wishes.again_fields(job.request, self.studio.service.loras), job.model

        async for scene in self.studio.begin(make, self.who):
            yield scene

    async def begun(self, chosen: Chosen, changes: Changes) -> AsyncIterator[Scene]:
        """Another picture that begins from this one."""

        def make() -> tuple[dict[str, Any], str]:
            job, picture = self.job(chosen), self.picture(chosen)
            loras = self.studio.service.loras
            changed = changes(picture.size)
            return wishes.begun_fields(job.request, picture, loras, **changed), job.model

        async for scene in self.studio.begin(make, self.who):
            yield scene

    def delete(self, chosen: Chosen) -> None:
        """Take the job of a picture off the disk, all of its pictures with it."""
        self.studio.service.forget(self.job(chosen))


def _index(chosen: Chosen) -> int:
    return chosen[1] if chosen else 0
