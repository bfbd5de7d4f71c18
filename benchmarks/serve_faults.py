"""A server killed, its disk full, its clients gone, its clock jumping: where is each accepted job?

    python benchmarks/serve_faults.py --kills 20

An accepted job must be there at the end and have ended once: done, with the picture that is drawn
alone, or failed after two kills while it was drawn. `disk` mounts a small tmpfs, which takes root;
`clock` preloads libfaketime. What cannot be tried is said.
"""

import hashlib
import json
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import parser
from served import Server, differences, wish

FAKETIME = ("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",)
DISTINCT = 24


@dataclass
class Clients:
    """Some that send jobs, some that read slowly, some that go away."""

    server: Server
    accepted: dict[str, str] = field(default_factory=dict)
    """Key to id."""
    refused: Counter[str] = field(default_factory=Counter)
    numbers: dict[str, int] = field(default_factory=dict)
    """Id to the number of its wish."""
    seen: dict[str, str] = field(default_factory=dict)
    """Id to the hash of the picture that was first delivered."""
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, num: int, pause: float) -> list[threading.Thread]:
        """Begin."""
        works: list[Callable[[], None]] = [self.slow, self.vanishing]
        works += [lambda k=k: self.sending(k, pause) for k in range(num)]  # type: ignore[misc]
        threads = [threading.Thread(target=work) for work in works]
        for thread in threads:
            thread.start()
        return threads

    def sending(self, k: int, pause: float) -> None:
        """One job after the other; where there is no answer the same key is sent again."""
        turn = 0
        while not self.stop.is_set():
            key, number = f"{k}-{turn}", (5 * k + turn) % DISTINCT
            try:
                id = self.server.submit(wish(number), key)
                again = self.server.submit(wish(number), key)
                if id != again:
                    self.refused["one key, two jobs"] += 1
                self.accepted[key] = id
                self.numbers[id] = number
                turn += 1
                self.look_at(random.choice([*self.numbers]))
            except OSError as error:
                self.refused[str(error)[:3] if str(error)[:3].isdigit() else "no answer"] += 1
            self.stop.wait(pause)

    def look_at(self, id: str) -> None:
        """Fetch a picture that is done: from now on it may not change."""
        told = self.server.look(id)
        if told["state"] == "done":
            _, picture = self.server.ask("GET", told["results"][0])
            self.seen.setdefault(id, hashlib.sha256(picture).hexdigest())

    def slow(self) -> None:
        """Reads events one byte at a time."""
        while not self.stop.wait(0.2):
            self._open_events(lambda line: [line.recv(1) for _ in range(20) if not self._rest()])

    def vanishing(self) -> None:
        """Asks, and is gone before the answer: for events, and in the middle of a body."""
        while not self.stop.wait(0.5):
            self._open_events(lambda line: None)
            body = b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900\r\n\r\n{"
            self._send(body, lambda line: None)

    def _rest(self) -> bool:
        return self.stop.wait(0.1)

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

    def account(self) -> dict[str, Any]:
        """What became of every accepted job, when all are over."""
        ends: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        pictures, changed, lost = [], 0, 0
        for id, number in self.numbers.items():
            try:
                while (told := self.server.look(id))["state"] in ("queued", "running"):
                    time.sleep(0.2)
            except OSError:
                lost += 1
                continue
            ends[told["state"]] += 1
            if told["state"] == "done":
                picture = self.server.ask("GET", told["results"][0])[1]
                pictures.append((number, picture))
                changed += (
                    self.seen.get(id, hashed := hashlib.sha256(picture).hexdigest()) != hashed
                )
            else:
                reasons[str(told["reason"])] += 1
        return {
            "accepted": len(self.accepted),
            "lost": lost,
            "ends": dict(ends),
            "reasons": dict(reasons),
            "not_accepted": dict(self.refused),
            "two_jobs_for_one_key": len(self.accepted) - len(set(self.accepted.values())),
            "changed_after_delivery": changed,
            "pictures_compared": len(pictures),
            "wrong_pictures": sum(each > 1 for each in differences(pictures)),
        }


def kills(num: int, most_between: float) -> dict[str, Any]:
    """SIGKILL at random moments under load, each followed by a start in the same folder."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder, "data"))
        server.start()
        clients = Clients(server)
        threads = clients.run(4, pause=0.7)
        for _ in range(num):
            time.sleep(random.uniform(0.3, most_between))
            server.kill(signal.SIGKILL)
            server.start()
        return {"kills": num} | ended(clients, threads)


def ended(clients: Clients, threads: list[threading.Thread]) -> dict[str, Any]:
    """Stop the load, account, restart once more: nothing is drawn or delivered again."""
    clients.stop.set()
    for thread in threads:
        thread.join()
    figures = clients.account()
    for id in clients.numbers:
        clients.look_at(id)
    clients.server.kill(signal.SIGINT)
    clients.server.start()
    again = Clients(clients.server, clients.accepted, numbers=clients.numbers, seen=clients.seen)
    after = again.account()
    clients.server.kill(signal.SIGINT)
    same = all(after[name] == figures[name] for name in ("ends", "pictures_compared"))
    figures["changed_after_delivery"] += after["changed_after_delivery"]
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
            return _full(Server(data / "data"), data / "ballast", seconds)
        finally:
            subprocess.run(["umount", "-l", str(data)], check=True)


def _full(server: Server, ballast: Path, seconds: float) -> dict[str, Any]:
    server.start()
    clients = Clients(server)
    threads = clients.run(4, pause=0.7)
    time.sleep(seconds / 3)
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(b"\0" * 4096)
                file.flush()
        except OSError:
            pass
    alive = []
    for _ in range(10):
        time.sleep(seconds / 30)
        alive.append(server.ask("GET", "/healthz")[0] == 200)
    ballast.unlink()
    time.sleep(seconds / 3)
    return {"answered_while_full": f"{sum(alive)} of 10"} | ended(clients, threads)


def clock(seconds: float) -> dict[str, Any]:
    """The wall clock jumps by years, back and forth, twice a second."""
    library = next((path for path in FAKETIME if Path(path).exists()), None)
    if library is None:
        return {"not_tried": "libfaketime is not installed"}
    with tempfile.TemporaryDirectory() as folder:
        dial = Path(folder, "dial")
        dial.write_text("+0\n")
        environment = {
            "LD_PRELOAD": library,
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
            shutil.move(new, dial)
            jumps += 1
        return {"jumps": jumps} | ended(clients, threads)


def main() -> None:
    flags = parser(__doc__.splitlines()[0])
    flags.add_argument("--kills", type=int, default=3)
    flags.add_argument("--between", type=float, default=4.0, help="seconds at most")
    flags.add_argument("--seconds", type=float, default=30.0, help="of each other fault")
    flags.add_argument("--only", choices=["kills", "disk", "clock"])
    args = flags.parse_args()
    tries: dict[str, Callable[[], dict[str, Any]]] = {
        "kills": lambda: kills(args.kills, args.between),
        "disk": lambda: disk(args.seconds),
        "clock": lambda: clock(args.seconds),
    }
    figures = {}
    for name, attempt in tries.items():
        if args.only in (None, name):
            figures[name] = attempt()
            print(json.dumps({name: figures[name]}), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "serve_faults.json").write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
