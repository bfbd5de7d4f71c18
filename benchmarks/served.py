"""What the benchmarks of the server share: a server as a process of its own, clients, requests."""

import http.client
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixsigma import PixArtSigmaPipeline
from pixsigma.requests import request_from

PROMPTS = ["a red apple", "a cat", "a whale on a yellow background", "a house", "a lion, 3D"]
SIZES = [(64, 64), (128, 128), (128, 128), (96, 160)]
STEPS = [4, 8, 12, 20]
OPEN = ["rate=1000000", "max_queue=100000", "max_per_client=100000", "kept=1000000"]
"""No limit that clients of a benchmark would meet."""

Answer = tuple[int, bytes]


def wish(number: int) -> dict[str, Any]:
    """A request, the same for the same number."""
    draw = random.Random(number)
    width, height = draw.choice(SIZES)
    return {
        "prompt": draw.choice(PROMPTS),
        "width": width,
        "height": height,
        "num_inference_steps": draw.choice(STEPS),
        "guidance_scale": draw.choice([1.0, 3.0, 4.5]),
        "seed": number,
    }


@dataclass
class Server:
    """`pixsigma serve` on a port of its own, with jobs in `folder`."""

    folder: Path
    flags: Iterable[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None
    """What it says; beside `folder` where it is not told."""
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    def start(self, patience: float = 600.0) -> None:
        """Return when it is ready."""
        self.port = self.port or free_port()
        command = [sys.executable, "-m", "pixsigma", "serve", "--no-studio", "--device", "cpu"]
        command += ["--port", str(self.port), "--data", str(self.folder), *self.flags]
        command += [part for limit in OPEN for part in ("--limit", limit)]
        path = self.log or self.folder.parent / "server.log"
        with path.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **self.environment}
            )
        end = time.monotonic() + patience
        while time.monotonic() < end and self.process.poll() is None:
            if self.answers("/readyz"):
                return
            time.sleep(0.1)
        raise SystemExit(f"the server does not start:\n{path.read_text()[-3000:]}")

    def kill(self, how: int = signal.SIGKILL) -> int:
        """Send a signal and wait for the end; the exit status."""
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(timeout=180)

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Status and content of one answer; raises OSError where nobody answers."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {"Content-Type": "application/json", **(headers or {})}
        try:
            line.request(method, path, None if body is None else json.dumps(body), sent)
            answer = line.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            line.close()

    def answers(self, path: str = "/healthz") -> bool:
        """Whether it says that all is well."""
        try:
            return self.ask("GET", path)[0] == 200
        except OSError:
            return False

    def submit(self, request: Mapping[str, Any], key: str | None = None) -> str:
        """The id of an accepted job; raises OSError where it is not accepted."""
        headers = {} if key is None else {"Idempotency-Key": key}
        status, text = self.ask("POST", "/v1/jobs", {"request": request}, headers)
        if status != 202:
            raise OSError(f"{status}: {text[:200]!r}")
        return str(json.loads(text)["id"])

    def look(self, id: str) -> dict[str, Any]:
        """The job as the server tells it."""
        status, text = self.ask("GET", f"/v1/jobs/{id}")
        if status != 200:
            raise OSError(f"{status}: {text[:200]!r}")
        return dict(json.loads(text))

    def follow(self, id: str) -> dict[str, Any]:
        """The end of a job, heard from its events."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            line.request("GET", f"/v1/jobs/{id}/events?previews=false")
            answer = line.getresponse()
            last: dict[str, Any] = {}
            while text := answer.readline():
                if text.startswith(b"data: "):
                    last = json.loads(text[6:])
            return last
        finally:
            line.close()

    def memory(self) -> float:
        """Of the process, in MB."""
        import psutil

        assert self.process is not None
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@cache
def pipeline() -> PixArtSigmaPipeline:
    """The model that is served."""
    return PixArtSigmaPipeline.from_pretrained("mini")


@cache
def alone(number: int) -> np.ndarray:
    """`wish(number)` drawn alone, in levels of 255."""
    *_, last = pipeline().stream(request_from(**wish(number)))
    return np.asarray(last.images[0], dtype=int)


def differences(pictures: Iterable[tuple[int, bytes]]) -> Iterator[int]:
    """The largest difference of each picture, in levels of 255, to `wish(number)` drawn alone."""
    for number, data in pictures:
        served = np.asarray(Image.open(io.BytesIO(data)), dtype=int)
        yield int(np.abs(served - alone(number)).max())
