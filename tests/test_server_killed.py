"""The whole server, killed and begun again: what it accepted is drawn, once, and as if alone."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixsigma import GenerationRequest, PixArtSigmaPipeline

PATIENCE = 200.0
"""Seconds for a server to load, or for all its work."""

ASKED = [
    {"prompt": prompt, "seed": 40 + k, "num_inference_steps": 4 + 3 * k, "width": 64, "height": 64}
    for k, prompt in enumerate(("a red apple", "a blue fish", "a house", "a tree"))
]


@contextmanager
def server(data: Path, port: int) -> "Iterator[subprocess.Popen[bytes]]":
    """`pixsigma serve` as a process of its own, ready to draw; killed at the end."""
    command = [sys.executable, "-m", "pixsigma", "serve", "--no-studio", "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--data", str(data)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: ready(port), process)
        yield process
    finally:
        process.kill()
        process.wait()


def until(done: Any, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert process.poll() is None, "the server ended by itself"
        assert time.monotonic() < end, "out of patience"
        time.sleep(0.05)


def ready(port: int) -> bool:
    try:
        return bool(call(port, "/readyz") is not None)
    except (urllib.error.URLError, ConnectionError):
        return False


def call(port: int, path: str, body: Any = None) -> bytes:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


def state(port: int, job: str) -> dict[str, Any]:
    return dict(json.loads(call(port, f"/v1/jobs/{job}")))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def vanish(port: int, job: str) -> None:
    """Ask for the events of a job, and go away without a word."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        line.sendall(f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        line.recv(64)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_nothing_that_was_accepted_is_lost_or_wrong(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_port()
    with server(data, port) as first:
        jobs = [json.loads(call(port, "/v1/jobs", {"request": each}))["id"] for each in ASKED]
        vanish(port, jobs[-1])
        until(lambda: state(port, jobs[0])["state"] != "queued", first)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    with server(data, port) as second:
        until(lambda: all(state(port, job)["state"] in ("done", "failed") for job in jobs), second)
        ended = [state(port, job) for job in jobs]
        assert [each["state"] for each in ended] == ["done"] * len(jobs), ended
        drawn = [call(port, each["results"][0]) for each in ended]
    pipe = PixArtSigmaPipeline.from_pretrained("mini")
    for each, found in zip(ASKED, drawn, strict=True):
        *_, alone = pipe.stream(GenerationRequest.model_validate(each))
        pixels = np.asarray(Image.open(io.BytesIO(found)), dtype=int)
        assert np.abs(pixels - np.asarray(alone.images[0], dtype=int)).max() <= 1, each
