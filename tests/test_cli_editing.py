"""Editing and drawing again from the command line, with a real pipeline of small networks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.small import (
    small_pipeline,
)
from typer.testing import CliRunner

from pixsigma.cli import app, drawing
from pixsigma.cli.wishes import parse_extend
from pixsigma.errors import InputError
from pixsigma.images import read_provenance, read_settings

FAST = ("--steps", 2, "--seed", 5, "--device", "cpu", "-q")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pipe = small_pipeline()
    monkeypatch.setattr(drawing, "load", lambda job, device, dtype: pipe)
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save("in.png")
    mask = Image.new("L", (32, 24))
    mask.paste(255, (9, 5, 17, 14))
    mask.save("mask.png")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def generated(*arguments: object) -> Path:
    result = run("generate", *arguments)
    assert result.exit_code == 0, result.stderr
    return Path(result.stdout.strip())


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


WAYS: dict[str, tuple[object, ...]] = {
    "text": ("--size", "32x48", "--sampler", "sa", "--negative", "a dog", "--guidance", 3),
    "text-jpg": ("--size", "32x32", "--out", "t.jpg"),
    "text-webp": ("--size", "32x32", "--out", "t.webp", "--no-clean"),
    "image": ("--image", "in.png", "--strength", 0.6),
    "image-sized": ("--image", "in.png", "--size", "48x32"),
    "image-shaped": ("--image", "in.png", "--aspect", "2:1"),
    "mask": ("--image", "in.png", "--mask", "mask.png", "--inpaint-crop"),
    "extend": ("--image", "in.png", "--extend", "left=8,top=4", "--sampler", "euler-a"),
    "region": ("--size", "32x32", "--region", "mask.png:a dog", "--region", "0,0,1,.5:sky"),
    "two-pass-tiled": ("--size", "176x144", "--two-pass", "--tiled"),
    "image-tiled": ("--image", "in.png", "--size", "144x160", "--tiled", "--guide", "pag=2"),
    "two-pass": ("--size", "160x144", "--two-pass", "--strength", 0.5),
}


@pytest.mark.parametrize("way", WAYS)
def test_again_is_the_same_picture_bit_for_bit(way: str) -> None:
    first = generated("A red apple", *FAST, *WAYS[way])
    second = generated("--again", first, "--out", f"again{first.suffix}", "-q")
    np.testing.assert_array_equal(pixels(first), pixels(second))
    assert read_settings(first) == read_settings(second)
    # a picture that was drawn again can be drawn again
    third = generated("--again", second, "--out", f"third{first.suffix}", "-q")
    assert third.read_bytes() == second.read_bytes()


def test_again_needs_the_same_input() -> None:
    first = generated("a", *FAST, "--image", "in.png", "--mask", "mask.png")
    Path("in.png").rename("moved.png")
    gone = run("generate", "--again", first)
    assert gone.exit_code == 2 and "cannot read in.png" in gone.stderr
    second = generated("--again", first, "--image", "moved.png", "-q")
    np.testing.assert_array_equal(pixels(first), pixels(second))
    Image.new("RGB", (32, 24)).save("in.png")
    other = run("generate", "--again", first)
    assert other.exit_code == 2 and "not the image that the picture was drawn from" in other.stderr


def test_again_needs_the_masks_of_its_regions() -> None:
    first = generated("a", *FAST, "--size", "32x32", "--region", "mask.png:a dog")
    told = read_settings(first)
    assert told["regions"][0]["mask"] == "mask.png" and len(told["regions_sha256"][0]) == 64
    Image.new("L", (32, 24), 255).save("mask.png")
    other = run("generate", "--again", first)
    assert other.exit_code == 2 and "mask.png is not the mask of region 1" in other.stderr
    Path("mask.png").unlink()
    gone = run("generate", "--again", first)
    assert gone.exit_code == 2 and "cannot read mask.png" in gone.stderr


def test_a_mask_of_a_region_as_data_is_not_repeated() -> None:
    from pixsigma.editing.opening import as_data

    region = {"prompt": "a dog", "mask": as_data(Image.new("L", (8, 8), 255))}
    line = {"prompt": "a", "regions": [region], "width": 32, "height": 32}
    Path("prompts.jsonl").write_text(json.dumps(line))
    path = generated("--prompts", "prompts.jsonl", *FAST)
    assert read_settings(path)["regions"][0]["mask"] == "data:"
    refused = run("generate", "--again", path)
    assert refused.exit_code == 2 and "mask of region 1 was given as data" in refused.stderr


@pytest.mark.parametrize(
    "change",
    [{"control": [{}]}, {"control": ["x"]}, {"control": 3}, {"regions": 3}, {"image": 3}],
)
def test_again_refuses_damaged_settings(change: dict[str, Any]) -> None:
    from pixsigma.images import write_picture

    path = write_picture(Image.new("RGB", (32, 32)), Path(), "bad", {"prompt": "a", **change})
    refused = run("generate", "--again", path)
    assert refused.exit_code == 2 and "settings inside are damaged" in refused.stderr


def test_pictures_with_damaged_exif_are_taken_as_they_lie() -> None:
    Image.new("RGB", (32, 32), "red").save("exif.png", exif=b"Exif\0\0garbagegarbage")
    with pytest.warns(UserWarning, match="EXIF is damaged"):
        generated("a", *FAST, "--image", "exif.png")


def test_paths_and_lines_that_no_one_can_read_are_told() -> None:
    Path("deep.jsonl").write_text('{"prompt": "a", "x": ' + "[" * 100_000)
    refused = run("generate", "--prompts", "deep.jsonl")
    assert refused.exit_code == 2 and "line 1 of deep.jsonl" in refused.stderr
    Path("zero.jsonl").write_text(json.dumps({"prompt": "a", "image": "a\0b"}))
    refused = run("generate", "--prompts", "zero.jsonl")
    assert refused.exit_code == 2 and "null byte" in refused.stderr


def test_again_takes_the_settings_of_the_picture_alone() -> None:
    first = generated("a", *FAST, "--size", "32x32")
    refused = run("generate", "b", "--again", first, "--steps", 2, "--num", 3)
    assert refused.exit_code == 2
    assert "leave --num, the prompt, --steps out" in refused.stderr
    bare = generated("a", *FAST, "--size", "32x32", "--no-metadata")
    assert "holds no settings" in run("generate", "--again", bare).stderr
    assert "cannot be read" in run("generate", "--again", "missing.png").stderr


def test_again_tells_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    first = generated("a", *FAST, "--size", "32x32")
    monkeypatch.setattr("pixsigma.cli.again.__version__", "99")
    with pytest.warns(UserWarning, match=r"was drawn by pixsigma .*, this is 99"):
        run("generate", "--again", first)


def test_no_metadata_leaves_the_mark_and_info_tells_it() -> None:
    path = generated("a secret", *FAST, "--size", "32x32", "--no-metadata", "--out", "x.webp")
    assert read_provenance(path) == (None, "trainedAlgorithmicMedia")
    assert run("info", path).stdout.split() == [
        "digital",
        "source",
        "type",
        "trainedAlgorithmicMedia",
    ]
    Image.new("RGB", (4, 4)).save("plain.jpg")
    plain = run("info", "plain.jpg")
    assert plain.exit_code == 2 and "holds no settings" in plain.stderr


def test_edits_are_marked_as_composites_and_tell_their_inputs() -> None:
    path = generated("a", *FAST, "--image", "in.png", "--mask", "mask.png", "--out", "x.jpg")
    told = json.loads(run("info", path, "--json").stdout)
    assert told["digital_source_type"] == "compositeWithTrainedAlgorithmicMedia"
    assert (told["image"], told["mask"]) == ("in.png", "mask.png")
    assert len(told["image_sha256"]) == len(told["mask_sha256"]) == 64
    whole = generated("a", *FAST, "--image", "in.png", "--strength", 1.0)
    assert read_provenance(whole)[1] == "trainedAlgorithmicMedia"


def test_kept_pixels_reach_the_file_as_they_were() -> None:
    path = generated("a", *FAST, "--image", "in.png", "--mask", "mask.png")
    kept = pixels(Path("mask.png")) == 0
    np.testing.assert_array_equal(pixels(path)[kept], pixels(Path("in.png"))[kept])


def test_what_is_told_has_the_size_of_the_picture() -> None:
    result = run("generate", "a", *FAST[:-1], "--image", "in.png", "--extend", "right=8", "--json")
    told = json.loads(result.stdout)
    assert (told["width"], told["height"]) == (40, 24)


def test_a_picture_as_data_is_not_repeated() -> None:
    from pixsigma.editing.opening import as_data

    with Image.open("in.png") as image:
        data = as_data(image)
    path = generated("a", *FAST, "--image", data)
    assert read_settings(path)["image"] == "data:"
    refused = run("generate", "--again", path)
    assert refused.exit_code == 2 and "give --image" in refused.stderr
    Path("same.png").write_bytes(__import__("base64").b64decode(data.partition(",")[2]))
    again = generated("--again", path, "--image", "same.png", "-q")
    np.testing.assert_array_equal(pixels(path), pixels(again))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--image", "missing.png"], "cannot read missing.png"),
        (["a", "--mask", "mask.png"], "mask needs a picture"),
        (["a", "--strength", 0.5], "strength needs image"),
        (["a", "--image", "in.png", "--strength", 2], "--strength must be"),
        (["a", "--image", "in.png", "--extend", "up=3"], "--extend must be sides and pixels"),
        (["a", "--image", "in.png", "--extend", "left=9999"], "--extend.left must be less than"),
        (["a", "--two-pass", "--size", "128x128"], "two passes are for sizes above"),
        (["a", "--tiled"], "tiled refines what is there"),
        (["a", "--tiled", "--image", "in.png", "--fast"], "leave out fast, or tiled"),
        (["x" * 11_000, "--out", "x.jpg"], "has room for 10,000 bytes"),
    ],
)
def test_wrong_wishes_end_in_one_line(arguments: list[object], message: str) -> None:
    before = sorted(Path().iterdir())
    result = run("generate", *arguments, "--device", "cpu")
    assert result.exit_code == 2 and message in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(p for p in Path().iterdir() if p.name != "outputs") == before


def test_sides_are_read() -> None:
    assert parse_extend("left=256, top=64") == {"left": 256, "top": 64}
    for bad in ("", "left", "left=-3", "left=1,left=2", "left=1;top=2"):
        with pytest.raises(InputError, match="--extend"):
            parse_extend(bad)
