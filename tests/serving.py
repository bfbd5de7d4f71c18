"""A server small enough to start in every test."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from tests.small import small_pipeline

from pixsigma.server.app import create_app
from pixsigma.server.jobs import Job
from pixsigma.server.service import Service

SMALL = {"width": 32, "height": 32, "num_inference_steps": 3}
OF_GRADIO = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in (
        "DeprecationWarning",
        "UserWarning",
        "ResourceWarning",
        "pytest.PytestUnraisableExceptionWarning",
    )
]
"""Marks of tests that import Gradio: it leaves event loops open and warns of its own future."""
HOSTS = {"testserver", "localhost", "127.0.0.1"}


def small_service(folder: Path, **settings: Any) -> Service:
    pipes = settings.pop("pipes", None) or {"small": small_pipeline()}
    return Service(pipes, folder, **settings)


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[TestClient]:
    of_app = {key: settings.pop(key) for key in ("keys", "studio") if key in settings}
    app = create_app(small_service(folder, **settings), hosts=HOSTS, grace=5, **of_app)
    with TestClient(app) as client:
        yield client


def job(prompt: str = "a cat", **fields: Any) -> dict[str, Any]:
    beside = {k: fields.pop(k) for k in ("format", "priority", "deadline_seconds") if k in fields}
    return {"request": {"prompt": prompt, **SMALL, **fields}, **beside}


def until_over(service: Service, id: str, seconds: float = 20) -> Job:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = service.store.get(id)
        if found.over:
            return found
        time.sleep(0.01)
    raise AssertionError(f"not over after {seconds} s: {service.store.get(id)}")


def wait(client: TestClient, id: str, seconds: float = 20) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        told: dict[str, Any] = client.get(f"/v1/jobs/{id}").json()
        if told["state"] in ("done", "failed", "cancelled"):
            return told
        time.sleep(0.01)
    raise AssertionError(f"not over after {seconds} s: {told}")


@contextmanager
def listening(folder: Path, **settings: Any) -> Iterator[str]:
    """A server on a port of its own; yields its address."""
    of_app = {key: settings.pop(key) for key in ("keys", "studio") if key in settings}
    service = small_service(folder, **settings)
    app = create_app(service, hosts=HOSTS, grace=5, **of_app)
    config = uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        (port,) = {s.getsockname()[1] for each in server.servers for s in each.sockets}
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
