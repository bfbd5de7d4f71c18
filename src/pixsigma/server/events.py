"""A job as a stream of server-sent events, for clients as slow as they like.

The state is looked at, not queued: who reads slowly misses steps in between and costs no memory.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from time import monotonic
from typing import Any

from pixsigma.server.service import Service, Status

LOOK_SECONDS = 0.1
"""Between two looks at a job."""

ALIVE_SECONDS = 15.0
"""After so long a silence the same is told again, so that nothing between closes the connection."""


async def watch(
    service: Service, id: str, client: str | None, previews: bool = False
) -> AsyncIterator[Status]:
    """Every change of a job until it is over; raises KeyError where it is unknown or deleted."""
    before: Any = None
    told_at = 0.0
    if previews:
        service.worker.watch(id)
    try:
        version = service.store.version
        status = await asyncio.to_thread(service.status, id, client)
        while True:
            now = status.job.state, status.place, status.glimpse
            if now != before or monotonic() - told_at >= ALIVE_SECONDS:
                before, told_at = now, monotonic()
                yield status
            if status.job.over:
                return
            # who waits far behind is told less often
            await asyncio.sleep(LOOK_SECONDS * min(1 + status.place, 10))
            live = service.worker.live.get(id)
            if live is not None and status.job.state == "running":
                # its row stays as it is for as long as it is live: a step costs no look at the disk
                status = replace(status, glimpse=live.glimpse)
            elif service.store.version != version:
                version = service.store.version
                status = await asyncio.to_thread(service.status, id, client)
    finally:
        if previews:
            service.worker.unwatch(id)


async def events(
    service: Service, id: str, client: str | None, with_previews: bool = True
) -> AsyncIterator[str]:
    """The stream of GET /v1/jobs/{id}/events."""
    previews = 0
    try:
        async for status in watch(service, id, client, previews=with_previews):
            seen = status.glimpse
            yield told(name_of(status), described(status))
            if seen is not None and seen.preview is not None and seen.num_previews > previews:
                previews = seen.num_previews
                picture = base64.b64encode(seen.preview).decode("ascii")
                yield told("preview", {"index": seen.index, "jpeg": picture})
    except KeyError:
        yield told("failed", {"id": id, "state": "failed", "reason": "it was deleted"})


def name_of(status: Status) -> str:
    """The kind of event: a state, or `step` while it is drawn."""
    return "step" if status.job.state == "running" else status.job.state


def told(event: str, data: dict[str, Any]) -> str:
    """One event on the wire."""
    return f"event: {event}\ndata: {json.dumps(data)}\n\n"


def described(status: Status) -> dict[str, Any]:
    """A job as JSON."""
    job, seen = status.job, status.glimpse
    fields: dict[str, Any] = {
        "id": job.id,
        "state": job.state,
        "model": job.model,
        "created": job.created,
        "place": status.place,
    }
    if seen is not None:
        fields |= {
            "stage": seen.stage,
            "step": seen.index,
            "steps": seen.total,
            "seconds": round(seen.seconds, 3),
            "seconds_left": None if seen.seconds_left is None else round(seen.seconds_left, 3),
        }
    if job.over:
        fields |= {
            "seconds": job.seconds,
            "kind": job.kind,
            "reason": job.reason,
            "warnings": job.warnings,
            "seeds": job.seeds,
            "results": [f"/v1/jobs/{job.id}/results/{name}" for name in job.files],
        }
    return fields
