"""`pixsigma info`: what a weights file, a model's folder or a picture is."""

import dataclasses
import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixsigma.cli import options
from pixsigma.errors import InputError

if TYPE_CHECKING:
    from pixsigma.weights.info import WeightsInfo


def info(
    name: Annotated[
        str, typer.Argument(metavar="PATH", help="Weights, a folder, mini, or a picture of ours.")
    ],
    json: options.JsonOnce = False,
) -> None:
    """Tell what a weights file, a folder or a picture is."""
    if Path(name).suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
        facts = picture_facts(Path(name))
        typer.echo(jsonlib.dumps(facts, ensure_ascii=False) if json else table(facts))
        return
    from pixsigma.weights.build import resolve
    from pixsigma.weights.info import describe
    from pixsigma.weights.locate import FileChoice

    known = describe(resolve(name, ["transformer"], FileChoice(offline=True)))
    if json:
        typer.echo(jsonlib.dumps(dataclasses.asdict(known), default=str))
    else:
        typer.echo(table(told(known)))


def picture_facts(path: Path) -> dict[str, Any]:
    """What a picture says of its making; raises InputError where it says nothing."""
    from pixsigma.errors import MissingExtraError
    from pixsigma.images import read_credentials, read_provenance

    settings, source_type = read_provenance(path)
    facts: dict[str, Any] = {"digital_source_type": source_type}
    try:
        signed = read_credentials(path)
        facts |= {f"c2pa_{name}": value for name, value in (signed or {}).items()}
    except MissingExtraError as error:
        facts["c2pa_state"] = f"not read: {error}"
    if settings is None and source_type is None:
        raise InputError(f"{path} holds no settings; pixsigma writes them into its own pictures")
    return {**(settings or {}), **facts}


def told(known: "WeightsInfo") -> dict[str, Any]:
    """What a person wants to know of weights."""
    from pixsigma.cli.names import size

    compressed = known.kv_compression
    facts: dict[str, Any] = {
        "path": f"{known.path} ({known.kind}, {size(known.bytes_on_disk)})",
        "variant": f"{known.variant}, {known.resolution}px",
        "transformer": f"{known.num_layers} layers, width {known.width}, "
        f"{known.num_attention_heads} heads",
        "names": known.names,
        "qk norm": "yes" if known.qk_norm else "no",
        "KV compression": f"{compressed.ratio}x in layers {', '.join(map(str, compressed.layers))}"
        if compressed
        else "no",
    }
    for part in known.parts:
        facts[f"{part.name} weights"] = (
            f"{part.num_parameters:,} parameters, {part.precision}, {size(part.num_bytes)}"
        )
    return facts | {"memory needed": f"about {size(known.bytes_in_memory)}"}


def table(facts: dict[str, Any]) -> str:
    """Names and values in two columns, without what is not set."""
    width = max(map(len, facts), default=0)
    rows = {name: value for name, value in facts.items() if value not in (None, "", [])}
    return "\n".join(
        f"{name.replace('_', ' '):<{width}}  {shown(value)}" for name, value in rows.items()
    )


def shown(value: Any) -> str:
    """A value for people: of settings inside settings what is set."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{k} {v}" for k, v in value.items() if v not in (None, False, 0, [])) or "no"
