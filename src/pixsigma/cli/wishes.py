"""From flags and prompt files to checked requests; nothing heavy is imported for a typing error."""

import json
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pixsigma.buckets import size_for_aspect
from pixsigma.cli.options import FLAGS
from pixsigma.errors import InputError
from pixsigma.guidance_options import GuidanceOptions
from pixsigma.hints import KIND
from pixsigma.requests import GenerationRequest, parse_prompt_file, request_from

if TYPE_CHECKING:
    from pixsigma.styles import Style

FIELDS = {
    "negative": "negative_prompt",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "sampler": "sampler",
    "seed": "seed",
    "num": "num_images",
    "clean": "clean_caption",
    "eta": "eta",
    "image": "image",
    "mask": "mask",
    "strength": "strength",
    "inpaint_crop": "inpaint_crop",
    "two_pass": "two_pass",
    "tiled": "tiled",
    "syntax": "prompt_syntax",
    "long_prompts": "long_prompts",
    "fast": "fast",
}
"""Flags to the fields of a request that they are."""

SETTING = ("model", "text_and_vae", "dtype", "quantize", "decode")
"""What a picture tells beside its request, and a flag sets."""


def given(context: typer.Context) -> set[str]:
    """The flags that were written, not left at their defaults."""
    found = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in found.items() if source and source.name == "COMMANDLINE"}


def wishes(flags: Mapping[str, Any], written: Collection[str]) -> dict[str, Any]:
    """The flags of `pixsigma generate` as fields of a Job; raises InputError.

    `written` are the names of the flags that stand on the command line.
    """
    if flags["again"] is not None:
        from pixsigma.cli.again import again  # brings torch with the reading of pictures

        return again(flags, written)
    settings = {field: flags[name] for name, field in FIELDS.items()}
    settings["guidance"] = parse_guide(flags["guide"] or [])
    settings["style"] = parse_style(flags["style"], flags["styles"])
    settings["loras"] = [parse_lora(text) for text in flags["lora"] or []]
    settings["control"] = parse_controls(flags["control"] or [], flags["controlnet"] or [])
    settings["regions"] = [parse_region(text) for text in flags["region"] or []]
    if flags["extend"] is not None:
        settings["extend"] = parse_extend(flags["extend"])
    return {
        "requests": wanted(
            flags["prompt"] or [], flags["prompts"], settings, flags["size"], flags["aspect"]
        ),
        "aspect": parse_aspect(flags["aspect"]),
        "device": flags["device"],
        **{name: flags[name] for name in SETTING},
    }


def signing(
    chain: Path | None, key: Path | None, timestamps: str | None
) -> tuple[Path, Path, str | None] | None:
    """What signs the pictures; raises InputError for half of it."""
    if chain is None or key is None:
        if chain or key or timestamps:
            raise InputError("--sign CERTS.pem and --sign-key KEY.pem go together")
        return None
    return chain, key, timestamps


def parse_extend(text: str) -> dict[str, int]:
    """Sides and pixels such as left=256,top=64; raises InputError."""
    sides: dict[str, int] = {}
    for part in text.split(","):
        side, _, pixels = (word.strip() for word in part.partition("="))
        if side not in ("left", "right", "top", "bottom") or not pixels.isdecimal():
            raise InputError(
                f"--extend must be sides and pixels such as left=256,top=64, got {text!r}"
            )
        if side in sides:
            raise InputError(f"--extend names {side} twice: {text!r}")
        sides[side] = int(pixels)
    return sides


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
        switch = GuidanceOptions.model_fields.get(name)
        if not given and switch is not None and switch.annotation is not bool:
            raise InputError(f"--guide {name} needs a value, such as {name}=1")
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


def parse_lora(text: str) -> dict[str, Any]:
    """A file and its weight; raises InputError for a weight that is not finite."""
    path, weight = parse_weighted(text, "--lora FILE:WEIGHT")
    return {"path": path} if weight is None else {"path": path, "weight": weight}


def parse_weighted(text: str, form: str) -> tuple[str, float | None]:
    """A file and its weight, None where there is none; raises InputError.

    What follows the last colon is a weight if it is a number, unless the whole is a file.
    """
    path, _, tail = text.rpartition(":")
    number = re.fullmatch(r"\s*[+-]?(\d+\.?\d*(e[+-]?\d+)?|\.\d+|inf|nan)\s*", tail.lower())
    # Path.exists raises for names that are too long.
    if not path or not number or os.path.exists(text):  # noqa: PTH110
        return text, None
    weight = float(tail)
    if not math.isfinite(weight):
        raise InputError(f"the weight in {form} must be finite, got {text!r}")
    return path, weight


def parse_controls(controls: Sequence[str], networks: Sequence[str]) -> list[dict[str, Any]]:
    """Hints, each with the file that follows it; raises InputError where one of the two lacks."""
    found = [parse_control(text) for text in controls]
    kinds = {control["kind"] for control in found}
    files: dict[str, str] = {}
    for text in networks:
        kind, path = parse_network(text)
        if kind in files:
            raise InputError(f"--controlnet has two files for {kind or 'all kinds'}: {text!r}")
        files[kind] = path
    if unused := sorted(files.keys() - kinds - {""}) or (not kinds and list(files.values())):
        raise InputError(f"--controlnet {unused[0]} follows no hint: give --control KIND:HINT too")
    for control in found:
        network = files.get(control["kind"], files.get(""))
        if network is None:
            raise InputError(
                f"nothing follows hints of kind {control['kind']}: give --controlnet FILE"
            )
        control["network"] = network
    return found


def parse_network(text: str) -> tuple[str, str]:
    """The kind of hints of KIND=FILE, none where it names none, and the file."""
    kind, named, path = text.partition("=")
    return (kind, path) if named and re.fullmatch(KIND, kind) else ("", text)


def parse_control(text: str) -> dict[str, Any]:
    """A hint such as edges:photo.png:0.8,ready,end=0.6; raises InputError."""
    form = "--control KIND:HINT[:WEIGHT][,ready][,start=0.1][,end=0.6]"
    kind, colon, rest = text.partition(":")
    found: dict[str, Any] = {"kind": kind}
    while option := re.fullmatch(r"(.+),(ready|(start|end)=([0-9.]+))", rest):
        rest, word, name, share = option.groups()
        try:
            found |= {name: float(share)} if name else {word: True}
        except ValueError as error:
            raise InputError(f"{form}: {share!r} is no number, in {text!r}") from error
    path, weight = parse_weighted(rest, form)
    if not (colon and re.fullmatch(KIND, kind) and path):
        raise InputError(f"a hint is {form}, got {text!r}")
    return found | {"hint": path} | ({} if weight is None else {"weight": weight})


def parse_region(text: str) -> dict[str, Any]:
    """A box in shares or a mask, a colon and a text: 0,0,0.5,1:a cat; raises InputError."""
    place, colon, prompt = text.partition(":")
    if not colon or not place.strip():
        raise InputError(f"--region is left,top,right,bottom:text or mask.png:text, got {text!r}")
    try:
        box = tuple(map(float, place.split(",")))
    except ValueError:
        return {"mask": place, "prompt": prompt.strip()}
    if len(box) != 4:
        raise InputError(f"a box of --region is left,top,right,bottom, got {place!r}")
    return {"box": box, "prompt": prompt.strip()}


def parse_pair(text: str, separator: str, flag: str) -> tuple[int, int]:
    """Two whole numbers such as 1024x768 or 16:9; raises InputError."""
    left, found, right = text.lower().replace("×", "x").partition(separator)
    if not (found and left.isdecimal() and right.isdecimal() and int(left) and int(right)):
        example = "1024x768" if separator == "x" else "16:9"
        raise InputError(f"{flag} must be width{separator}height such as {example}, got {text!r}")
    return int(left), int(right)
