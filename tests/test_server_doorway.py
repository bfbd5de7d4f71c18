"""What every answer carries, the page about the API, origins, and whose a warning is."""

import re
import threading
import warnings
from contextvars import copy_context
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from tests.serving import HOSTS, job, serving, small_service, wait

from pixsigma.server import events
from pixsigma.server.app import create_app
from pixsigma.server.reference import kind_of, page, row
from pixsigma.server.warned import hear

PATHS = ["/docs", "/openapi.json", "/healthz", "/readyz", "/metrics", "/v1/models", "/v1/jobs/x"]


def test_browsers_are_told_to_ask_nobody_else(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        for path in PATHS:
            head = client.get(path).headers
            assert head["content-security-policy"].startswith("default-src 'none'"), path
            assert "script-src" not in head["content-security-policy"]
            assert head["x-content-type-options"] == "nosniff"
            assert head["referrer-policy"] == "no-referrer"
        other = client.get("/nothing").headers["content-security-policy"]
        assert other.startswith("default-src 'self'") and "http" not in other
        refused = client.get("/healthz", headers={"Host": "evil.example"})
        assert refused.status_code == 421 and "content-security-policy" in refused.headers


def test_the_page_about_the_api_tells_every_path_and_loads_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        api = client.get("/openapi.json").json()
        text = client.get("/docs").text
    assert not re.search(r"<script|<link|<img|src=|https?://", text)
    for path, methods in api["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in text
    for field in ("request.num_inference_steps", "deadline_seconds", "partial_images"):
        assert f"<code>{field}</code>" in text


def test_schemas_are_told_in_words_and_escaped() -> None:
    assert kind_of({"type": "integer", "minimum": 1, "maximum": 9}) == "integer ≥ 1, ≤ 9"
    assert kind_of({"anyOf": [{"type": "string"}, {"type": "null"}]}) == "string | null"
    assert kind_of({"enum": ["png", "webp"]}) == "png | webp"
    assert kind_of({"$ref": "#/components/schemas/Style"}) == "Style"
    assert "&lt;b&gt;" in row("a", {"type": "string", "description": "<b>"})
    assert "3 where not given" in row("a", {"type": "integer", "default": 3})
    assert "<h1>t 1</h1>" in page({"info": {"title": "t", "version": "1"}, "paths": {}})


def test_pages_of_origins_that_were_named_may_ask(tmp_path: Path) -> None:
    shop = "https://shop.example"
    app = create_app(small_service(tmp_path), hosts=HOSTS, origins=[shop])
    with TestClient(app) as client:
        asked = {"Origin": shop, "Access-Control-Request-Method": "POST"}
        answer = client.options("/v1/jobs", headers=asked)
        assert answer.headers["access-control-allow-origin"] == shop
        drawn = client.post("/v1/jobs", json=job(), headers={"Origin": shop})
        assert drawn.status_code == 202
        for strange in ("https://evil.example", "http://[::1", "\xe9"):
            refused = client.post("/v1/jobs", json=job(), headers={"Origin": strange.encode()})
            assert refused.status_code == 403
            assert "access-control-allow-origin" not in refused.headers


def test_without_named_origins_no_page_may_ask(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
        answer = client.options("/v1/jobs", headers=asked)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


def test_long_silences_are_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "ALIVE_SECONDS", 0.0)
    with serving(tmp_path, at_once=1) as client:
        first = job(num_inference_steps=60, width=64, height=64)
        client.post("/v1/jobs", json=first)
        id = client.post("/v1/jobs", json=job()).json()["id"]
        text = client.get(f"/v1/jobs/{id}/events?previews=false").text
    assert text.count("event: queued") > 1 and "event: preview" not in text


def test_a_warning_is_told_to_the_drawing_that_it_is_about(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        ids = [client.post("/v1/jobs", json=job(p)).json()["id"] for p in ("a " * 900, "a cat")]
        long, short = (wait(client, id)["warnings"] for id in ids)
    assert len(long) == 1 and "tokens" in long[0]
    assert short == []


def test_warnings_follow_their_context_into_a_thread() -> None:
    def within() -> list[str]:
        found = hear()
        work = copy_context()
        thread = threading.Thread(target=work.run, args=(warnings.warn, "mine"))
        thread.start()
        thread.join()
        return found

    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        assert copy_context().run(within) == ["mine"]
        assert copy_context().run(within) == ["mine"]
        warnings.warn("theirs", stacklevel=1)
    assert [str(each.message) for each in others] == ["theirs"]


def test_the_time_in_the_queue_is_measured(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        wait(client, client.post("/v1/jobs", json=job()).json()["id"])
        text = client.get("/metrics").text
    for stage in ("queued", "text", "denoising", "decoding"):
        assert f'pixsigma_stage_seconds_count{{stage="{stage}"}} 1.0' in text, text
    assert "process_resident_memory_bytes" in text and "pixsigma_device_bytes 0.0" in text
