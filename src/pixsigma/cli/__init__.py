"""The command line: parse, build, run, save.

A command `name` is the function `name` of the module `pixsigma.cli.name`, imported when it is asked
for; these modules import torch and pydantic only when they run, so that help comes at once.
"""

import importlib
import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pixsigma._version import __version__
from pixsigma.cli.report import DEBUG_VARIABLE, reported

COMMANDS = (
    "generate",
    "models",
    "styles",
    "info",
    "plan",
    "convert",
    "prepare",
    "train",
    "evaluate",
    "bench",
    "serve",
)
"""In the order of the help page."""


class Commands(TyperGroup):
    """The table of commands; errors of ours leave it as one line and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names for the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import the command's module; None for a name that is not in the table."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"pixsigma.cli.{cmd_name}")
        single = typer.Typer(add_completion=False)
        single.command(cmd_name)(getattr(module, cmd_name))
        return typer.main.get_command(single)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with reported():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False
)
"""What `pixsigma` runs."""


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pixsigma {__version__}")
        raise typer.Exit


@app.callback()
def pixsigma(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Show tracebacks, as {DEBUG_VARIABLE}=1 does.")
    ] = False,
) -> None:
    """Text to pictures with PixArt-Σ: a small model is inside, published weights fit too."""
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"
