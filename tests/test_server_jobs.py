"""Accepted jobs: kept through kills, begun again once, never delivered twice."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pixsigma.errors import InputError, OutputError
from pixsigma.server.jobs import JobStore

REQUEST = {"prompt": "a cat", "seed": 1}


def store(folder: Path) -> JobStore:
    return JobStore(folder / "jobs.sqlite")


def test_jobs_are_claimed_in_order_of_priority_then_of_acceptance(tmp_path: Path) -> None:
    jobs = store(tmp_path)
    ids = [jobs.add(REQUEST, client="a", model="m", priority=p)[0].id for p in (-1, 0, 0)]
    assert [jobs.place(id) for id in ids] == [2, 0, 1]
    claimed = [jobs.claim() for _ in range(4)]
    assert [job and job.id for job in claimed] == [ids[1], ids[2], ids[0], None]
    assert jobs.count("running") == 3 and jobs.count("queued") == 0


def test_what_a_killed_process_accepted_is_there_afterwards(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal\nfrom pathlib import Path\n"
        "from pixsigma.server.jobs import JobStore\n"
        "jobs = JobStore(Path(sys.argv[1]))\n"
        "for k in range(5): print(jobs.add({'prompt': str(k)}, client='a', model='m')[0].id)\n"
        "jobs.claim(); sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "jobs.sqlite"
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL
    jobs = JobStore(path)
    assert jobs.count("running") == 1
    jobs.recover()
    claimed = [jobs.claim() for _ in range(5)]
    assert [job and job.id for job in claimed] == ended.stdout.split()
    assert claimed[0] and claimed[0].attempts == 2 and claimed[1] and claimed[1].attempts == 1


def test_a_job_is_begun_again_once_and_then_fails_with_a_reason(tmp_path: Path) -> None:
    jobs = store(tmp_path)
    id = jobs.add(REQUEST, client="a", model="m")[0].id
    for _ in range(2):
        assert jobs.claim() is not None
        jobs.recover()
    found = jobs.get(id)
    assert found.state == "failed" and "stopped 2 times" in (found.reason or "")
    jobs.recover()
    assert jobs.claim() is None


def test_a_job_ends_once(tmp_path: Path) -> None:
    jobs = store(tmp_path)
    id = jobs.add(REQUEST, client="a", model="m")[0].id
    assert not jobs.finish(id, "done", files=["0.png"])  # it was never begun
    jobs.claim()
    assert jobs.finish(id, "done", files=["0.png"], seeds=[1])
    assert not jobs.finish(id, "failed", reason="again")
    assert jobs.get(id).files == ["0.png"] and jobs.get(id).reason is None
    assert jobs.cancel(id).state == "done"


def test_cancelling_is_at_once_while_waiting_and_survives_a_kill_while_running(
    tmp_path: Path,
) -> None:
    jobs = store(tmp_path)
    first, second = (jobs.add(REQUEST, client="a", model="m")[0].id for _ in range(2))
    jobs.claim()
    assert jobs.cancel(second).state == "cancelled"
    assert jobs.cancel(first).cancel and jobs.get(first).state == "running"
    jobs.recover()
    assert jobs.get(first).state == "cancelled"
    with pytest.raises(KeyError):
        jobs.cancel("0" * 32)


def test_a_job_that_is_handed_back_was_not_attempted(tmp_path: Path) -> None:
    jobs = store(tmp_path)
    id = jobs.add(REQUEST, client="a", model="m")[0].id
    jobs.claim()
    jobs.hand_back(id)
    assert (jobs.get(id).state, jobs.get(id).attempts) == ("queued", 0)


def test_an_idempotency_key_brings_the_same_job(tmp_path: Path) -> None:
    jobs = store(tmp_path)
    first, new = jobs.add(REQUEST, client="a", model="m", idempotency_key="k")
    seeded = REQUEST | {"seed": 7}
    again, newer = jobs.add(seeded, client="a", model="m", idempotency_key="k", seed_drawn=True)
    assert new and not newer and again.id == first.id
    other, _ = jobs.add(REQUEST, client="b", model="m", idempotency_key="k")
    assert other.id != first.id
    for request, format in (
        (REQUEST | {"prompt": "a dog"}, "png"),
        (seeded, "png"),
        (REQUEST, "webp"),
    ):
        with pytest.raises(InputError, match="used for another"):
            jobs.add(request, client="a", model="m", format=format, idempotency_key="k")


def test_what_is_emptied_leaves_no_trace_of_its_prompt_on_disk(tmp_path: Path) -> None:
    jobs = store(tmp_path)
    id = jobs.add({"prompt": "xyzzy-secret"}, client="a", model="m")[0].id
    jobs.empty(id)
    assert jobs.get(id).request == {}
    jobs.close()
    assert b"xyzzy-secret" not in (tmp_path / "jobs.sqlite").read_bytes()
    assert not (tmp_path / "jobs.sqlite-wal").exists()


def test_a_disk_that_takes_no_more_is_told_and_the_store_goes_on(tmp_path: Path) -> None:
    jobs = store(tmp_path)
    (pages,) = jobs._base.execute("PRAGMA page_count").fetchone()
    jobs._base.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OutputError, match="is there room"):
        for _ in range(50):
            jobs.add({"prompt": "a" * 2000}, client="a", model="m")
    before = jobs.count("queued")
    jobs._base.execute("PRAGMA max_page_count = 100000")
    jobs.add(REQUEST, client="a", model="m")
    assert jobs.count("queued") == before + 1


def test_the_newest_jobs_that_are_over_are_kept(tmp_path: Path) -> None:
    jobs = store(tmp_path)
    ids = [jobs.add(REQUEST, client="a", model="m")[0].id for _ in range(4)]
    for _ in range(3):
        job = jobs.claim()
        assert job and jobs.finish(job.id, "done")
    assert [job.id for job in jobs.beyond(1)] == [ids[1], ids[0]]
    assert [job.id for job in jobs.latest("a", 2)] == [ids[2], ids[1]]


def test_a_file_that_is_no_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(os.urandom(5000))
    with pytest.raises(OutputError, match="cannot be kept"):
        store(tmp_path)


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    first = store(tmp_path)
    with pytest.raises(InputError, match="another server"):
        store(tmp_path)
    first.close()
    store(tmp_path).close()
