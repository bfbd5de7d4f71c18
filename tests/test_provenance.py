"""What a picture's file says of its making, in every kind of file, and read by others' readers."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from pixsigma import images, provenance
from pixsigma.errors import InputError

KINDS = [".png", ".jpg", ".jpeg", ".webp", ".JPG"]
SETTINGS: dict[str, Any] = {
    "prompt": 'ein Käfer 🐞 <rot> & "nass"\nzweite\tZeile \x01 \uffff </pixsigma:settings> {x}',
    "negative_prompt": "blur",
    "num_inference_steps": 20,
    "sampler": "dpm++2m",
    "guidance_scale": 4.5,
    "seed": 7,
    "width": None,
    "height": None,
    "model": "mini",
    "strength": 0.6,
}
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"


def written(folder: Path, suffix: str, settings: Any = SETTINGS, **options: Any) -> Path:
    picture = Image.new("RGB", (16, 32), (200, 30, 30))
    return images.write_picture(picture, folder, "a", settings, suffix=suffix, **options)


def mark(path: Path) -> str | None:
    """The mark as a reader of XML finds it."""
    with Image.open(path) as image:
        image.load()
        packet = image.info["xmp"]
    text = packet.decode() if isinstance(packet, bytes) else packet
    return ElementTree.fromstring(text).findtext(f".//{IPTC}")


@pytest.mark.parametrize("suffix", KINDS)
def test_settings_and_mark_come_back(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, suffix)
    assert path == tmp_path / f"a{suffix}"
    assert images.read_provenance(path) == (SETTINGS, "trainedAlgorithmicMedia")
    assert mark(path) == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", KINDS)
def test_without_settings_the_mark_stays(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, suffix, None)
    assert images.read_provenance(path) == (None, "trainedAlgorithmicMedia")
    content = path.read_bytes()
    for told in (b"blur", "blur".encode("utf-16-be"), b"Steps", b"dpm"):
        assert told not in content
    with pytest.raises(InputError, match="holds no settings"):
        images.read_settings(path)


@pytest.mark.parametrize("suffix", KINDS)
def test_galleries_find_their_text(tmp_path: Path, suffix: str) -> None:
    with Image.open(written(tmp_path, suffix)) as image:
        image.load()
        comment = image.getexif().get_ifd(0x8769).get(0x9286)
        text = image.info.get("parameters") or comment[8:].decode("utf-16-be")
        assert comment is None or comment[:8] == b"UNICODE\0"
    assert text.startswith("ein Käfer 🐞 <rot>")
    assert text.splitlines()[-2:] == [
        "Negative prompt: blur",
        "Steps: 20, Sampler: dpm++2m, CFG scale: 4.5, Seed: 7, Size: 16x32, Model: mini, "
        "Denoising strength: 0.6",
    ]


@pytest.mark.parametrize("suffix", KINDS)
def test_a_composite_says_so(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, suffix, source_type=provenance.COMPOSITE)
    assert (mark(path) or "").endswith("/compositeWithTrainedAlgorithmicMedia")
    assert images.read_provenance(path)[1] == provenance.COMPOSITE


@pytest.mark.parametrize("character", ["x", "&", "漢", "🐞", "\x01"])
def test_a_jpeg_holds_what_is_promised_and_refuses_more(tmp_path: Path, character: str) -> None:
    room = provenance.LONGEST_SETTINGS - 20
    fits = {"prompt": character * (room // len(json.dumps(character, ensure_ascii=False).encode()))}
    for suffix in (".jpg", ".webp"):
        assert images.read_settings(written(tmp_path, suffix, fits)) == fits
        with pytest.raises(InputError, match=r"has room for 10,000 bytes of settings.*PNG"):
            written(tmp_path, suffix, {"prompt": "x" * 20_000})
    long = {"prompt": "x" * 90_000}
    assert images.read_settings(written(tmp_path, ".png", long)) == long


def test_nothing_is_overwritten_in_any_kind(tmp_path: Path) -> None:
    names = [written(tmp_path, suffix).name for suffix in (".jpg", ".jpg", ".png")]
    assert names == ["a.jpg", "a-2.jpg", "a.png"]


def test_pictures_of_others_say_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    assert images.read_provenance(tmp_path / "a.jpg") == (None, None)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "3"])
def test_damaged_settings_are_no_crash(tmp_path: Path, text: str) -> None:
    inside = b"<pixsigma:settings>" + text.encode()[:50_000] + b"</pixsigma:settings>"
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg", xmp=inside)
    with pytest.raises(InputError, match=r"damaged|holds no settings"):
        images.read_settings(tmp_path / "a.jpg")


def test_only_pictures_that_we_write_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    with pytest.raises(InputError, match="cannot be read as a picture"):
        images.read_settings(tmp_path / "a.png")
