"""Many clients on one server: throughput against one at a time, waiting times, right pictures.

    python benchmarks/serve_load.py --clients 50 --seconds 300

Short by default. Every picture that comes back is compared with the one that is drawn alone.
"""

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from pixsigma import PixArtSigmaPipeline
from pixsigma.requests import request_from
from pixsigma.server.limits import Limits
from pixsigma.server.service import JobRequest, Service

PROMPTS = ["a red apple", "a cat", "a whale on a yellow background", "a house", "a lion, 3D"]
SIZES = [(64, 64), (128, 128), (128, 128), (96, 160)]
STEPS = [4, 8, 12, 20]


def wishes(seed: int) -> dict[str, object]:
    """A request, the same for the same number."""
    draw = random.Random(seed)
    width, height = draw.choice(SIZES)
    return {
        "prompt": draw.choice(PROMPTS),
        "width": width,
        "height": height,
        "num_inference_steps": draw.choice(STEPS),
        "guidance_scale": draw.choice([1.0, 3.0, 4.5]),
        "seed": seed,
    }


def load(clients: int, seconds: float, at_once: int, folder: Path) -> tuple[list, Service]:
    """Every client sends its next job when the last is over; rows of (number, s, state, job)."""
    pipe = PixArtSigmaPipeline.from_pretrained("mini")
    limits = Limits(rate=1e6, max_queue=10_000, max_per_client=100, kept=10**6)
    service = Service({"mini": pipe}, folder, limits=limits, at_once=at_once)
    service.start()
    rows: list = []
    end = time.monotonic() + seconds

    def client(k: int) -> None:
        number = k
        while time.monotonic() < end:
            began = time.monotonic()
            wanted = JobRequest(request=request_from(**wishes(number)))
            job = service.submit(wanted, f"client-{k}")
            while not (found := service.store.get(job.id)).over:
                time.sleep(0.02)
            rows.append((number, time.monotonic() - began, found.state, found))
            number += clients

    threads = [threading.Thread(target=client, args=(k,)) for k in range(clients)]
    memory, began = [], time.monotonic()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        memory.append((time.monotonic() - began, psutil.Process().memory_info().rss / 2**20))
        time.sleep(1)
    took = time.monotonic() - began
    waits = sorted(row[1] for row in rows)
    small = [r[1] for r in rows if wishes(r[0])["num_inference_steps"] == STEPS[0]]
    large = [r[1] for r in rows if wishes(r[0])["num_inference_steps"] == STEPS[-1]]
    half = memory[len(memory) // 2 :]
    slope = np.polyfit(*zip(*half, strict=True), 1)[0] * 60 if len(half) > 5 else float("nan")
    told = {
        "at_once": at_once,
        "clients": clients,
        "jobs": len(rows),
        "failed": sum(row[2] != "done" for row in rows),
        "jobs_a_second": round(len(rows) / took, 3),
        **{f"p{q}": round(float(np.percentile(waits, q)), 2) for q in (50, 95, 99)},
        "median_wait_4_steps": round(statistics.median(small), 2) if small else None,
        "median_wait_20_steps": round(statistics.median(large), 2) if large else None,
        "memory_mb_a_minute": round(float(slope), 2),
    }
    print(json.dumps(told), flush=True)
    return rows, service


def wrong(rows: list, service: Service) -> int:
    """How many pictures differ from those drawn alone by more than one level in 255."""
    pipe = PixArtSigmaPipeline.from_pretrained("mini")
    num = 0
    for number, _, state, job in rows:
        if state == "done":
            *_, last = pipe.stream(request_from(**wishes(number)))
            alone = np.asarray(last.images[0], dtype=int)
            served = np.asarray(Image.open(service.files(job)[0]), dtype=int)
            num += bool(np.abs(alone - served).max() > 1)
    return num


def main() -> None:
    """One at a time, then together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--compare", type=int, default=20, help="pictures to draw again alone")
    args = parser.parse_args()
    for at_once in (1, args.at_once):
        with tempfile.TemporaryDirectory() as folder:
            rows, service = load(args.clients, args.seconds, at_once, Path(folder))
            print(json.dumps({"wrong": wrong(rows[: args.compare], service)}), flush=True)
            service.stop()


if __name__ == "__main__":
    main()
