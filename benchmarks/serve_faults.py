"""Kill a server at random while jobs come in, then account for every accepted job.

    python benchmarks/serve_faults.py --kills 20

An accepted job must be there after the last restart, and have ended once: done with its pictures,
or failed after two kills while it was drawn.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

PORT = 7977
BASE = f"http://127.0.0.1:{PORT}"


def ask(path: str, body: Any = None, key: str | None = None) -> dict[str, Any]:
    """JSON in, JSON out."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(BASE + path, data, {"Content-Type": "application/json"})
    if key:
        request.add_header("Idempotency-Key", key)
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def start(folder: str) -> subprocess.Popen[bytes]:
    """A server that is ready."""
    flags = ["--no-studio", "--port", str(PORT), "--data", folder, "--limit", "rate=1000000"]
    flags += ["--limit", "max_queue=100000", "--limit", "max_per_client=100000"]
    process = subprocess.Popen([sys.executable, "-m", "pixsigma", "serve", *flags])
    while process.poll() is None:
        try:
            ask("/readyz")
            return process
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise SystemExit("the server does not start")


def main() -> None:
    """Kills, then the accounts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--between", type=float, default=4.0, help="seconds at most")
    args = parser.parse_args()
    accepted: dict[str, str] = {}
    stop = threading.Event()

    def client(k: int) -> None:
        number = 0
        while not stop.is_set():
            key = f"{k}-{number}"
            body = {"request": {"prompt": "a cat", "seed": number, "num_inference_steps": 8}}
            try:
                accepted[key] = ask("/v1/jobs", body, key)["id"]
                number += 1
                time.sleep(1)
            except (urllib.error.URLError, OSError, ValueError):
                time.sleep(0.2)  # the same key again: it may have been accepted

    with tempfile.TemporaryDirectory() as folder:
        process = start(folder)
        threads = [threading.Thread(target=client, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(args.kills):
            time.sleep(random.uniform(0.3, args.between))
            process.send_signal(signal.SIGKILL)
            process.wait()
            process = start(folder)
        stop.set()
        for thread in threads:
            thread.join()
        ends: Counter[str] = Counter()
        missing = 0
        for id in accepted.values():
            while (told := ask(f"/v1/jobs/{id}"))["state"] in ("queued", "running"):
                time.sleep(0.2)
            ends[told["state"]] += 1
            files = [Path(folder, "results", id, Path(r).name) for r in told["results"]]
            missing += told["state"] == "done" and not all(file.exists() for file in files)
        process.send_signal(signal.SIGINT)
        process.wait()
    ids = set(accepted.values())
    accounts = {"kills": args.kills, "accepted": len(accepted), "twice": len(accepted) - len(ids)}
    print(json.dumps(accounts | {"ends": dict(ends), "done_without_picture": missing}))


if __name__ == "__main__":
    main()
