"""A server killed, its disk full, its clients gone, its clock jumping: where is each accepted job?

    python benchmarks/serve_faults.py --kills 20

An accepted job must be there at the end and have ended once: done, with the picture that is drawn
alone, or failed by a rule that its client is told. Under load all the while; some clients read one
byte at a time, some are gone before the answer. Drawing is done by threads of the server, so a kill
takes both. `disk` mounts a small tmpfs, which takes root; `clock` preloads libfaketime. What cannot
be tried is said. Figures are written after each fault.
"""

import hashlib
import json
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import parser
from served import Server, differences, wish

from pixsigma.server.jobs import MOST_ATTEMPTS
from pixsigma.weights.files import write_json

FAKETIME = "*/faketime/libfaketimeMT.so.1"
DISTINCT = 24
PATIENCE = 300.0
"""Seconds for what is accepted to be over."""


@dataclass(frozen=True)
class Delivered:
    """A picture as it came the first time; drawn again, it would have taken another time."""

    hashed: str
    seconds: float


@dataclass
class Clients:
    """Some that send jobs, some that read slowly, some that go away."""

    server: Server
    accepted: dict[str, str] = field(default_factory=dict)
    """Key to id."""
    numbers: dict[str, int] = field(default_factory=dict)
    """Id to the number of its wish."""
    seen: dict[str, Delivered] = field(default_factory=dict)
    """By id, what was first delivered."""
    met: Counter[str] = field(default_factory=Counter)
    """Refusals by status, and how often slow and vanishing clients had their way."""
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, num: int, pause: float) -> list[threading.Thread]:
        """Begin."""
        works: list[Callable[[], None]] = [self.slow, self.vanishing]
        works += [lambda k=k: self.sending(k, pause) for k in range(num)]  # type: ignore[misc]
        threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in threads:
            thread.start()
        return threads

    def sending(self, k: int, pause: float) -> None:
        """One job after the other; where there is no answer the same key is sent again."""
        turn = 0
        while not self.stop.wait(pause):
            key, number = f"{k}-{turn}", (5 * k + turn) % DISTINCT
            try:
                id = self.server.submit(wish(number), key)
                self.accepted[key], self.numbers[id] = id, number
                if self.server.submit(wish(number), key) != id:
                    self.met["one key, two jobs"] += 1
                turn += 1
                self.look_at(random.choice([*self.numbers]))
            except OSError as error:
                self.met[str(error)[:3] if str(error)[:3].isdigit() else "no answer"] += 1

    def look_at(self, id: str) -> tuple[dict[str, Any], bytes]:
        """A job, and its picture where it is done: from now on that may not change."""
        told = self.server.look(id)
        if told["state"] != "done":
            return told, b""
        status, picture = self.server.ask("GET", told["results"][0])
        if status != 200:
            raise OSError(f"{status}: the picture of a job that is done")
        self.seen.setdefault(
            id, Delivered(hashlib.sha256(picture).hexdigest(), float(told["seconds"]))
        )
        return told, picture

    def slow(self) -> None:
        """Reads events one byte at a time."""
        while not self.stop.wait(0.2):
            self._open_events(self._sip)

    def _sip(self, line: socket.socket) -> None:
        for _ in range(20):
            if self.stop.wait(0.1) or not line.recv(1):
                return
        self.met["events read byte by byte"] += 1

    def vanishing(self) -> None:
        """Asks, and is gone before the answer: for events, and in the middle of a body."""
        while not self.stop.wait(0.5):
            self._open_events(self._vanish)
            body = b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900\r\n\r\n{"
            self._send(body, self._vanish)

    def _vanish(self, line: socket.socket) -> None:
        self.met["vanished"] += 1

    def _open_events(self, use: Callable[[socket.socket], Any]) -> None:
        if self.numbers:
            id = random.choice([*self.numbers])
            self._send(
                f"GET /v1/jobs/{id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode(), use
            )

    def _send(self, data: bytes, use: Callable[[socket.socket], Any]) -> None:
        try:
            with socket.create_connection(("127.0.0.1", self.server.port), timeout=5) as line:
                line.sendall(data)
                use(line)
        except OSError:
            pass

    def until_over(self, ids: Iterable[str], patience: float = PATIENCE) -> None:
        """Return when these jobs are over, or when there is no more patience."""
        end = time.monotonic() + patience
        for id in ids:
            while time.monotonic() < end:
                try:
                    if self.server.look(id)["state"] not in ("queued", "running"):
                        break
                except OSError:
                    break
                time.sleep(0.2)

    def account(self, hits: Counter[str]) -> dict[str, Any]:
        """What became of every accepted job; `hits` are the kills that met it while it was drawn.

        Only jobs that kills met `MOST_ATTEMPTS` times may have failed for that.
        """
        self.until_over(self.numbers)
        ends: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        wrong: Counter[str] = Counter()
        pictures = []
        for id, number in self.numbers.items():
            try:
                told, picture = self.look_at(id)
            except OSError:
                wrong["lost"] += 1
                continue
            state = told["state"]
            ends[state] += 1
            if state == "done":
                pictures.append((number, picture))
                now = Delivered(hashlib.sha256(picture).hexdigest(), float(told["seconds"]))
                wrong["changed_after_delivery"] += now != self.seen[id]
            else:
                reasons[str(told["reason"] or state)] += 1
            by_rule = state == "failed" and told["kind"] == "Stopped"
            wrong["not_by_the_rule_of_two_kills"] += by_rule != (hits[id] >= MOST_ATTEMPTS)
        wrong["two_jobs_for_one_key"] = self.met.pop("one key, two jobs", 0)
        wrong["pictures_unlike_those_drawn_alone"] = sum(each > 1 for each in differences(pictures))
        return {
            "accepted": len(self.numbers),
            "ends": dict(ends),
            "reasons_of_those_not_done": dict(reasons),
            "drawn_again_after_one_kill": sum(num == 1 for num in hits.values()),
            "killed_twice": sum(num > 1 for num in hits.values()),
            "pictures_compared": len(pictures),
            "wrong": {
                name: wrong[name]
                for name in (
                    *("lost", "two_jobs_for_one_key", "changed_after_delivery"),
                    *("not_by_the_rule_of_two_kills", "pictures_unlike_those_drawn_alone"),
                )
            },
            "met": dict(self.met),
        }


def kills(num: int, most_between: float, hasty: int) -> dict[str, Any]:
    """SIGKILL at random moments under load, each followed by a start in the same folder.

    Before the next one whatever was begun again has its end, except that every `hasty`-th kill
    does not wait for that: then jobs are met twice, and must fail with the reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder, "data"))
        server.start()
        clients = Clients(server)
        threads = clients.run(4, pause=0.7)
        hits: Counter[str] = Counter()
        met: list[str] = []
        for k in range(1, num + 1):
            if k % hasty:
                clients.until_over(met, patience=60)
            time.sleep(random.uniform(0.3, most_between))
            server.kill(signal.SIGKILL)
            met = running(server.folder)
            hits.update(met)
            server.start()
            say(f"kill {k} of {num} met {len(met)} drawings, {len(clients.numbers)} accepted")
        return {"kills": num} | ended(clients, threads, hits)


def running(folder: Path) -> list[str]:
    """The jobs that a dead server was drawing, read from a copy: its files stay as they are."""
    with tempfile.TemporaryDirectory() as copy:
        for path in folder.glob("jobs.sqlite*"):
            shutil.copy(path, copy)
        base = sqlite3.connect(Path(copy, "jobs.sqlite"))
        found = base.execute("SELECT id FROM jobs WHERE state = 'running'").fetchall()
        base.close()
    return [id for (id,) in found]


def ended(
    clients: Clients, threads: list[threading.Thread], hits: Counter[str] | None = None
) -> dict[str, Any]:
    """Stop the load, account, restart once more: nothing is drawn or delivered again."""
    clients.stop.set()
    for thread in threads:
        thread.join()
    say(f"{len(clients.numbers)} accepted; waiting for them and comparing")
    figures = clients.account(hits or Counter())
    clients.server.kill(signal.SIGINT)
    clients.server.start()
    after = clients.account(hits or Counter())
    clients.server.kill(signal.SIGINT)
    same = all(after[name] == figures[name] for name in ("ends", "wrong", "pictures_compared"))
    return figures | {"same_after_another_start": same}


def disk(seconds: float) -> dict[str, Any]:
    """The disk is full for a third of the time."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "small")
        data.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(data)], capture_output=True
        )
        if mounted.returncode:
            return {"not_tried": mounted.stderr.decode().strip()}
        try:
            return _full(Server(data, log=Path(folder, "server.log")), data / "ballast", seconds)
        finally:
            subprocess.run(["umount", "-l", str(data)], check=True)


def _full(server: Server, ballast: Path, seconds: float) -> dict[str, Any]:
    server.start()
    clients = Clients(server)
    threads = clients.run(4, pause=0.7)
    time.sleep(seconds / 3)
    before = len(clients.numbers)
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            say(f"the disk is full; {before} accepted so far")
    alive = []
    for _ in range(10):
        time.sleep(seconds / 30)
        alive.append(server.answers())
    during = len(clients.numbers)
    ballast.unlink()
    say("there is room again")
    time.sleep(seconds / 3)
    return {
        "answered_while_full": f"{sum(alive)} of 10",
        "accepted_before_during_after": [before, during - before, len(clients.numbers) - during],
    } | ended(clients, threads)


def clock(seconds: float) -> dict[str, Any]:
    """The wall clock jumps by years, back and forth, twice a second."""
    library = next(Path("/usr/lib").glob(FAKETIME), None)
    if library is None:
        return {"not_tried": "libfaketime is not installed (apt-get install faketime)"}
    with tempfile.TemporaryDirectory() as folder:
        dial = Path(folder, "dial")
        dial.write_text("+0\n")
        environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(dial),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        server = Server(Path(folder, "data"), environment=environment)
        server.start()
        clients = Clients(server)
        threads = clients.run(4, pause=0.7)
        jumps = 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.5)
            new = dial.with_suffix(".new")
            new.write_text(f"{random.choice('+-')}{random.randrange(1, 20)}y\n")
            new.replace(dial)
            jumps += 1
        said = [server.look(id)["created"] for id in [*clients.numbers]]
        years = round((max(said) - min(said)) / (365 * 86400), 1) if said else 0.0
        return {"jumps": jumps, "years_between_jobs": years} | ended(clients, threads)


def say(text: str) -> None:
    """Progress, as a line."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> None:
    flags = parser(__doc__.splitlines()[0], quick=False)
    flags.add_argument("--kills", type=int, default=3)
    flags.add_argument("--between", type=float, default=4.0, help="seconds at most before a kill")
    flags.add_argument("--hasty", type=int, default=5, help="each so manieth kill comes at once")
    flags.add_argument("--seconds", type=float, default=30.0, help="of each other fault")
    flags.add_argument("--only", choices=["kills", "disk", "clock"])
    args = flags.parse_args()
    tries: dict[str, Callable[[], dict[str, Any]]] = {
        "kills": lambda: kills(args.kills, args.between, args.hasty),
        "disk": lambda: disk(args.seconds),
        "clock": lambda: clock(args.seconds),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    figures = {}
    for name, attempt in tries.items():
        if args.only in (None, name):
            say(name)
            figures[name] = attempt()
            print(json.dumps({name: figures[name]}), flush=True)
            write_json(args.out / "serve_faults.json", figures)


if __name__ == "__main__":
    main()
