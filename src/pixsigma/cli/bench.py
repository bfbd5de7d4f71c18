"""`pixsigma bench`: how fast one step is here, ours beside diffusers where it is installed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixsigma.cli import options
from pixsigma.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from pixsigma.comparing import Task
    from pixsigma.measuring import Timing
    from pixsigma.models.transformer import PixArtTransformer


def bench(
    model: options.Model = "mini",
    size: options.Size = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 20,
    rounds: Annotated[int, typer.Option(help="Rounds that count, taken in turns.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder for bench.json and bench.png.")] = Path("bench"),
    json: options.JsonOnce = False,
) -> None:
    """Time one guided step on the CPU: ours, ours in 8 bits, diffusers if it is installed."""
    if rounds < 1 or not 1 <= tokens <= 300:
        raise InputError(
            f"bench takes a round or more and 1 to 300 tokens, got {rounds} and {tokens}"
        )
    from pixsigma.comparing import Task
    from pixsigma.images import check_writable
    from pixsigma.measuring import Machine, as_json, bars, columns, write_report

    network, side, factor = load(model, size)
    check_writable(out)
    rows, ratios = measured(network, Task.of(network.config, side, tokens, factor=factor), rounds)
    report = {"model": model, "size": side, "tokens": tokens, "variants": rows}
    write_report(out / "bench.json", report)
    title = f"One guided step of {model} at {side}px"
    bars(out / "bench.png", {f"{side}px": ratios}, title=title, label="times as fast as the first")
    if json:
        typer.echo(as_json(report))
        return
    typer.echo(f"{Machine.here()}\n{title}, {tokens} tokens, {rounds} rounds in turns\n")
    typer.echo(columns([told(name, row) for name, row in rows.items()]))
    typer.echo(f"\n{out / 'bench.json'}, {out / 'bench.png'}")


def load(model: str, size: str | None) -> "tuple[PixArtTransformer, int, int]":
    """The transformer in full precision, the side in pixels, and how many a latent has."""
    from pixsigma.buckets import check_size
    from pixsigma.cli.wishes import parse_pair
    from pixsigma.weights.build import load_components

    components = load_components(model, parts=["transformer"])
    assert components.transformer is not None
    factor = components.resolution // components.transformer.config.sample_size
    if size is None:
        return components.transformer, components.resolution, factor
    width, height = parse_pair(size, "x", "--size")
    if width != height:
        raise InputError(f"bench draws squares: give --size {width}x{width}, got {size}")
    check_size(width, height, factor * components.transformer.config.patch_size)
    return components.transformer, width, factor


def measured(
    network: "PixArtTransformer", task: "Task", rounds: int
) -> "tuple[dict[str, Any], dict[str, Timing]]":
    """Each variant's times and error, and its speed beside the first one's."""
    from pixsigma.measuring import interleaved, relative_error

    steps = variants(network, task)
    outputs = {name: step() for name, step in steps.items()}
    expected = next(iter(outputs.values()))
    times = interleaved(steps, rounds, warm=0)
    base = next(iter(times.values()))
    ratios = {name: base.over(timing) for name, timing in times.items()}
    rows = {
        name: times[name].told()
        | {"faster": ratios[name].told(), "error": relative_error(outputs[name], expected)}
        for name in steps
    }
    return rows, ratios


def variants(network: "PixArtTransformer", task: "Task") -> "dict[str, Callable[[], Tensor]]":
    """What is compared; the first is what the others are measured by."""
    from pixsigma.comparing import in_diffusers, step_of_diffusers, step_of_ours
    from pixsigma.models.quantized import supported
    from pixsigma.quantize import is_quantized, quantized
    from pixsigma.weights.quantized import CPU_MODES

    if is_quantized(network):
        return {"ours, quantised": step_of_ours(network, task)}
    found = {"ours": step_of_ours(network, task)}
    if supported():
        found |= {
            f"ours {mode}": step_of_ours(quantized(network, mode), task) for mode in CPU_MODES
        }
    try:
        theirs = step_of_diffusers(in_diffusers(network), task)
    except (InputError, MissingExtraError) as error:
        typer.echo(f"diffusers is left out: {error}", err=True)
        return found
    return {"diffusers": theirs, **found}


def told(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    return {
        "variant": name,
        "seconds": row["median"],
        "quartiles": f"{row['low']:.3g} to {row['high']:.3g}",
        "times as fast": row["faster"]["median"],
        "relative error": f"{row['error']:.1e}",
    }
