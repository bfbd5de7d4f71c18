"""`pixsigma styles`: the named styles, ours and the person's own."""

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer


def styles(
    file: Annotated[
        Path | None, typer.Option("--styles", metavar="FILE", help="A TOML file of your own.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a style.")] = False,
) -> None:
    """List the styles that `pixsigma generate --style NAME` knows."""
    from pixsigma.styles import read_styles
    from pixsigma.styles import styles as ours

    known = ours() | (read_styles(file) if file else {})
    width = max(map(len, known))
    for name, style in known.items():
        if json:
            typer.echo(jsonlib.dumps({"name": name, **style.model_dump()}, ensure_ascii=False))
        else:
            without = f"  (without {style.negative_prompt})" if style.negative_prompt else ""
            typer.echo(f"{name:<{width}}  {style.prompt}{without}")
