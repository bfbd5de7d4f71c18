"""`pixsigma models`: what is known by name, and what lies on this machine's disk."""

import dataclasses
import json as jsonlib
from dataclasses import dataclass
from typing import Annotated

import typer

from pixsigma.cli.names import INSIDE, size


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One line of the list."""

    name: str
    side: int | None
    """Native side in pixels; None where only the folder knows."""
    hub: str | None
    """Where it comes from; None for the model inside."""
    bytes_on_disk: int
    """In the cache of the hub, or inside the package; 0 where it would be fetched first."""


def models(
    json: Annotated[bool, typer.Option("--json", help="One JSON object a model.")] = False,
) -> None:
    """List the models that have a name, and those on disk."""
    for model in listed():
        if json:
            typer.echo(jsonlib.dumps(dataclasses.asdict(model)))
        else:
            side = f"{model.side}px" if model.side else ""
            where = (
                f"on disk, {size(model.bytes_on_disk)}" if model.bytes_on_disk else "not on disk"
            )
            source = model.hub or "inside this package"
            typer.echo(f"{model.name:<12} {side:>7}  {source:<42}  {where}")


def listed() -> list[Listed]:
    """The presets, then what else of PixArt the hub's cache holds."""
    from pixsigma.presets import PRESETS

    cached = cached_repositories()
    rows = []
    for preset in PRESETS.values():
        stored = cached.pop(preset.hub, 0) if preset.hub else inside()
        rows.append(
            Listed(name=preset.name, side=preset.resolution, hub=preset.hub, bytes_on_disk=stored)
        )
    others = sorted((name, num) for name, num in cached.items() if "pixart" in name.lower())
    rows += [Listed(name=n, side=None, hub=n, bytes_on_disk=num) for n, num in others]
    return rows


def cached_repositories() -> dict[str, int]:
    """Hub name to bytes in the local cache."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return {}
    return {repo.repo_id: repo.size_on_disk for repo in cache.repos if repo.repo_type == "model"}


def inside() -> int:
    """Bytes of the transformer, text encoder and autoencoder that the package carries."""
    return sum(file.stat().st_size for file in INSIDE.glob("*/*.safetensors"))
