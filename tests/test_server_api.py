"""The API from outside: jobs, events, limits, keys, policy, and hostile input."""

import base64
import errno
import io
import json
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.serving import SMALL, job, serving, small_pipeline, small_service, until_over, wait

from pixsigma.errors import BusyError, InputError, OutputError, SizeError
from pixsigma.images import read_settings, write_picture
from pixsigma.requests import GenerationRequest
from pixsigma.server import worker
from pixsigma.server.keys import Keys, add_key, check_host, hashed, read_keys
from pixsigma.server.limits import Limits, Rates, check_request, upload_size
from pixsigma.server.policy import Policy, read_rules
from pixsigma.server.service import JobRequest


def picture(width: int = 32, height: int = 32, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "orange").save(buffer, kind)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def bomb(width: int, height: int) -> str:
    """A PNG of a few bytes that says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def sse(text: str) -> list[tuple[str, dict[str, Any]]]:
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(b[0].removeprefix("event: "), json.loads(b[1].removeprefix("data: "))) for b in blocks]


def test_a_job_is_accepted_drawn_and_fetched_with_its_settings_inside(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        answer = client.post("/v1/jobs", json=job(seed=5, num_images=2))
        assert answer.status_code == 202
        told = wait(client, answer.json()["id"])
        assert (told["state"], told["seeds"]) == ("done", [5, 6])
        for number, address in enumerate(told["results"]):
            fetched = client.get(address)
            assert fetched.headers["content-type"] == "image/png"
            (tmp_path / "it.png").write_bytes(fetched.content)
            settings = read_settings(tmp_path / "it.png")
            assert settings["seed"] == 5 + number and settings["prompt"] == "a cat"
            assert settings["guidance_scale"] == 4.5  # the model's own, where none was asked for
        *_, last = small_pipeline().stream("a cat", seed=6, **SMALL)
        assert Image.open(tmp_path / "it.png").tobytes() == last.images[0].tobytes()


def test_events_tell_the_place_the_steps_and_the_end(tmp_path: Path) -> None:
    with serving(tmp_path, at_once=1) as client:
        client.post("/v1/jobs", json=job(num_inference_steps=60, width=64, height=64))
        id = client.post("/v1/jobs", json=job(num_inference_steps=40)).json()["id"]
        heard = sse(client.get(f"/v1/jobs/{id}/events").text)
    names = [name for name, _ in heard]
    assert names[0] == "queued" and names[-1] == "done" and "step" in names
    assert heard[0][1]["place"] in (0, 1)
    steps = [data for name, data in heard if name == "step"]
    assert [s["step"] for s in steps] == sorted(s["step"] for s in steps)
    assert steps[-1]["steps"] == 40
    for name, data in heard:
        if name == "preview":
            assert Image.open(io.BytesIO(base64.b64decode(data["jpeg"]))).size == (32, 32)


def test_cancelling_stops_between_steps_and_deleting_leaves_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, at_once=1) as client:
        long = job(num_inference_steps=100, width=96, height=96)
        first, second = (client.post("/v1/jobs", json=long).json()["id"] for _ in range(2))
        assert client.delete(f"/v1/jobs/{second}").json()["state"] == "cancelled"
        client.delete(f"/v1/jobs/{first}")
        assert wait(client, first, 5)["state"] == "cancelled"
        third = client.post("/v1/jobs", json=job()).json()["id"]
        assert wait(client, third)["state"] == "done"
        assert client.delete(f"/v1/jobs/{third}").json()["state"] == "deleted"
        assert client.get(f"/v1/jobs/{third}").status_code == 404
        assert list((tmp_path / "results").iterdir()) == []


def test_the_same_idempotency_key_brings_the_same_job(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        head = {"Idempotency-Key": "once"}
        ids = [client.post("/v1/jobs", json=job(), headers=head).json()["id"] for _ in range(2)]
        assert ids[0] == ids[1]
        other = client.post("/v1/jobs", json=job("a dog"), headers=head)
        assert other.status_code == 400 and "give a new key" in other.json()["error"]["message"]


def test_results_and_waiting_jobs_outlive_the_server(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        done = client.post("/v1/jobs", json=job()).json()["id"]
        results = wait(client, done)["results"]
    service = small_service(tmp_path)
    waiting = service.submit(JobRequest.model_validate(job("a dog", seed=3)), "testclient")
    service.store.claim()  # as if the process were killed while it drew
    service.store.close()
    with serving(tmp_path) as client:
        assert client.get(results[0]).status_code == 200
        assert wait(client, waiting.id)["state"] == "done"


def test_stopping_hands_back_what_is_not_soon_over(tmp_path: Path) -> None:
    service = small_service(tmp_path)
    service.start()
    wanted = JobRequest.model_validate(job(num_inference_steps=100, width=64, height=64))
    id = service.submit(wanted, "a").id
    while service.store.get(id).state == "queued":
        time.sleep(0.01)
    service.stop(grace=0.02)
    again = small_service(tmp_path)
    assert (again.store.get(id).state, again.store.get(id).attempts) == ("queued", 0)
    again.store.close()


def test_a_crash_fails_its_own_job_and_the_server_lives(tmp_path: Path) -> None:
    pipe = small_pipeline()
    stages = pipe.stages

    def fragile(request: Any, *rest: Any) -> Any:
        if request.prompt == "crash":
            raise ZeroDivisionError("/private/path")
        if request.prompt == "large":
            raise MemoryError
        return stages(request, *rest)

    pipe.stages = fragile  # type: ignore[method-assign]
    with serving(tmp_path, pipes={"small": pipe}) as client:
        ids = [client.post("/v1/jobs", json=job(p)).json()["id"] for p in ("crash", "large", "ok")]
        crash, large, ok = (wait(client, id) for id in ids)
        assert crash["kind"] == "ZeroDivisionError" and "/private" not in crash["reason"]
        assert "smaller size" in large["reason"]
        assert ok["state"] == "done" and client.get("/readyz").status_code == 200
        text = client.get("/metrics").text
        assert 'pixsigma_jobs_over_total{state="failed"} 2.0' in text
        assert 'pixsigma_job_errors_total{kind="MemoryError"} 1.0' in text
        assert "pixsigma_images_total 1.0" in text and "pixsigma_steps_total 3.0" in text


def test_a_full_disk_is_told_without_its_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [
        OSError(errno.ENOSPC, "no space", "/private/0"),
        OutputError("/private/1 is full"),
        None,
    ]

    def written(*arguments: Any, **named: Any) -> Any:
        if (error := full.pop(0)) is not None:
            raise error
        return write_picture(*arguments, **named)

    monkeypatch.setattr(worker, "write_picture", written)
    with serving(tmp_path) as client:
        for _ in range(2):
            told = wait(client, client.post("/v1/jobs", json=job()).json()["id"])
            assert told["state"] == "failed" and "takes no more" in told["reason"]
            assert "/private" not in told["reason"]
        assert wait(client, client.post("/v1/jobs", json=job()).json()["id"])["state"] == "done"


def test_a_deadline_fails_a_job_that_is_late(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        late = job(num_inference_steps=100, width=64, height=64, deadline_seconds=0.05)
        told = wait(client, client.post("/v1/jobs", json=late).json()["id"])
        assert told["state"] == "failed" and "deadline" in told["reason"]


BAD: list[tuple[Any, str]] = [
    (job(width=4096, height=4096), "pixels"),
    (job(num_inference_steps=101), "at most 100"),
    (job(num_images=9), "at most 8"),
    (job("a" * 8001), "characters"),
    (job(sampler="nope"), "nope"),
    (job(image="/etc/passwd"), "opens no path"),
    (job(image="http://127.0.0.1/x.png"), "opens no path"),
    (job(image="data:image/png;base64,AAAA"), "must be PNG"),
    (job(image="data:image/png;base64,%%%"), "must be PNG"),
    (job(image=bomb(60000, 60000), width=None, height=None), "pixels"),
    (job(image=bomb(5000, 5000), width=None, height=None), "5000x5000"),
    (job(image=picture(kind="GIF"), width=None, height=None), "must be PNG"),
    (job(loras=[{"path": "/etc/passwd"}]), "the adapters here are none"),
    (job() | {"model": "other"}, "this server has small"),
    (job() | {"priority": 5}, "priority"),
    (job(steps=3), "steps"),
    (job(width=33), "multiples"),
    ({"request": {}}, "prompt"),
    ([], "a JSON object"),
]


def test_bad_requests_are_refused_with_a_reason_and_nothing_is_kept(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        for body, told in BAD:
            answer = client.post("/v1/jobs", json=body)
            assert answer.status_code == 400, (body, answer.text)
            assert told in answer.json()["error"]["message"], answer.text
        assert list((tmp_path / "results").glob("*")) == []


@pytest.mark.parametrize(
    "raw",
    [
        b'{"request": {"prompt": "a", "guidance_scale": NaN}}',
        b'{"request": {"prompt": "a", "guidance_scale": 1e308}}',
        b'{"request": {"prompt": "a", "seed": -1}}',
        b'{"request": {"prompt": "a", "seed": 1' + b"0" * 4000 + b"}}",
        b'{"request": {"prompt": "\\ud800"}}',
        b'{"request": {"prompt": "' + b"a" * 2**20 + b'"}}',
        b'{"request": ' + b"[" * 100_000,
        b"\xff\xfe",
        b"",
    ],
    ids=["nan", "1e308", "negative", "digits", "surrogate", "1MB", "deep", "bytes", "empty"],
)
def test_hostile_bodies_are_no_failure_of_the_server(tmp_path: Path, raw: bytes) -> None:
    with serving(tmp_path) as client:
        head = {"Content-Type": "application/json"}
        answer = client.post("/v1/jobs", content=raw, headers=head)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize("prompt", ["", "\0\x01\x1b[31m", "‮עברית", "🍎" * 50, "\n"])
def test_odd_prompts_are_drawn(tmp_path: Path, prompt: str) -> None:
    with serving(tmp_path) as client:
        id = client.post("/v1/jobs", json=job(prompt)).json()["id"]
        assert wait(client, id)["state"] == "done"


def test_bodies_hosts_and_origins_are_looked_at_first(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(max_body=2000)) as client:
        assert client.post("/v1/jobs", json=job("a" * 3000)).status_code == 413
        parts = iter([b"{" * 1500, b"{" * 1500])
        assert client.post("/v1/jobs", content=parts).status_code == 413
        assert client.get("/healthz", headers={"Host": "evil.example"}).status_code == 421
        foreign = client.post("/v1/jobs", json=job(), headers={"Origin": "http://evil.example"})
        assert foreign.status_code == 403
        for address in ("/v1/jobs/../../etc", f"/v1/jobs/{'a' * 32}/results/..%2f..%2fjobs.sqlite"):
            assert client.get(address).status_code == 404


def test_refusals_have_one_form_and_tell_what_is_wrong(tmp_path: Path) -> None:
    sent = {"Content-Type": "application/json"}
    with serving(tmp_path) as client:
        wrong = {
            "foo": client.post("/v1/jobs", json=job() | {"foo": 1}),
            "request is missing": client.post("/v1/jobs", json={}),
            "must be JSON": client.post("/v1/jobs", content=b"{", headers=sent),
            "sent as application/json": client.post("/v1/jobs", content=b"{}"),
            "there is no such job": client.get("/v1/jobs/nope"),
            "there is nothing at /v1/jbos": client.post("/v1/jbos", json=job()),
        }
        for said, answer in wrong.items():
            assert answer.status_code == (404 if "there is no" in said else 400), answer.text
            assert said in answer.json()["error"]["message"], answer.text
        assert client.delete("/v1/jobs/nope").status_code == 404


def test_busy_servers_say_when_to_come_again(tmp_path: Path) -> None:
    limits = Limits(max_queue=2, max_per_client=9)
    service = small_service(tmp_path, limits=limits)
    wanted = JobRequest.model_validate(job())
    for client in ("a", "b"):
        service.submit(wanted, client, idempotency_key="k")
    with pytest.raises(BusyError, match="2 jobs wait") as busy:
        service.submit(wanted, "c")
    assert busy.value.retry_after > 0
    assert service.submit(wanted, "a", idempotency_key="k").client == "a"  # it has its place
    service.store.close()
    with serving(tmp_path / "other", limits=Limits(rate=1)) as client:
        client.post("/v1/jobs", json=job())
        answer = client.post("/v1/jobs", json=job())
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 30


def test_rates_fill_again_with_time() -> None:
    now = 0.0
    rates = Rates(2, clock=lambda: now)
    rates.take("a")
    rates.take("a")
    with pytest.raises(BusyError) as busy:
        rates.take("a")
    assert busy.value.retry_after == pytest.approx(30)
    rates.take("b")
    now = 30.0
    rates.take("a")


def test_keys_are_kept_as_hashes_and_jobs_belong_to_their_client(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    ann, bob = add_key(path, "ann"), add_key(path, "bob")
    assert ann not in path.read_text("utf-8") and path.stat().st_mode & 0o077 == 0
    assert read_keys(path) == Keys({"ann": hashed(ann), "bob": hashed(bob)})
    with pytest.raises(InputError, match="already"):
        add_key(path, "ann")
    with serving(tmp_path, keys=read_keys(path)) as client:
        assert client.post("/v1/jobs", json=job()).status_code == 401
        wrong = {"Authorization": f"Bearer {ann}x"}
        assert client.get("/v1/models", headers=wrong).status_code == 401
        by = {name: {"Authorization": f"Bearer {key}"} for name, key in (("a", ann), ("b", bob))}
        id = client.post("/v1/jobs", json=job(), headers=by["a"]).json()["id"]
        assert client.get(f"/v1/jobs/{id}", headers=by["a"]).status_code == 200
        for call in (client.get, client.delete):
            assert call(f"/v1/jobs/{id}", headers=by["b"]).status_code == 404
        assert client.get("/healthz").status_code == 200
        assert client.get("/metrics").status_code == 401
        assert client.get("/v1/models", headers={"X-API-Key": bob}).status_code == 200


@pytest.mark.parametrize(("host", "inside"), [("127.0.0.1", True), ("::1", True), ("0.0.0.0", 0)])
def test_without_keys_only_this_machine_is_served(host: str, inside: bool) -> None:
    if not inside:
        with pytest.raises(InputError, match="--add-key"):
            check_host(host, None)
        check_host(host, Keys({"a": "0" * 64}))
    else:
        check_host(host, None)


def test_the_policy_refuses_before_and_after_and_keeps_nothing(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[refuse]]\nwords = ["weapon"]\nreason = "no weapons"\n', "utf-8")
    policy = Policy(before=[read_rules(rules)], after=[lambda image: "too orange"])
    with serving(tmp_path, policy=policy) as client:
        refused = client.post("/v1/jobs", json=job("a WEAPON, drawn"))
        assert refused.json()["error"]["code"] == "content_policy_violation"
        assert "no weapons" in refused.json()["error"]["message"]
        id = client.post("/v1/jobs", json=job("xyzzy-prompt weapons")).json()["id"]
        told = wait(client, id)
        assert told["kind"] == "PolicyError" and "too orange" in told["reason"]
        text = client.get("/metrics").text
        assert 'pixsigma_policy_refusals_total{when="before"} 1.0' in text
        assert 'pixsigma_policy_refusals_total{when="after"} 1.0' in text
    assert b"xyzzy-prompt" not in (tmp_path / "jobs.sqlite").read_bytes()
    assert list((tmp_path / "results").glob("*")) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no rule"),
        ("[[refuse]]\nreason = 'r'", "words or a pattern"),
        ("[[refuse]]\npattern = '('\nreason = 'r'", "rule 1"),
        ("[[refuse]]\nwords = ['a']", "rule 1"),
        ("x =", "cannot read"),
    ],
)
def test_bad_rules_are_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "rules.toml").write_text(text, "utf-8")
    with pytest.raises(InputError, match=told):
        read_rules(tmp_path / "rules.toml")


def test_sizes_that_the_model_does_not_draw_are_refused_at_once() -> None:
    asked = GenerationRequest(prompt="a", width=144, height=256)
    check_request(asked, Limits(), (256, 256), multiple=16)
    with pytest.raises(SizeError, match="multiples of 32"):
        check_request(asked, Limits(), (256, 256), multiple=32)


def test_pictures_in_are_measured_by_their_header(tmp_path: Path) -> None:
    assert upload_size(picture(48, 32, "WEBP"), Limits()) == (48, 32)
    with serving(tmp_path) as client:
        edit = job(image=picture(48, 32), mask=picture(48, 32), width=None, height=None)
        told = wait(client, client.post("/v1/jobs", json=edit).json()["id"])
        assert told["state"] == "done"
        settings = client.get(told["results"][0])
        (tmp_path / "e.png").write_bytes(settings.content)
        assert read_settings(tmp_path / "e.png")["image"] == "data:"
        broken = bomb(32, 32)
        edit = job(image=broken, width=None, height=None)
        told = wait(client, client.post("/v1/jobs", json=edit).json()["id"])
        assert told["state"] == "failed" and "cannot be read" in told["reason"]


def test_old_jobs_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = small_service(tmp_path, limits=Limits(kept=1))
    service.start()
    wanted = JobRequest.model_validate(job())
    ids = []
    for _ in range(3):
        ids.append(service.submit(wanted, "a").id)
        until_over(service, ids[-1])
    service.submit(wanted, "a")
    assert (tmp_path / "results" / ids[0]).exists(), "its client may be about to fetch it"
    monkeypatch.setattr("pixsigma.server.service.LINGER_SECONDS", 0.0)
    service.submit(wanted, "a")
    service.stop()
    assert not (tmp_path / "results" / ids[0]).exists()
    assert (tmp_path / "results" / ids[2]).exists()
