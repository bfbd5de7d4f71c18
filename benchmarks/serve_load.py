"""Many clients on one server: throughput against one at a time, waiting times, right pictures.

    python benchmarks/serve_load.py --clients 50 --seconds 300 --seconds-alone 150

Server and clients are processes of their own. Every client sends its next job when the last is
over; sizes, steps, guidance and prompts are mixed. Every picture that comes back is compared with
the one that is drawn alone. First one at a time, then in batches; what is known so far is written
every ten seconds, so that a run that is cut off leaves its figures.
"""

import json
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import parser
from served import STEPS, Server, differences, wish

from pixsigma.weights.files import write_json

DISTINCT = 60
"""Requests that there are; each is drawn alone once."""


@dataclass(frozen=True)
class Row:
    """One job of one client."""

    client: int
    number: int
    began: float
    ended: float
    """Seconds since the load began."""
    state: str
    picture: bytes

    @property
    def seconds(self) -> float:
        """From the request to its end."""
        return self.ended - self.began


def drawn(server: Server, number: int) -> tuple[str, bytes]:
    """How a job ended, and its picture."""
    try:
        told = server.follow(server.submit(wish(number)))
        if told["state"] != "done":
            return str(told["state"]), b""
        status, picture = server.ask("GET", told["results"][0])
        return ("done", picture) if status == 200 else (f"no picture: {status}", b"")
    except (OSError, ValueError, KeyError) as error:
        return f"no answer: {error}", b""


def load(
    server: Server, clients: int, seconds: float, note: Callable[[list[Row], list[Any]], None]
) -> tuple[list[Row], list[Any]]:
    """Rows of all jobs, those that ended late too, and (seconds, MB) of the server's memory.

    `note` is given what there is of both every ten seconds.
    """
    rows: list[Row] = []
    start = time.monotonic()

    def client(k: int) -> None:
        turn = 0
        while (began := time.monotonic() - start) < seconds:
            number = (k * 7 + turn * 13) % DISTINCT
            turn += 1
            state, picture = drawn(server, number)
            rows.append(Row(k, number, began, time.monotonic() - start, state, picture))

    threads = [threading.Thread(target=client, args=(k,), daemon=True) for k in range(clients)]
    for thread in threads:
        thread.start()
    memory: list[Any] = []
    while any(thread.is_alive() for thread in threads):
        memory.append((time.monotonic() - start, server.memory()))
        if len(memory) % 10 == 0:
            note([*rows], memory)
        time.sleep(1)
    return rows, memory


def told(rows: list[Row], memory: list[Any], seconds: float) -> dict[str, Any]:
    """The figures of one load, without a look at its pictures.

    Rates and waiting times are of jobs that gave a picture: what fails at once is not served.
    """
    jobs = len(rows)
    failed = sorted({row.state for row in rows if row.state != "done"})
    rows = [row for row in rows if row.state == "done"]
    if not rows:
        return {"seconds": round(seconds, 1), "jobs": jobs, "not_done": failed, "jobs_a_second": 0}
    counted = [row for row in rows if row.ended <= seconds]
    waits = [row.seconds for row in rows]
    of = {n: [r.seconds for r in rows if wish(r.number)["num_inference_steps"] == n] for n in STEPS}
    shares = np.bincount([row.client for row in rows]).astype(float)
    late = np.array([each for each in memory if seconds / 3 < each[0] < seconds])
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) * 60 if len(late) > 5 else None
    return {
        "seconds": round(seconds, 1),
        "jobs": jobs,
        "not_done": failed,
        "jobs_a_second": round(len(counted) / seconds, 3),
        **{f"p{q}_seconds": round(float(np.percentile(waits, q)), 2) for q in (50, 95, 99)},
        "median_seconds_by_steps": {
            n: round(float(np.median(each)), 2) for n, each in of.items() if each
        },
        "jobs_of_a_client": [int(shares.min()), int(shares.max())],
        "jain_fairness": round(float(shares.sum() ** 2 / (len(shares) * (shares**2).sum())), 4),
        "memory_mb": round(memory[-1][1]),
        "memory_mb_a_minute": slope if slope is None else round(slope, 2),
        "parts": spread(rows, seconds),
    }


def compared(rows: list[Row]) -> dict[str, Any]:
    """Every picture beside the one that is drawn alone."""
    differing = list(differences((row.number, row.picture) for row in rows if row.picture))
    return {
        "compared": len(differing),
        "wrong": sum(each > 1 for each in differing),
        "largest_difference_of_255": max(differing, default=None),
    }


def spread(rows: list[Row], seconds: float, parts: int = 5) -> list[float]:
    """Jobs a second in equal parts of the time."""
    counts, _ = np.histogram([row.ended for row in rows], parts, (0, seconds))
    return [round(float(n) * parts / seconds, 2) for n in counts]


def plot(runs: dict[int, list[Row]], path: Path) -> None:
    """Waiting times of both, as shares of jobs that are over after so long."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(6, 3.5), layout="constrained")).subplots()
    for at_once, rows in runs.items():
        waits = sorted(row.seconds for row in rows)
        name = "one at a time" if at_once == 1 else f"{at_once} at once"
        axes.plot(waits, np.linspace(0, 1, len(waits)), label=f"{name}, {len(rows)} jobs")
    axes.set(xlabel="seconds from request to picture", ylabel="share of jobs", ylim=(0, 1))
    axes.legend()
    figure.savefig(path, dpi=110)


def run(
    at_once: int, clients: int, seconds: float, keep: Callable[[dict[str, Any]], None]
) -> list[Row]:
    """One half: a server of its own and the load; `keep` is given the figures as they grow."""

    def note(rows: list[Row], memory: list[Any]) -> None:
        lasted = min(seconds, memory[-1][0])
        line = f"{len(rows)} jobs in {memory[-1][0]:.0f} s, {memory[-1][1]:.0f} MB"
        print(f"{at_once} at once: {line}", flush=True)
        if rows:
            keep(told(rows, memory, lasted) | {"so_far": True})

    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder, "data"), ["--at-once", str(at_once)])
        server.start()
        try:
            for number in range(3):
                server.follow(server.submit(wish(number)))
            rows, memory = load(server, clients, seconds, note)
        finally:
            server.kill(signal.SIGINT)
    figures = told(rows, memory, seconds)
    keep(figures)
    print("comparing every picture with the one drawn alone", flush=True)
    figures |= compared(rows)
    keep(figures)
    print(json.dumps({"at_once": at_once, "clients": clients} | figures), flush=True)
    return rows


def main() -> None:
    flags = parser(__doc__.splitlines()[0], quick=False)
    flags.add_argument("--clients", type=int, default=50)
    flags.add_argument("--seconds", type=float, default=30, help="in batches; 0 leaves it out")
    flags.add_argument("--seconds-alone", type=float, help="one at a time; as --seconds")
    flags.add_argument("--at-once", type=int, default=16)
    args = flags.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    alone = args.seconds if args.seconds_alone is None else args.seconds_alone
    figures: dict[int, dict[str, Any]] = {}
    rows: dict[int, list[Row]] = {}
    for at_once, seconds in ((1, alone), (args.at_once, args.seconds)):
        if seconds <= 0:
            continue

        def keep(found: dict[str, Any], at_once: int = at_once) -> None:
            figures[at_once] = found
            write(figures, args.out / "serve_load.json")

        rows[at_once] = run(at_once, args.clients, seconds, keep)
        plot(rows, args.out / "serve_load.png")


def write(figures: dict[int, dict[str, Any]], path: Path) -> None:
    """All figures so far, and the ratio of both where there are both."""
    found: dict[str, Any] = {"runs": figures}
    if len(figures) == 2:
        one, many = (figures[at_once]["jobs_a_second"] for at_once in sorted(figures))
        found["throughput_ratio"] = round(many / one, 3) if one else None
    write_json(path, found)


if __name__ == "__main__":
    main()
