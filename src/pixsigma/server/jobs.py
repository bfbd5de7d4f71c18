"""Accepted work on disk: SQLite with a write-ahead log, so that no accepted job is lost."""

import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pixsigma.errors import InputError, OutputError

State: TypeAlias = Literal["queued", "running", "done", "failed", "cancelled"]

OVER = ("done", "failed", "cancelled")
"""States that a job never leaves."""

MOST_ATTEMPTS = 2
"""A job is begun this often: once, and once more where the server was killed meanwhile."""

_TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  client TEXT NOT NULL,
  model TEXT NOT NULL,
  state TEXT NOT NULL,
  priority INTEGER NOT NULL,
  request TEXT NOT NULL,
  format TEXT NOT NULL,
  deadline REAL,
  idempotency_key TEXT,
  cancel INTEGER NOT NULL DEFAULT 0,
  attempts INTEGER NOT NULL DEFAULT 0,
  created REAL NOT NULL,
  seconds REAL,
  kind TEXT,
  reason TEXT,
  warnings TEXT NOT NULL DEFAULT '[]',
  files TEXT NOT NULL DEFAULT '[]',
  seeds TEXT NOT NULL DEFAULT '[]',
  UNIQUE (client, idempotency_key)
);
CREATE INDEX IF NOT EXISTS waiting ON jobs (state, priority DESC, number);
"""

_FIELDS = (
    "number, id, client, model, state, priority, request, format, deadline, cancel, attempts,"
    " created, seconds, kind, reason, warnings, files, seeds"
)
_BACK = "state = CASE cancel WHEN 1 THEN 'cancelled' ELSE 'queued' END"
_LIGHT = _FIELDS.replace("request", "json_remove(request, '$.image', '$.mask') AS request")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One accepted request and what became of it."""

    number: int
    """In the order of acceptance; no clock is asked for the order."""
    id: str
    """128 random bits in hex: who knows it may fetch the pictures."""
    client: str
    model: str
    state: State
    priority: int
    request: dict[str, Any]
    """The fields of a GenerationRequest, its seed settled."""
    format: str
    deadline: float | None
    """Seconds from acceptance, or from a restart, within which it must be done."""
    cancel: bool
    attempts: int
    created: float
    """Wall clock, in seconds since 1970; only told, never reckoned with."""
    seconds: float | None
    """How long the drawing took."""
    kind: str | None
    """The class of error that it failed with."""
    reason: str | None
    warnings: list[str]
    files: list[str]
    """Names of the pictures in the job's folder."""
    seeds: list[int]

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in OVER


class JobStore:
    """The jobs of one data directory; safe to call from several threads.

    What is written outlives the process at once. `add` and `finish` return when it would outlive a
    power cut too; nobody else waits for that. Raises OutputError where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._syncing = threading.Lock()
        self.version = 0
        """Changes so far: while it is the same, everything is."""
        self._synced = 0
        """How many of them have reached the disk itself."""
        with _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._alone = _locked(path.with_suffix(".lock"))
            self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._base.row_factory = sqlite3.Row
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")  # `_sync` does the rest
            self._base.execute("PRAGMA secure_delete=ON")
            self._base.executescript(_TABLE)

    def close(self) -> None:
        """Close the file; the store cannot be used afterwards."""
        with self._lock:
            self._base.close()
            os.close(self._alone)

    # Coming in

    def add(
        self,
        request: dict[str, Any],
        *,
        client: str,
        model: str,
        format: str = "png",
        priority: int = 0,
        deadline: float | None = None,
        idempotency_key: str | None = None,
        seed_drawn: bool = False,
    ) -> tuple[Job, bool]:
        """Accept a job; returns it and whether it is new.

        With a key that this client used before, the earlier job is returned where it asked for the
        same (the seed aside where it was drawn by lot for this call), else InputError is raised.
        """
        text = json.dumps(request, sort_keys=True)
        columns = "id, client, model, state, priority, request, format, deadline, created"
        values = (secrets.token_hex(16), client, model, "queued", priority, text, format, deadline)
        with self._change():
            old = None if idempotency_key is None else self._with_key(client, idempotency_key)
            if old is not None:
                wanted = request | {"seed": old.request.get("seed")} if seed_drawn else request
                refuse_other(old, wanted, model, format)
            else:
                self._base.execute(
                    f"INSERT INTO jobs ({columns}, idempotency_key) VALUES (?,?,?,?,?,?,?,?,?,?)",
                    (*values, time.time(), idempotency_key),
                )
            found = old or self._one("id = ?", values[0])
        self._sync()
        return found, old is None

    def knows(self, client: str, key: str) -> bool:
        """Whether a client used this idempotency key before."""
        with self._reading():
            return self._with_key(client, key) is not None

    def _with_key(self, client: str, key: str) -> Job | None:
        return next(iter(self._select("client = ? AND idempotency_key = ?", client, key)), None)

    # Going on

    def claim(self) -> Job | None:
        """Take the next waiting job, of the highest priority first, and count the attempt."""
        with self._change():
            found = self._select("state = 'queued' ORDER BY priority DESC, number LIMIT 1")
            if not found:
                return None
            self._base.execute(
                "UPDATE jobs SET state = 'running', attempts = attempts + 1 WHERE id = ?",
                (found[0].id,),
            )
            return self._one("id = ?", found[0].id)

    def finish(
        self,
        id: str,
        state: State,
        *,
        of: State = "running",
        files: Sequence[str] = (),
        seeds: Sequence[int] = (),
        warnings: Sequence[str] = (),
        seconds: float | None = None,
        kind: str | None = None,
        reason: str | None = None,
    ) -> bool:
        """Write down how a job ended that was in the state `of`; False where it was not."""
        with self._change():
            lists = [json.dumps(list(each)) for each in (files, seeds, warnings)]
            done = self._base.execute(
                "UPDATE jobs SET state=?, files=?, seeds=?, warnings=?, seconds=?, kind=?, reason=?"
                " WHERE id = ? AND state = ?",
                (state, *lists, seconds, kind, reason, id, of),
            )
        self._sync()
        return done.rowcount == 1

    def cancel(self, id: str) -> Job:
        """Cancel a job: at once where it waits, between two steps where it runs.

        Raises KeyError for an unknown job. What is over stays as it is.
        """
        with self._change():
            self._base.execute(
                "UPDATE jobs SET state = 'cancelled' WHERE id = ? AND state = 'queued'", (id,)
            )
            self._base.execute("UPDATE jobs SET cancel = 1 WHERE id = ? AND state='running'", (id,))
            return self._one("id = ?", id)

    def hand_back(self, id: str) -> None:
        """Put a running job back into the queue, as if it had not been begun; or let it end."""
        with self._change():
            self._base.execute(
                f"UPDATE jobs SET {_BACK}, attempts = attempts - 1"
                " WHERE id = ? AND state = 'running'",
                (id,),
            )

    def recover(self) -> None:
        """After a restart: what ran is queued again, but what ran `MOST_ATTEMPTS` times fails."""
        with self._change():
            reason = (
                f"the server stopped {MOST_ATTEMPTS} times while it drew this; a smaller size "
                "or fewer pictures may do"
            )
            self._base.execute(
                "UPDATE jobs SET state = 'failed', kind = 'Stopped', reason = ?"
                " WHERE state = 'running' AND cancel = 0 AND attempts >= ?",
                (reason, MOST_ATTEMPTS),
            )
            self._base.execute(f"UPDATE jobs SET {_BACK} WHERE state = 'running'")

    def empty(self, id: str) -> None:
        """Keep that there was a job, and nothing of what it asked for."""
        with self._change():
            self._base.execute("UPDATE jobs SET request = '{}', warnings = '[]' WHERE id=?", (id,))

    def forget(self, id: str) -> None:
        """Leave nothing of a job."""
        with self._change():
            self._base.execute("DELETE FROM jobs WHERE id = ?", (id,))

    # Looking

    def get(self, id: str) -> Job:
        """The job; raises KeyError where there is none."""
        with self._reading():
            return self._one("id = ?", id)

    def place(self, id: str) -> int:
        """How many waiting jobs are drawn before this one; 0 for one that does not wait."""
        with self._reading():
            (num,) = self._base.execute(
                "SELECT count(*) FROM jobs AS other, jobs AS mine WHERE mine.id = ? AND mine.state"
                " = 'queued' AND other.state = 'queued' AND (other.priority > mine.priority"
                " OR (other.priority = mine.priority AND other.number < mine.number))",
                (id,),
            ).fetchone()
            return int(num)

    def count(self, *states: State, client: str | None = None) -> int:
        """How many jobs are in these states, of one client or of all."""
        marks = ", ".join("?" for _ in states)
        mine, who = ("", ()) if client is None else (" AND client = ?", (client,))
        with self._reading():
            (num,) = self._base.execute(
                f"SELECT count(*) FROM jobs WHERE state IN ({marks}){mine}", (*states, *who)
            ).fetchone()
            return int(num)

    def latest(self, client: str, num: int, states: Sequence[State] = ("done",)) -> list[Job]:
        """The last `num` jobs of a client, newest first, without the pictures it sent."""
        marks = ", ".join("?" for _ in states)
        with self._reading():
            return self._select(
                f"client = ? AND state IN ({marks}) ORDER BY number DESC LIMIT ?",
                *(client, *states, num),
                fields=_LIGHT,
            )

    def unfinished(self) -> list[Job]:
        """The jobs that wait or run."""
        with self._reading():
            return self._select("state IN ('queued', 'running')")

    def beyond(self, num: int) -> list[Job]:
        """The jobs that are over and older than the newest `num` of them."""
        with self._reading():
            return self._select(
                "state IN ('done', 'failed', 'cancelled') ORDER BY number DESC LIMIT -1 OFFSET ?",
                num,
            )

    # Mechanics

    def _one(self, where: str, *values: Any) -> Job:
        found = self._select(where, *values)
        if not found:
            raise KeyError(values[-1])
        return found[0]

    def _select(self, where: str, *values: Any, fields: str = _FIELDS) -> list[Job]:
        rows = self._base.execute(f"SELECT {fields} FROM jobs WHERE {where}", values)
        return [_job(row) for row in rows]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock, _told(self.path):
            yield

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self._reading():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            self._commit()
            self.version += 1

    def _sync(self) -> None:
        """Return when all changes so far are on the disk; those who wait at once wait once."""
        wanted = self.version
        with self._syncing, _told(self.path):
            if self._synced >= wanted:
                return
            reached = self.version
            log = os.open(f"{self.path}-wal", os.O_RDWR)
            try:
                os.fsync(log)
            finally:
                os.close(log)
            self._synced = reached

    def _commit(self) -> None:
        try:
            self._base.execute("COMMIT")
        except sqlite3.Error:
            # a full disk may leave the transaction open, and the next one could not begin
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            raise


def refuse_other(old: Job, request: Mapping[str, Any], model: str, format: str) -> None:
    """Raise InputError where a key comes again with another request, as far as that is known."""
    now = json.loads(json.dumps(request)), model, format
    if old.request and now != (old.request, old.model, old.format):
        raise InputError(
            "an idempotency key belongs to one request, and this one was used for another; "
            "give a new key"
        )


def _job(row: sqlite3.Row) -> Job:
    fields = {key: row[key] for key in row.keys()}  # noqa: SIM118 (a Row iterates over values)
    for key in ("request", "warnings", "files", "seeds"):
        fields[key] = json.loads(fields[key])
    return Job(**fields | {"cancel": bool(fields["cancel"])})


def _locked(path: Path) -> int:
    """A descriptor that keeps other servers out for as long as this process has it open."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows
        return file
    except OSError as error:
        os.close(file)
        raise InputError(
            f"another server draws the jobs in {path.parent}; stop it, or give another --data"
        ) from error
    return file


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise OutputError(
            f"the jobs in {path} cannot be kept: {error}; is there room, and the right?"
        ) from error
