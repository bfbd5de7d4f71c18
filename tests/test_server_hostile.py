"""What strangers send: odd pictures, prompts, numbers and headers; the server only refuses."""

import base64
import contextlib
import io
import json
import random
import socket
import struct
import time
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis.generation import GenerationMode
from tests.serving import SMALL, job, listening, serving, wait

from pixsigma.server.limits import Limits

NUMBERS = ["num_inference_steps", "guidance_scale", "seed", "num_images", "width", "eta"]

VALUES = ["NaN", "Infinity", "-Infinity", "1e308", "-1e308", "-1", "1e-320", "9223372036854775808"]
VALUES += ["0.5", "-0.0", '"7"', "true", "[]", "{}", "1" + "0" * 400]

LIMITS = Limits(max_pixels=64 * 64, max_steps=3, max_images=2, rate=1e9, max_per_client=10**6)


def written(image: Image.Image, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def pictures() -> dict[str, bytes]:
    """By name: `ok` ones are drawn, `odd` ones may be, the others get a reason why not."""
    plain = Image.new("RGB", (32, 32), "orange")
    png = written(plain, "PNG")
    head, tail = png[:33], png[33:]  # behind the header chunk
    nothing = struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0)
    bomb = zlib.compress(b"\0" * 10**7, 9)
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "ok grey": written(plain.convert("L"), "PNG"),
        "ok bits": written(plain.convert("1"), "PNG"),
        "ok sixteen": written(plain.convert("L").convert("I;16"), "PNG"),
        "ok palette": written(plain.convert("P"), "PNG", transparency=0),
        "ok alpha": written(plain.convert("RGBA"), "WEBP"),
        "ok cmyk": written(plain.convert("CMYK"), "JPEG"),
        "ok turned": written(plain, "JPEG", exif=turned),
        "ok moving": written(
            plain, "PNG", save_all=True, append_images=[Image.new("RGB", (32, 32))]
        ),
        "ok comment": head + chunk(b"tEXt", b"a\0" + b"b" * 5000) + tail,
        "ok zeros behind": png + b"\0" * 9999,
        "cut": png[: len(png) // 2],
        "header alone": head,
        "odd no end": png[:-12],
        "odd sum wrong": png[:40] + bytes([png[40] ^ 1]) + png[41:],
        "size none": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", nothing),
        "odd text bomb": head + chunk(b"zTXt", b"a\0\0" + bomb) + tail,
        "odd profile bomb": head + chunk(b"iCCP", b"a\0\0" + bomb) + tail,
        "gif": written(plain, "GIF"),
        "tiff": written(plain, "TIFF"),
        "bmp": written(plain, "BMP"),
        "icon": written(plain, "ICO"),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "script": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
        "noise": random.Random(0).randbytes(4000),
        "empty": b"",
    }


def uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def test_odd_pictures_are_drawn_or_refused_and_the_server_lives(tmp_path: Path) -> None:
    ends: dict[str, str] = {}
    with serving(tmp_path, limits=Limits(rate=1e9, max_per_client=1000)) as client:
        for name, data in pictures().items():
            wish = job(image=uri(data), width=None, height=None, num_inference_steps=2)
            answer = client.post("/v1/jobs", json=wish)
            assert answer.status_code in (202, 400), (name, answer.text)
            if answer.status_code == 202:
                told = wait(client, answer.json()["id"])
                assert told["state"] == "done" or told["kind"] == "InputError", (name, told)
                assert str(tmp_path) not in (told["reason"] or "")
                ends[name] = told["state"]
            else:
                ends[name] = "refused"
        assert wait(client, client.post("/v1/jobs", json=job()).json()["id"])["state"] == "done"
    for name, end in ends.items():
        assert (end == "done") == name.startswith("ok") or name.startswith("odd"), ends


ADDRESSES = ["data:image/svg+xml;base64,PHN2Zy8+", "data:text/html;base64,AAAA", "data:,"]
ADDRESSES += ["data:image/png,x", "file:///etc/passwd", "/dev/zero", "ftp://127.0.0.1/x", "", "\0"]


@pytest.mark.parametrize("source", [*ADDRESSES, "\\\\server\\share", "a" * 5000])
def test_no_address_is_opened(tmp_path: Path, source: str) -> None:
    with serving(tmp_path) as client:
        for field in ("image", "mask"):
            fields = {
                "image": uri(pictures()["ok grey"]),
                "width": None,
                "height": None,
                field: source,
            }
            answer = client.post("/v1/jobs", json=job(**fields))
            assert answer.status_code in (400, 422), answer.text
            assert "root:" not in answer.text


def test_odd_numbers_are_refused_or_meant(tmp_path: Path) -> None:
    with serving(tmp_path, limits=LIMITS) as client:
        head = {"Content-Type": "application/json"}
        for name in NUMBERS:
            for value in VALUES:
                fields = {key: json.dumps(each) for key, each in SMALL.items()} | {name: value}
                inside = ", ".join(f'"{key}": {each}' for key, each in fields.items())
                raw = f'{{"request": {{"prompt": "a", {inside}}}}}'
                answer = client.post("/v1/jobs", content=raw, headers=head)
                assert answer.status_code in (202, 400, 422), (name, value, answer.text)
                if value in VALUES[:5]:
                    assert answer.status_code != 202, (name, value)


PROMPTS = ["\0" * 100, "\x1b]0;x\x07", "\u202eabc\u202c", "a" * 8000, "\ufeff", "%s%n{0}"]
PROMPTS += ["<script>alert(1)</script>", "'; DROP TABLE jobs; --", "Z\u0353\u0329" * 500]
PROMPTS += ["\U0001f468\u200d\U0001f469\u200d\U0001f467", "[a:b:" * 300, "((((" * 500]


def test_odd_prompts_are_drawn_or_refused(tmp_path: Path) -> None:
    with serving(tmp_path, limits=LIMITS) as client:
        for prompt in PROMPTS:
            for syntax in ("plain", "weighted"):
                answer = client.post("/v1/jobs", json=job(prompt, prompt_syntax=syntax))
                assert answer.status_code in (202, 400, 422), (prompt[:40], answer.text)
                if answer.status_code == 202:
                    told = wait(client, answer.json()["id"])
                    assert told["state"] == "done" or told["kind"] == "InputError", told


JSON = b"Content-Type: application/json\r\n"
FORM = b"Content-Type: multipart/form-data"
TWO = b"Content-Length: 2\r\n\r\n{}"
HEADS = {
    b"GET /healthz": [
        b"Host: evil.example\r\n\r\n",
        b"X: " + b"a" * 100_000 + b"\r\n\r\n",
        b"Transfer-Encoding: gzip\r\n\r\n",
    ],
    b"GET /v1/models": [
        b"Authorization: Bearer \xff\x00\r\n\r\n",
        b"Origin: \xe9://[\r\n\r\n",
        b"Origin: http://[::1\r\n\r\n",
        b"Accept: \xff\r\nRange: bytes=9-1\r\n\r\n",
    ],
    b"GET /%00%ff/../../etc/passwd": [b"\r\n"],
    b"GET http://evil.example/": [b"\r\n"],
    b"DELETE /v1/jobs/" + b"0" * 32: [b"Range: bytes=9-1\r\n\r\n"],
    b"POST /v1/jobs": [
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: 9" + b"9" * 30 + b"\r\n\r\n",
        b"Content-Length: \xb2\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"Transfer-Encoding: chunked\r\n" + TWO,
        b"Content-Type: text/xml\r\n" + TWO,
        b"Content-Type: application/json; charset=\xff\r\n" + TWO,
        b"Content-Encoding: gzip\r\n" + JSON + TWO,
        JSON + b"Idempotency-Key: \xff\xfe" + b"k" * 300 + b"\r\n" + TWO,
    ],
    b"POST /v1/images/edits": [
        FORM + b"\r\n" + TWO,
        FORM + b"; boundary=a\r\nContent-Length: 7\r\n\r\n--a\r\n\r\n",
        FORM + b"; boundary=\xff\r\n" + TWO,
    ],
}
LINES = [
    *(
        first + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n" + rest
        for first, rests in HEADS.items()
        for rest in rests
    ),
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: [::1\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\0" * 1000,
]


def test_odd_lines_and_headers_get_no_server_error(tmp_path: Path) -> None:
    with listening(tmp_path) as base:
        port = urlsplit(base).port
        for line in LINES:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as wire:
                wire.settimeout(1)
                answer = b""
                # a server may hang up before it has read all, at any of these
                with contextlib.suppress(OSError):
                    wire.sendall(line)
                    wire.shutdown(socket.SHUT_WR)
                    answer = wire.recv(200)
            status = answer.split(b" ")[1:2] or [b"-"]
            assert not status[0].startswith(b"5"), (line[:120], answer)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as wire:
            wire.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert wire.recv(200).startswith(b"HTTP/1.1 200")


def test_the_wall_clock_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = random.Random(1)
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(-1e9, 4e9))
    with serving(tmp_path) as client:
        wishes = [job(seed=k, deadline_seconds=60.0) for k in range(6)]
        ids = [client.post("/v1/jobs", json=wish).json()["id"] for wish in wishes]
        assert [wait(client, id)["state"] for id in ids] == ["done"] * 6


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_of_the_description_makes_the_server_fail(
    tmp_path: Path, mode: GenerationMode
) -> None:
    with listening(tmp_path, limits=LIMITS) as base:
        schema = schemathesis.openapi.from_url(f"{base}/openapi.json")
        asked = set()
        for found in schema.get_all_operations():
            operation = found.ok()

            @settings(
                max_examples=10,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                answer = case.call(timeout=30)
                asked.add(case.operation.label)
                assert answer.status_code < 500, (case.as_curl_command(), answer.text)

            with contextlib.suppress(Unsatisfiable):  # where there is nothing to get wrong
                check()
        assert {"POST /v1/jobs", "POST /v1/images/generations"} <= asked, asked
