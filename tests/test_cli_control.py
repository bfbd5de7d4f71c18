"""Hints from the command line: what is written, what is refused, and drawing the same again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tests.small import small_pipeline, small_transformer
from tests.test_controls import LAYERS, woken
from typer.testing import CliRunner

from pixsigma.cli import app, drawing
from pixsigma.cli.wishes import parse_control, parse_controls
from pixsigma.errors import InputError
from pixsigma.images import read_settings
from pixsigma.weights.controls import save_control

FAST = ("--steps", 2, "--seed", 5, "--device", "cpu", "--size", "32x32", "-q")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pipe = small_pipeline(transformer=small_transformer(LAYERS))
    monkeypatch.setattr(drawing, "load", lambda job, device, dtype: pipe)
    monkeypatch.chdir(tmp_path)
    photo = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(photo).ellipse((6, 6, 26, 26), fill="red")
    photo.save("photo.png")
    Image.new("RGB", (48, 32)).save("wide.png")
    base = small_transformer(LAYERS)
    save_control(woken().state_dict(), base, Path("net"), kind="edges", variant="sigma")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def generated(*arguments: object) -> Path:
    result = run("generate", *arguments)
    assert result.exit_code == 0, result.stderr
    return Path(result.stdout.strip())


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_hint_is_followed_told_and_drawn_again() -> None:
    plain = generated("a", *FAST)
    way = ("--control", "edges:photo.png:0.8,end=0.9", "--controlnet", "net")
    first = generated("a", *FAST, *way, "--out", "first.png")
    assert not np.array_equal(pixels(plain), pixels(first))
    settings = read_settings(first)
    (told,) = settings["control"]
    assert told["weight"] == 0.8 and told["end"] == 0.9 and told["network"] == "net"
    assert len(told["hint_sha256"]) == 64
    second = generated("--again", first, "--out", "second.png", "-q")
    np.testing.assert_array_equal(pixels(first), pixels(second))
    assert read_settings(second) == settings


def test_again_needs_the_same_hint() -> None:
    first = generated("a", *FAST, "--control", "edges:photo.png", "--controlnet", "net")
    Path("photo.png").rename("moved.png")
    gone = run("generate", "--again", first)
    assert gone.exit_code == 2 and "cannot read photo.png" in gone.stderr
    Image.new("RGB", (32, 32)).save("photo.png")
    other = run("generate", "--again", first)
    assert other.exit_code == 2 and "is not the hint" in other.stderr


def test_a_file_of_prompts_has_hints_as_data() -> None:
    hint = {"kind": "edges", "hint": "photo.png", "network": "net", "weight": 0.8, "end": 0.9}
    Path("p.jsonl").write_text(json.dumps({"prompt": "a", "control": [hint]}))
    told = generated("--prompts", "p.jsonl", *FAST)
    way = ("--control", "edges:photo.png:0.8,end=0.9", "--controlnet", "net")
    np.testing.assert_array_equal(pixels(told), pixels(generated("a", *FAST, *way)))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--control", "edges:photo.png"), "give --controlnet FILE"),
        (("--controlnet", "net"), "follows no hint"),
        (("--control", "edges:photo.png", "--controlnet", "depth=net"), "follows no hint"),
        (("--control", "photo.png", "--controlnet", "net"), "a hint is --control KIND:HINT"),
        (("--control", "edges:gone.png", "--controlnet", "net"), "cannot read gone.png"),
        (("--control", "edges:photo.png", "--controlnet", "gone"), "there is none at gone"),
        (("--control", "depth:photo.png", "--controlnet", "net"), "asked to follow depth"),
        (("--control", "edges:wide.png", "--controlnet", "net"), "has 48x32"),
        (("--control", "edges:photo.png:inf", "--controlnet", "net"), "must be finite"),
        (("--control", "edges:photo.png,start=1,end=0.5", "--controlnet", "net"), "before it ends"),
        (("--control", "edges:photo.png,start=1.2.3", "--controlnet", "net"), "no number"),
        (
            ("--control", "edges:photo.png", "--controlnet", "net", "--controlnet", "net"),
            "two files",
        ),
    ],
)
def test_what_does_not_fit_is_refused(flags: tuple[str, ...], words: str) -> None:
    result = run("generate", "a", *FAST, *flags)
    assert result.exit_code in (2, 3)
    assert words in " ".join(result.stderr.split()), result.stderr
    assert not list(Path().glob("outputs/*"))


def test_words_behind_a_hint() -> None:
    plain = {"kind": "edges", "hint": "a:b.png"}
    assert parse_control("edges:a:b.png") == plain
    assert parse_control("edges:a:b.png:-0.5") == plain | {"weight": -0.5}
    assert parse_control("edges:a:b.png,ready") == plain | {"ready": True}
    found = parse_control("my-kind:x,y.png:2,start=.25,ready,end=1")
    assert found == {
        "kind": "my-kind",
        "hint": "x,y.png",
        "weight": 2.0,
        "start": 0.25,
        "ready": True,
        "end": 1.0,
    }
    for wrong in ("edges", "edges:", ":a.png", "Edges:a.png", "2d:a.png"):
        with pytest.raises(InputError):
            parse_control(wrong)


def test_networks_are_for_a_kind_or_for_all() -> None:
    both = ["edges:a.png", "depth:b.png", "edges:c.png"]
    found = parse_controls(both, ["depth=d.pth", "all.pth"])
    assert [control["network"] for control in found] == ["all.pth", "d.pth", "all.pth"]
    assert parse_controls([], []) == []
