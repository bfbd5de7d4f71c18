"""`pixsigma serve`: what is refused before anything loads, and what stands behind the port."""

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from pixsigma.cli import app
from pixsigma.cli.serve import checked_origin, find_loras, parse_limits, require_extra
from pixsigma.errors import InputError, MissingExtraError
from pixsigma.server.keys import read_keys

runner = CliRunner()


def served(monkeypatch: pytest.MonkeyPatch, *flags: str) -> dict[str, Any]:
    """What the command would have handed to the web server."""
    found: dict[str, Any] = {}

    def run(application: Any, **settings: Any) -> None:
        found.update(settings, app=application)

    monkeypatch.setattr(uvicorn, "run", run)
    monkeypatch.setattr("pixsigma.cli.serve.check_free", lambda host, port: None)
    result = runner.invoke(app, ["serve", "--no-studio", *flags])
    assert result.exit_code == 0, result.output
    return found | {"output": result.output}


def test_it_listens_on_this_machine_alone_unless_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = served(monkeypatch, "--data", str(tmp_path))
    assert found["host"] == "127.0.0.1" and found["port"] == 7860
    assert "http://127.0.0.1:7860" in found["output"]


def test_what_is_served_draws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = served(monkeypatch, "--data", str(tmp_path), "--limit", "max_steps=4")
    with TestClient(found["app"], base_url="http://127.0.0.1:7860") as client:
        assert client.get("/readyz").status_code == 200
        asked = {"prompt": "a red apple", "width": 64, "height": 64, "num_inference_steps": 2}
        made = client.post("/v1/jobs", json={"request": asked})
        assert made.status_code in (200, 201, 202), made.text
        events = client.get(f"/v1/jobs/{made.json()['id']}/events").text
        assert "event: done" in events and "event: failed" not in events
        many = client.post("/v1/jobs", json={"request": asked | {"num_inference_steps": 5}})
        assert 400 <= many.status_code < 500 and "4" in many.text


def test_a_port_that_is_taken_is_told_before_anything_loads(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = runner.invoke(app, ["serve", "--port", port, "--data", str(tmp_path / "data")])
    assert result.exit_code == 2 and f"port {port} of 127.0.0.1" in result.output
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("origin", ["foo", "https://shop.example/", "ftp://shop.example", "//x"])
def test_an_origin_is_scheme_and_host(origin: str) -> None:
    assert checked_origin("https://shop.example:8443") == "https://shop.example:8443"
    with pytest.raises(InputError, match="--origin is scheme and host"):
        checked_origin(origin)


def test_others_may_not_reach_it_without_keys(tmp_path: Path) -> None:
    result = runner.invoke(app, ["serve", "--host", "0.0.0.0", "--data", str(tmp_path / "data")])
    assert result.exit_code != 0
    assert "needs keys" in " ".join(result.output.split())
    assert not (tmp_path / "data").exists()


def test_a_key_is_shown_once_and_opens_the_door(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    shown = runner.invoke(app, ["serve", "--keys", str(keys), "--add-key", "anna"])
    assert shown.exit_code == 0
    key = shown.output.strip()
    assert key not in keys.read_text() and read_keys(keys).owner(key) == "anna"
    found = served(
        monkeypatch, "--host", "0.0.0.0", "--keys", str(keys), "--data", str(tmp_path / "data")
    )
    with TestClient(found["app"], base_url="http://server") as client:
        assert client.get("/v1/models").status_code == 401
        mine = client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert mine.status_code == 200
        wrong = client.get("/v1/models", headers={"Authorization": "Bearer ps-wrong"})
        assert wrong.status_code == 401


def test_a_second_key_for_one_name_is_refused(tmp_path: Path) -> None:
    flags = ["serve", "--keys", str(tmp_path / "keys"), "--add-key", "anna"]
    assert runner.invoke(app, flags).exit_code == 0
    before = (tmp_path / "keys").read_bytes()
    again = runner.invoke(app, flags)
    assert again.exit_code != 0 and "anna already" in " ".join(again.output.split())
    assert (tmp_path / "keys").read_bytes() == before


def test_a_key_needs_a_file() -> None:
    result = runner.invoke(app, ["serve", "--add-key", "anna"])
    assert result.exit_code != 0 and "--keys FILE" in result.output


@pytest.mark.parametrize(
    ("pairs", "told"),
    [(["max_step=4"], "max_step"), (["max_steps=many"], "max_steps"), (["max_steps"], "max_steps")],
)
def test_bad_limits_are_told_with_those_that_there_are(pairs: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        parse_limits(pairs)
    assert "known:" in str(caught.value)


def test_limits_are_numbers() -> None:
    assert parse_limits(["max_steps=7"]).max_steps == 7
    assert parse_limits([]).max_steps > 7


def test_adapters_of_a_folder_go_by_their_names(tmp_path: Path) -> None:
    for name in ("ink.safetensors", "wool.pt", "notes.txt"):
        (tmp_path / name).touch()
    assert find_loras(tmp_path) == {
        "ink": tmp_path / "ink.safetensors",
        "wool": tmp_path / "wool.pt",
    }
    assert find_loras(None) == {}
    with pytest.raises(InputError, match="--loras must be a folder"):
        find_loras(tmp_path / "nowhere")


def test_libraries_that_lack_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without(*names: str) -> None:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name in names else find(name)
        )

    without("gradio")
    require_extra(studio=False)
    with pytest.raises(MissingExtraError, match="--no-studio"):
        require_extra(studio=True)
    without("fastapi", "uvicorn")
    with pytest.raises(MissingExtraError, match=r"fastapi, uvicorn: pip install 'pixsigma\[serve"):
        require_extra(studio=False)


def test_rules_that_cannot_be_read_stop_it(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text("not toml at all [")
    flags = ["serve", "--no-studio", "--data", str(tmp_path / "data"), "--rules", str(rules)]
    result = runner.invoke(app, flags)
    assert result.exit_code != 0 and "rules.toml" in result.output.replace("\n", "")
