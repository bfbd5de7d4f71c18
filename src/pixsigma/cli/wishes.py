"""From flags and prompt files to checked requests; nothing heavy is imported for a typing error."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixsigma.buckets import size_for_aspect
from pixsigma.cli.options import FLAGS
from pixsigma.errors import InputError
from pixsigma.requests import GenerationRequest, parse_prompt_file, request_from

if TYPE_CHECKING:
    from pixsigma.styles import Style


def wanted(
    prompts: Sequence[str],
    file: Path | None,
    settings: dict[str, Any],
    size: str | None,
    aspect: str | None,
) -> list[GenerationRequest]:
    """The requests of one command, those of the command line first; raises InputError."""
    if not prompts and file is None:
        raise InputError("there is nothing to draw: give a prompt in quotes, or --prompts FILE")
    if size and aspect:
        raise InputError("give --size or --aspect, not both")
    if size:
        width, height = parse_pair(size, "x", "--size")
        settings = {**settings, "width": width, "height": height}
    requests = [request_from(FLAGS, **settings, prompt=prompt) for prompt in prompts]
    if file is not None:
        requests += parse_prompt_file(file, settings, FLAGS)
    return requests


def steering_settings(
    guide: Sequence[str], syntax: str, long_prompts: str, style: str | None, styles: Path | None
) -> dict[str, Any]:
    """The fields of a request that say how its text leads; raises InputError."""
    return {
        "guidance": parse_guide(guide),
        "prompt_syntax": syntax,
        "long_prompts": long_prompts,
        "style": parse_style(style, styles),
    }


def parse_guide(pairs: Sequence[str]) -> dict[str, Any]:
    """Settings of guidance, such as pag=3, layers=13,14 or apg; raises InputError.

    The names are the fields of GuidanceOptions; a name alone switches on.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, given, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if name in found:
            raise InputError(f"--guide has {name} twice")
        found[name] = parse_value(name, text) if given else True
    return found


def parse_value(name: str, text: str) -> Any:
    """A number, true, false or null as in JSON, numbers with commas for layers; else the word."""
    text = text.strip()
    try:
        return json.loads(f"[{text}]" if name == "layers" else text)
    except json.JSONDecodeError:
        return text


def parse_style(name: str | None, file: Path | None) -> "str | Style | None":
    """The name of a style of ours, or the style itself where it is in the person's own file."""
    from pixsigma.styles import read_styles, style_named

    if file is None:
        return name
    if name is None:
        raise InputError("--styles FILE says where styles are; choose one with --style NAME")
    own = read_styles(file)
    style_named(name, own)
    return own.get(name, name)


def parse_aspect(text: str | None) -> tuple[int, int] | None:
    """Width and height of a shape such as 16:9; raises InputError, SizeError beyond 1:4 and 4:1."""
    if text is None:
        return None
    width, height = parse_pair(text, ":", "--aspect")
    size_for_aspect(1024, width, height)
    return width, height


def parse_pair(text: str, separator: str, flag: str) -> tuple[int, int]:
    """Two whole numbers such as 1024x768 or 16:9; raises InputError."""
    left, found, right = text.lower().replace("×", "x").partition(separator)
    if not (found and left.isdecimal() and right.isdecimal() and int(left) and int(right)):
        example = "1024x768" if separator == "x" else "16:9"
        raise InputError(f"{flag} must be width{separator}height such as {example}, got {text!r}")
    return int(left), int(right)
