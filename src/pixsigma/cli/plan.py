"""`pixsigma plan`: what a picture would take of this machine, before anything loads."""

import dataclasses
import json as jsonlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixsigma.cli import options

if TYPE_CHECKING:
    from pixsigma.memory import Plan


def plan(
    model: options.Model = "mini",
    size: options.Size = None,
    steps: options.Steps = 20,
    guidance: options.Guidance = None,
    tokens: Annotated[int, typer.Option(min=1, help="Of the prompt.")] = 77,
    memory: options.Memory = None,
    decode: options.Decode = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    text_and_vae: options.TextAndVae = None,
    controlnet: options.ControlNet = None,
    json: options.JsonOnce = False,
) -> None:
    """Tell where each part would be, peak memory and time, and what would lessen them."""
    from pixsigma.buckets import check_size
    from pixsigma.cli.fitting import choose_dtype, plan_for
    from pixsigma.cli.wishes import parse_network, parse_pair
    from pixsigma.placement import choose_device

    place = choose_device(device)
    sides = parse_pair(size, "x", "--size") if size else None
    if sides:
        check_size(*sides)
    made = plan_for(
        model,
        size=sides,
        device=place,
        dtype=choose_dtype(dtype, place),
        memory=memory,
        decode=decode,
        text_and_vae=text_and_vae,
        controlnets=[parse_network(text)[1] for text in controlnet or []],
        steps=steps,
        guidance=guidance,
        tokens=tokens,
        measure=True,
    )
    typer.echo(jsonlib.dumps(as_json(made), ensure_ascii=False) if json else as_text(made))
    if not made.fits:
        raise typer.Exit(1)


def as_json(made: "Plan") -> dict[str, Any]:
    """Everything in plain data; bytes and seconds."""
    return {
        "model": made.name,
        "width": made.wish.width,
        "height": made.wish.height,
        "steps": made.wish.steps,
        "parts": [dataclasses.asdict(part) for part in made.parts],
        "placement": made.placement,
        "stream_text": made.stream_text,
        "decode": made.decode,
        "peak_bytes": made.peak,
        "memory_bytes": made.machine.memory,
        "fits": made.fits,
        "seconds": made.seconds,
        "advice": list(made.advice),
    }


def as_text(made: "Plan") -> str:
    """A table, the sums, and the advice."""
    from pixsigma.cli.names import size

    head = ("part", "where", "precision", "weights", "at work", "time")
    rows = [
        (
            part.name,
            f"{part.device}, {part.way}",
            part.precision,
            size(part.weights),
            size(part.work),
            seconds(part.seconds),
        )
        for part in made.parts
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    verdict = "of" if made.fits else "which is more than the"
    wish = made.wish
    lines.append(
        f"{made.name}, {wish.width}x{wish.height}, {wish.steps} steps: peak "
        f"{size(made.peak)} {verdict} {size(made.machine.memory)} on {made.machine.device}, "
        f"about {seconds(made.seconds)} without loading"
    )
    return "\n".join([*lines, *made.advice])


def seconds(num: float | None) -> str:
    """A time for people; an estimate needs two digits."""
    if num is None:
        return "unknown"
    if num >= 90:
        return f"{num / 60:.2g} min" if num < 5400 else f"{num / 3600:.2g} h"
    return f"{num:.2g} s"
