"""Many clients on one server: throughput against one at a time, waiting times, right pictures.

    python benchmarks/serve_load.py --clients 50 --seconds 300

Server and clients are processes of their own. Every client sends its next job when the last is
over; sizes, steps, guidance and prompts are mixed. Every picture that comes back is compared with
the one that is drawn alone.
"""

import json
import signal
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import parser
from served import STEPS, Server, differences, wish

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
        done = told["state"] == "done"
        return str(told["state"]), server.ask("GET", told["results"][0])[1] if done else b""
    except (OSError, ValueError, KeyError) as error:
        return f"no answer: {error}", b""


def load(server: Server, clients: int, seconds: float) -> tuple[list[Row], list[Any]]:
    """Rows of all jobs, those that ended late too, and (seconds, MB) of the server's memory."""
    rows: list[Row] = []
    start = time.monotonic()

    def client(k: int) -> None:
        turn = 0
        while (began := time.monotonic() - start) < seconds:
            number = (k * 7 + turn * 13) % DISTINCT
            turn += 1
            state, picture = drawn(server, number)
            rows.append(Row(k, number, began, time.monotonic() - start, state, picture))

    threads = [threading.Thread(target=client, args=(k,)) for k in range(clients)]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append((time.monotonic() - start, server.memory()))
        time.sleep(1)
    return rows, memory


def told(rows: list[Row], memory: list[Any], seconds: float) -> dict[str, Any]:
    """The figures of one load."""
    counted = [row for row in rows if row.ended <= seconds]
    waits = [row.seconds for row in rows]
    of = {n: [r.seconds for r in rows if wish(r.number)["num_inference_steps"] == n] for n in STEPS}
    shares = np.bincount([row.client for row in rows]).astype(float)
    late = np.array([each for each in memory if seconds / 3 < each[0] < seconds])
    slope = np.polyfit(late[:, 0], late[:, 1], 1)[0] * 60 if len(late) > 5 else float("nan")
    differing = list(differences((row.number, row.picture) for row in rows if row.picture))
    return {
        "jobs": len(rows),
        "not_done": sorted({row.state for row in rows if row.state != "done"}),
        "jobs_a_second": round(len(counted) / seconds, 3),
        **{f"p{q}_seconds": round(float(np.percentile(waits, q)), 2) for q in (50, 95, 99)},
        "median_seconds_by_steps": {n: round(float(np.median(each)), 2) for n, each in of.items()},
        "jobs_of_a_client": [int(shares.min()), int(shares.max())],
        "jain_fairness": round(float(shares.sum() ** 2 / (len(shares) * (shares**2).sum())), 4),
        "memory_mb": round(memory[-1][1]),
        "memory_mb_a_minute": round(float(slope), 2),
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


def main() -> None:
    flags = parser(__doc__.splitlines()[0])
    flags.add_argument("--clients", type=int, default=50)
    flags.add_argument("--seconds", type=float, default=30)
    flags.add_argument("--before", type=float, help="seconds of one at a time; as --seconds")
    flags.add_argument("--at-once", type=int, default=16)
    args = flags.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    seconds = {1: args.before or args.seconds, args.at_once: args.seconds}
    runs, figures = {}, {}
    for at_once, lasts in seconds.items():
        with tempfile.TemporaryDirectory() as folder:
            server = Server(Path(folder, "data"), ["--at-once", str(at_once)])
            server.start()
            for number in range(3):
                server.follow(server.submit(wish(number)))
            rows, memory = load(server, args.clients, lasts)
            server.kill(signal.SIGINT)
        runs[at_once] = rows
        figures[at_once] = told(rows, memory, lasts) | {"parts": spread(rows, lasts)}
        print(json.dumps({"at_once": at_once, "clients": args.clients} | figures[at_once]))
    ratio = figures[args.at_once]["jobs_a_second"] / figures[1]["jobs_a_second"]
    print(json.dumps({"throughput_ratio": round(ratio, 3)}))
    text = json.dumps({"ratio": ratio, "runs": figures}, indent=2)
    (args.out / "serve_load.json").write_text(text)
    plot(runs, args.out / "serve_load.png")


if __name__ == "__main__":
    main()
