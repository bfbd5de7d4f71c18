"""A job that is watched: every change is told, and a step costs no look at the disk."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.serving import job, serving

from pixsigma.server import events
from pixsigma.server.events import watch
from pixsigma.server.service import Status
from pixsigma.server.worker import Glimpse


class Watched:
    """As much of a service as a watcher sees, with one job."""

    def __init__(self) -> None:
        self.store = SimpleNamespace(version=0)
        self.worker = SimpleNamespace(live={})
        self.state, self.place, self.looks = "queued", 1, 0

    def status(self, id: str, client: str | None) -> Status:
        self.looks += 1
        told: Any = SimpleNamespace(state=self.state, over=self.state == "done")
        return Status(told, place=self.place)

    def become(self, state: str) -> None:
        self.state, self.place = state, 0
        self.store.version += 1


def test_steps_are_told_without_a_look_at_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK_SECONDS", 0)
    service: Any = Watched()

    async def seen() -> list[tuple[str, int, int | None]]:
        found = []
        async for status in watch(service, "id", None):
            index = status.glimpse.index if status.glimpse else None
            found.append((status.job.state, status.place, index))
            if status.job.state == "queued":
                service.become("running")
            elif index is None or index < 5:
                service.worker.live["id"] = SimpleNamespace(glimpse=Glimpse(index=(index or 0) + 1))
            else:
                service.become("done")
                service.worker.live.clear()
        return found

    steps = [("running", 0, index) for index in (None, 1, 2, 3, 4, 5)]
    assert asyncio.run(seen()) == [("queued", 1, None), *steps, ("done", 0, None)]
    assert service.looks == 3


def test_who_hears_nothing_new_is_told_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK_SECONDS", 0)
    monkeypatch.setattr(events, "ALIVE_SECONDS", 0.0)
    service: Any = Watched()

    async def seen() -> list[str]:
        found = []
        async for status in watch(service, "id", None):
            found.append(status.job.state)
            if len(found) == 3:
                service.become("done")
        return found

    assert asyncio.run(seen()) == ["queued"] * 3 + ["done"]
    assert service.looks == 2


def test_a_job_that_is_over_is_told_once(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        id = client.post("/v1/jobs", json=job()).json()["id"]
        with client.stream("GET", f"/v1/jobs/{id}/events?previews=false") as answer:
            lines = [line for line in answer.iter_lines() if line.startswith("event: ")]
        with client.stream("GET", f"/v1/jobs/{id}/events?previews=false") as answer:
            again = [line for line in answer.iter_lines() if line.startswith("event: ")]
    assert lines[-1] == "event: done" and again == ["event: done"]
