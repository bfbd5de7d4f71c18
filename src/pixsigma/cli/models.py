"""`pixsigma models`: what is known by name, and what lies on this machine's disk."""

from typing import Annotated

import typer


def models(
    json: Annotated[bool, typer.Option("--json", help="One JSON object a model.")] = False,
) -> None:
    """List the models that have a name, and those on disk."""
