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


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder, a file or a known name.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="What to write; must be new.")],
    to: Annotated[
        Layout, typer.Option(help="A folder, the authors' .pth, or one .safetensors file.")
    ],
) -> None:
    """Write a transformer in another layout; every tensor is read back and compared."""
    from pixsigma.cli.names import size
    from pixsigma.errors import OutputError

    if target.exists():
        raise OutputError(f"{target} exists already and is not overwritten; give a new name")
    from pixsigma.weights.build import resolve
    from pixsigma.weights.convert import convert as convert_weights
    from pixsigma.weights.info import describe

    written = convert_weights(resolve(source, ["transformer"]), target, to.value)
    transformer = describe(written).parts[0]
    typer.echo(
        f"{written}  {transformer.num_parameters:,} parameters, {transformer.precision}, "
        f"{size(transformer.num_bytes)}; all tensors compared equal"
    )
