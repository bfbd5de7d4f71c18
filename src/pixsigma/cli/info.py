"""`pixsigma info`: what a weights file, a model's folder or a picture is."""

from pathlib import Path
from typing import Annotated

import typer


def info(
    path: Annotated[Path, typer.Argument(help="Weights, a folder, or a picture drawn by us.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Tell what a weights file, a folder or a picture is."""
