import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixsigma import images
from pixsigma.errors import InputError, OutputError

SETTINGS = {
    "prompt": "ein Käfer 🐞 (rot)\nzweite Zeile",
    "negative_prompt": "blur",
    "num_inference_steps": 20,
    "sampler": "dpm++2m",
    "guidance_scale": 4.5,
    "seed": 7,
    "width": 16,
    "height": 32,
    "model": "mini",
}


def picture(colour: tuple[int, int, int] = (200, 30, 30)) -> Image.Image:
    return Image.new("RGB", (16, 32), colour)


def test_conversions_are_those_of_diffusers() -> None:
    from diffusers.image_processor import VaeImageProcessor

    torch.manual_seed(0)
    tensor = torch.randn(2, 3, 8, 12)
    # every half step between two levels, where roundings differ
    halves = (torch.arange(0, 256) + 0.5) / 255 * 2 - 1
    tensor[0, 0].flatten()[:96] = halves[:96]
    processor = VaeImageProcessor()
    for ours, theirs in zip(
        images.to_pil(tensor), processor.postprocess(tensor, output_type="pil"), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    np.testing.assert_array_equal(
        images.to_numpy(tensor), processor.postprocess(tensor, output_type="np")
    )
    assert torch.equal(images.to_unit(tensor), processor.postprocess(tensor, output_type="pt"))


def test_halves_round_to_even() -> None:
    tensor = torch.full((1, 3, 1, 1), 2 * 0.5 / 255 - 1, dtype=torch.float64)
    assert np.asarray(images.to_pil(tensor)[0]).max() == 0


def test_half_precision_is_rounded_once() -> None:
    near_white = torch.full((1, 3, 1, 1), 0.98828125, dtype=torch.bfloat16)
    assert images.to_numpy(near_white).max() == pytest.approx(0.994140625)


def test_resize_and_crop_is_that_of_diffusers_where_theirs_keeps_the_size() -> None:
    from diffusers.image_processor import PixArtImageProcessor

    torch.manual_seed(0)
    compared = 0
    for old in [(16, 16), (24, 40), (49, 31)]:
        tensor = torch.randn(1, 3, *old)
        for new in [(16, 16), (31, 20), (16, 47), (50, 30), (7, 49), (49, 49)]:
            ours = images.resize_and_crop(tensor, *new)
            theirs = PixArtImageProcessor.resize_and_crop_tensor(tensor, new[1], new[0])
            assert ours.shape[-2:] == new
            if theirs.shape == ours.shape:
                compared += 1
                torch.testing.assert_close(ours, theirs)
    assert compared >= 15


def test_resize_and_crop_never_loses_a_pixel() -> None:
    for old in range(1, 60):
        for new in range(1, 60, 7):
            tensor = torch.zeros(1, 1, old, 13)
            assert images.resize_and_crop(tensor, new, 5).shape == (1, 1, new, 5)


def test_preview_is_the_matrix_product() -> None:
    matrix = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0.5, 0, -0.5]])
    latents = torch.zeros(2, 4, 3, 5)
    latents[:, 1] = 1.0
    shown = images.preview(latents, matrix)
    assert shown.size == (5, 3)
    assert shown.getpixel((0, 0)) == (191, 255, 64)
    assert images.preview(latents, matrix[:4]).getpixel((0, 0)) == (128, 255, 128)
    with pytest.raises(InputError, match=r"for 4 channels must be \(4, 3\) or \(5, 3\)"):
        images.preview(latents, matrix[:3])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A small cactus, with a HAPPY face!", "a-small-cactus-with-a-happy-face"),
        ("../../etc/passwd\n\0", "etc-passwd"),
        ("Käfer façade", "kafer-facade"),
        ("仙人掌 🌵", "picture"),
        ("", "picture"),
        ("con", "con"),
    ],
)
def test_slugs_are_safe_names(text: str, expected: str) -> None:
    assert images.slug(text) == expected


def test_slugs_are_bounded_and_end_with_a_word() -> None:
    assert images.slug("word " * 100) == "-".join(["word"] * 16)
    assert images.slug("x" * 300) == "x" * 80
    assert images.picture_stem("a cat", 5) == "a-cat-5"


def test_settings_come_back(tmp_path: Path) -> None:
    path = images.write_picture(picture(), tmp_path, "a", SETTINGS)
    assert path == tmp_path / "a.png"
    assert images.read_settings(path) == SETTINGS
    with Image.open(path) as stored:
        stored.load()
        assert stored.size == (16, 32)
        assert stored.info["parameters"].splitlines()[-2:] == [
            "Negative prompt: blur",
            "Steps: 20, Sampler: dpm++2m, CFG scale: 4.5, Seed: 7, Size: 16x32, Model: mini",
        ]
    assert list(tmp_path.iterdir()) == [path]


def test_a_taken_name_gets_a_counter(tmp_path: Path) -> None:
    colours = [(1, 1, 1), (2, 2, 2), (3, 3, 3)]
    paths = [images.write_picture(picture(c), tmp_path, "a", {}) for c in colours]
    assert [p.name for p in paths] == ["a.png", "a-2.png", "a-3.png"]
    for path, colour in zip(paths, colours, strict=True):
        with Image.open(path) as stored:
            assert stored.getpixel((0, 0)) == colour


@pytest.mark.parametrize("links", [True, False])
def test_writers_at_the_same_moment_do_not_clash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    threads = [
        threading.Thread(target=images.write_picture, args=(picture(), tmp_path, "a", {"seed": k}))
        for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = sorted(tmp_path.iterdir())
    assert len(written) == 8
    assert {images.read_settings(path)["seed"] for path in written} == set(range(8))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def interrupted(self: Image.Image, file: object, *_: object, **__: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises((KeyboardInterrupt, OutputError)):
        images.write_picture(picture(), tmp_path, "a", {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_found_first(tmp_path: Path) -> None:
    images.check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        images.check_writable(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot write a picture"):
        images.write_picture(picture(), tmp_path / "missing", "a", {})


def test_pictures_without_settings_say_so(tmp_path: Path) -> None:
    picture().save(tmp_path / "plain.png")
    with pytest.raises(InputError, match="holds no settings"):
        images.read_settings(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text(json.dumps(SETTINGS))
    with pytest.raises(InputError, match="cannot be read as a picture"):
        images.read_settings(tmp_path / "text.png")
    with pytest.raises(InputError, match="cannot be read as a picture"):
        images.read_settings(tmp_path / "missing.png")
    whole = images.write_picture(picture(), tmp_path, "whole", SETTINGS).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError):
        images.read_settings(tmp_path / "cut.png")
