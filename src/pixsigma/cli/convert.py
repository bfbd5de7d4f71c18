"""`pixsigma convert`: weights between the layouts of diffusers, the authors and a single file."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Layout(StrEnum):
    """What weights can be written as."""

    DIFFUSERS = "diffusers"
    PTH = "pth"
    SINGLE = "single"
    TEXT_INT8 = "text-int8"


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder, a file or a known name.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="What to write; must be new.")],
    to: Annotated[
        Layout,
        typer.Option(help="A folder, the authors' .pth, one file; or the text encoder in 8 bits."),
    ],
) -> None:
    """Write a transformer in another layout, compared tensor by tensor; or a smaller T5."""
    from pixsigma.errors import OutputError

    if target.exists():
        raise OutputError(f"{target} exists already and is not overwritten; give a new name")
    from pixsigma.weights.build import resolve

    if to is Layout.TEXT_INT8:
        from pixsigma.weights.text_int8 import save_int8_text

        save_int8_text(resolve(source, ["text_encoder"]), target)
        typer.echo(f"{target}  its matrices in 8 bits, tokenizer beside it")
    else:
        typer.echo(converted(resolve(source, ["transformer"]), target, to))
        typer.echo(f"draw with it: pixsigma generate … --model {target} --text-and-vae {source}")


def converted(source: Path, target: Path, to: Layout) -> str:
    """Write a transformer; returns what to say of it."""
    from pixsigma.cli.names import size
    from pixsigma.weights.convert import SUFFIXES
    from pixsigma.weights.convert import convert as convert_weights
    from pixsigma.weights.info import describe

    written = convert_weights(source, target, next(name for name in SUFFIXES if name == to.value))
    transformer = describe(written).parts[0]
    return (
        f"{written}  {transformer.num_parameters:,} parameters, {transformer.precision}, "
        f"{size(transformer.num_bytes)}; all tensors compared equal"
    )
