"""`pixsigma prepare`: pictures and captions to features, once."""

import json as jsonlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixsigma.cli import options

if TYPE_CHECKING:
    from pixsigma.datatools.prepare import Settings, Work

TOLD = ("num_rows", "num_rejects", "num_cut_captions", "resolution", "buckets")
"""What of the index is told at the end."""


Hints = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="For a ControlNet: edges, made of the pictures, or what lies beside them as "
        "NAME.KIND.png; for an image prompt: picture.",
    ),
]
NumWorkers = Annotated[int | None, typer.Option(help="Processes that decode; default: one a core.")]


def prepare(
    data: Annotated[
        str,
        typer.Argument(help="Folder, .jsonl, .parquet, .tar shards, or the authors' layout."),
    ],
    out: Annotated[Path, typer.Argument(help="A folder to write, or to go on with.")],
    model: Annotated[
        str, typer.Option(help="Whose text encoder and autoencoder: as for generate.")
    ] = "mini",
    resolution: Annotated[
        int | None, typer.Option(help="Side in pixels; default: the model's own.")
    ] = None,
    square: Annotated[bool, typer.Option("--square", help="One bucket, no aspect ratios.")] = False,
    min_bucket: Annotated[
        int, typer.Option(help="Smaller buckets go to their neighbours: your batch size.")
    ] = 1,
    max_aspect: Annotated[float, typer.Option(help="Longest side over shortest.")] = 4.5,
    max_enlarge: Annotated[float, typer.Option(help="Smaller pictures are not used.")] = 2.0,
    max_tokens: Annotated[
        int | None, typer.Option(help="Of a caption; default: the model's own.")
    ] = None,
    official_features: Annotated[
        bool, typer.Option("--official-features", help="Read the authors' .npy and .npz.")
    ] = False,
    hints: Hints = None,
    batch: Annotated[int, typer.Option(help="Pictures that are encoded together.")] = 8,
    workers: NumWorkers = None,
    device: options.Device = "auto",
    dtype: Annotated[str, typer.Option(help="auto (fp32), fp32, fp16 or bf16.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Look at pictures and captions, encode them once, report what they are."""
    from pixsigma.errors import InputError

    num_workers = (os.cpu_count() or 1) if workers is None else workers
    if batch < 1 or num_workers < 0 or (max_tokens is not None and max_tokens < 1):
        raise InputError("--batch and --max-tokens must be at least 1, --workers at least 0")
    from pixsigma.cli.fitting import DTYPES, choose_dtype
    from pixsigma.datatools.prepare import Settings, Work
    from pixsigma.placement import choose_device

    place = choose_device(device)
    precision = DTYPES["fp32"] if dtype == "auto" else choose_dtype(dtype, place)
    settings = Settings(
        data=data,
        model=model,
        resolution=resolution,
        square=square,
        max_aspect=max_aspect,
        max_enlarge=max_enlarge,
        min_bucket=min_bucket,
        max_tokens=max_tokens,
        dtype=str(precision).removeprefix("torch."),
        official_features=official_features,
        hints=hints,
    )
    work = Work(workers=num_workers, batch_size=batch, device=place)
    tell(run(settings, out, work, quiet), out, json, quiet)


def run(settings: "Settings", out: Path, work: "Work", quiet: bool) -> dict[str, Any]:
    """Prepare with a bar on stderr; return the index."""
    from pixsigma.cli.progress import progress_bar
    from pixsigma.data.shards import read_index
    from pixsigma.datatools.prepare import prepare as stages

    with progress_bar(quiet) as bar:
        task = bar.add_task("", total=None, count="")
        for progress in stages(settings, out, work):
            count = f"{progress.done}/{progress.total}" if progress.total else ""
            bar.update(task, description=progress.stage, completed=progress.done, count=count)
            bar.tasks[0].total = progress.total
    return read_index(out)


def tell(index: dict[str, Any], out: Path, json: bool, quiet: bool) -> None:
    """Say on stdout what there is to train on."""
    report = out / "report.html"
    if json:
        facts = {key: index[key] for key in TOLD}
        line = jsonlib.dumps({"path": str(out), "report": str(report), **facts})
    elif quiet:
        line = str(out)
    else:
        line = (
            f"{out}  {index['num_rows']:,} pictures in {len(index['buckets'])} "
            f"bucket{'s' * (len(index['buckets']) != 1)}, "
            f"{index['num_rejects']:,} not used; see {report}"
        )
    typer.echo(line)
