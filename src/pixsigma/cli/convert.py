"""`pixsigma convert`: weights between the layouts of diffusers, the authors and a single file."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="What to read.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Where to write; must be new.")],
    to: Annotated[str, typer.Option(help="diffusers, pth or single.")],
) -> None:
    """Write weights in another layout, and read them back to compare every tensor."""
    from pixsigma.weights.convert import convert as convert_weights

    typer.echo(convert_weights(source, target, to=to))
