"""What a picture's file says of its making: settings, the text that galleries read, the AI mark.

PNG holds the settings as JSON in a text chunk of its own, JPEG and WebP in their XMP packet. The
mark is IPTC's digital source type (IPTC Photo Metadata Standard, "Digital Source Type"), in XMP in
all three.
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape, unescape

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pixsigma.errors import InputError

SETTINGS_KEY = "pixsigma"
"""Name of the PNG text chunk that holds the settings as JSON."""

KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Endings of the files that are written, and what PIL calls them."""

MADE = "trainedAlgorithmicMedia"
"""IPTC: created by a model from sampled content."""

COMPOSITE = "compositeWithTrainedAlgorithmicMedia"
"""IPTC: a picture with parts by a model, such as inpainting and outpainting."""

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
"""Where IPTC's terms live; the mark is this and a term."""

LONGEST_SETTINGS = 10_000
"""Bytes of settings that JPEG surely takes: a segment has 65,533, and escapes need room."""

_QUALITY = 95
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286

_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:pixsigma="https://pypi.org/project/pixsigma/">
   <Iptc4xmpExt:DigitalSourceType>{mark}</Iptc4xmpExt:DigitalSourceType>{settings}
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


def save_options(
    kind: str,
    settings: Mapping[str, Any] | None,
    size: Mapping[str, int],
    source_type: str = MADE,
) -> dict[str, Any]:
    """What `Image.save` is to be given for a file of `kind` (PNG, JPEG or WEBP).

    `size` is the picture's `width` and `height`, for the text alone: in the settings they are what
    was asked for. `settings` None leaves them out; the mark stays. Raises InputError where a JPEG
    has no room.
    """
    parameters = None if settings is None else parameters_text({**settings, **size})
    if kind == "PNG":
        return {"pnginfo": _png_info(settings, parameters, source_type)}
    check_room(kind, settings)
    options: dict[str, Any] = {"quality": _QUALITY, "xmp": packet(source_type, settings)}
    if kind == "JPEG":
        options["subsampling"] = 0
    if parameters is not None:
        options["exif"] = _user_comment(parameters)
    return options


def check_room(kind: str, settings: Mapping[str, Any] | None, spare: int = 0) -> None:
    """Raise InputError for settings too long for this kind of file with `spare` bytes to come."""
    num = len(_json(settings or {}).encode()) + spare
    if kind != "PNG" and num > LONGEST_SETTINGS:
        raise InputError(
            f"{kind} has room for {LONGEST_SETTINGS:,} bytes of settings, these are {num:,}; "
            "write a PNG, or leave them out with --no-metadata"
        )


def packet(source_type: str, settings: Mapping[str, Any] | None = None) -> bytes:
    """An XMP packet with the mark, and the settings where given."""
    told = ""
    if settings is not None:
        # ASCII alone: XML has no way to write some characters that a prompt may hold
        text = escape(json.dumps(settings, ensure_ascii=True))
        told = f"\n   <pixsigma:settings>{text}</pixsigma:settings>"
    return _PACKET.format(mark=SOURCE_TYPES + source_type, settings=told).encode()


def embedded(image: Image.Image) -> tuple[dict[str, Any] | None, str | None]:
    """The settings and IPTC's term inside a loaded picture, None where it has none.

    Raises InputError for damaged settings.
    """
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    text = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp)
    # no XML parser: what is read may come from anyone
    mark = re.search(rf"{re.escape(SOURCE_TYPES)}(\w+)", text)
    inside = re.search(r"<pixsigma:settings>(.*?)</pixsigma:settings>", text, re.DOTALL)
    written = image.info.get(SETTINGS_KEY)
    if written is None and inside is not None:
        written = unescape(inside[1])
    return _parsed(written), mark[1] if mark else None


def parameters_text(settings: Mapping[str, Any]) -> str:
    """The settings in the form that AUTOMATIC1111's web UI made common."""
    lines = [str(settings.get("prompt", ""))]
    if settings.get("negative_prompt"):
        lines.append(f"Negative prompt: {settings['negative_prompt']}")
    facts = {
        "Steps": settings.get("num_inference_steps"),
        "Sampler": settings.get("sampler"),
        "CFG scale": settings.get("guidance_scale"),
        "Seed": settings.get("seed"),
        "Size": f"{settings.get('width')}x{settings.get('height')}",
        "Model": settings.get("model"),
        "Denoising strength": settings.get("strength"),
    }
    lines.append(
        ", ".join(f"{name}: {value}" for name, value in facts.items() if value is not None)
    )
    return "\n".join(lines).replace("\0", " ").encode("utf-8", "replace").decode()


def _png_info(
    settings: Mapping[str, Any] | None, parameters: str | None, source_type: str
) -> PngInfo:
    info = PngInfo()
    if settings is not None and parameters is not None:
        info.add_itxt(SETTINGS_KEY, _json(settings))
        info.add_text("parameters", parameters)
    info.add_itxt("XML:com.adobe.xmp", packet(source_type).decode())
    return info


def _user_comment(text: str) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    return exif.tobytes()


def _json(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, ensure_ascii=False)
    # a file name that is no text has halves of characters, which only escapes can write
    return text if text.encode("utf-8", "replace").decode() == text else json.dumps(settings)


def _parsed(text: Any) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        settings = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"the settings inside are damaged: {error}") from error
    return settings if isinstance(settings, dict) else None
