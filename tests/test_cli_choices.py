"""Choices of `pixsigma generate` that change how a picture is made, from the shell, by mini."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from pixsigma.cli import app
from pixsigma.images import read_settings
from pixsigma.models.quantized import supported

runner = CliRunner()
PROMPT = "a red apple"
BASE = ("--size", "64x64", "--steps", "6", "--seed", "5", "--json")


def made(tmp_path: Path, *flags: str, prompt: str = PROMPT) -> list[dict[str, Any]]:
    """What the command tells of each picture."""
    result = runner.invoke(app, ["generate", prompt, *BASE, "--out", str(tmp_path), *flags])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def pixels(told: dict[str, Any]) -> NDArray[np.float64]:
    return np.asarray(Image.open(told["path"]), dtype=np.float64)


def psnr(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((one - other) ** 2), 1e-9)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.float64]:
    (told,) = made(tmp_path_factory.mktemp("plain"))
    return pixels(told)


def test_the_same_command_gives_the_same_picture(
    plain: NDArray[np.float64], tmp_path: Path
) -> None:
    (told,) = made(tmp_path)
    assert np.array_equal(pixels(told), plain)
    assert told["seed"] == 5 and read_settings(Path(told["path"]))["prompt"] == PROMPT


@pytest.mark.parametrize("way", ["strips", "strips-spill"])
def test_strips_give_the_picture_of_the_whole(
    way: str, plain: NDArray[np.float64], tmp_path: Path
) -> None:
    (told,) = made(tmp_path, "--decode", way)
    assert np.abs(pixels(told) - plain).max() <= 1


def test_half_strips_are_near_the_whole(plain: NDArray[np.float64], tmp_path: Path) -> None:
    (told,) = made(tmp_path, "--decode", "strips-half")
    assert psnr(pixels(told), plain) > 45


def test_a_limit_that_is_kept_changes_nothing(plain: NDArray[np.float64], tmp_path: Path) -> None:
    (told,) = made(tmp_path, "--memory", "8GB")
    assert np.abs(pixels(told) - plain).max() <= 1


def test_a_limit_that_cannot_be_kept_is_refused_with_advice(tmp_path: Path) -> None:
    flags = ["--out", str(tmp_path), "--memory", "50MB"]
    result = runner.invoke(app, ["generate", PROMPT, *BASE, *flags])
    assert result.exit_code != 0 and "room for 0.05GB" in result.output
    assert not list(tmp_path.iterdir())


def test_shortcuts_are_near_and_remembered(tmp_path: Path) -> None:
    # few steps are far apart, and nothing is left out between them
    (exact,) = made(tmp_path / "exact", "--steps", "20")
    (told,) = made(tmp_path / "fast", "--steps", "20", "--fast")
    found = psnr(pixels(told), pixels(exact))
    assert 20 < found < 90, "near, yet not the same"
    assert read_settings(Path(told["path"]))["fast"]


def test_shortcuts_are_the_same_beside_other_pictures(tmp_path: Path) -> None:
    (alone,) = made(tmp_path / "alone", "--fast")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"a blue fish\n{PROMPT}\na green tree\n")
    flags = [*BASE, "--out", str(tmp_path / "many"), "--fast", "--prompts", str(prompts)]
    result = runner.invoke(app, ["generate", *flags])
    assert result.exit_code == 0, result.output
    told = [json.loads(line) for line in result.stdout.splitlines()]
    (same,) = [each for each in told if each["prompt"] == PROMPT]
    assert same["seed"] == alone["seed"]
    assert np.abs(pixels(same) - pixels(alone)).max() <= 1


@pytest.mark.skipif(not supported(), reason="this torch has no 8-bit products")
def test_fewer_bits_are_near_and_remembered(plain: NDArray[np.float64], tmp_path: Path) -> None:
    (told,) = made(tmp_path, "--quantize", "int8-fast")
    assert 15 < psnr(pixels(told), plain) < 90, "near, yet not the same"
    assert read_settings(Path(told["path"]))["quantize"] == "int8-fast"


def test_modes_that_there_are_not_are_refused(tmp_path: Path) -> None:
    flags = ["--out", str(tmp_path), "--quantize", "int3"]
    result = runner.invoke(app, ["generate", PROMPT, *BASE, *flags])
    assert result.exit_code != 0 and "int8" in result.output
    assert not list(tmp_path.iterdir())


def test_a_kept_prompt_gives_the_same_picture(plain: NDArray[np.float64], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name in ("first", "second"):
        (told,) = made(tmp_path / name, "--prompt-cache", str(cache))
        assert np.array_equal(pixels(told), plain)
    assert len(list(cache.rglob("*.safetensors"))) == 2, "the prompt and the empty one"


def test_plan_tells_what_generate_would_do() -> None:
    result = runner.invoke(app, ["plan", "--model", "mini", "--size", "128x128", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["width"], told["height"], told["placement"]) == (128, 128, "resident")
    assert {"transformer", "text encoder"} <= {part["name"] for part in told["parts"]}


def test_again_decodes_as_the_picture_was_and_computes_as_it_is_told(tmp_path: Path) -> None:
    def again(path: str, *flags: str) -> dict[str, Any]:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.png"
        given = ["generate", "--again", path, *flags, "--json", "--out", str(out)]
        result = runner.invoke(app, given)
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.stdout))

    (first,) = made(tmp_path, "--decode", "strips-half")
    assert read_settings(Path(first["path"]))["decode"] == "strips-half"
    second = again(first["path"], "--prompt-cache", "off")
    assert second["decode"] == "strips-half"
    assert np.array_equal(pixels(second), pixels(first))
    limited = again(first["path"], "--memory", "8GB")  # its plan reads the text encoder otherwise
    assert limited["decode"] == "strips-half"
    assert np.abs(pixels(limited) - pixels(first)).max() <= 3
    strips = again(first["path"], "--decode", "strips")
    assert strips["decode"] == "strips"
    # ways that give the same picture are for the plan to choose among
    assert again(strips["path"])["decode"] == "whole"
