"""`pixsigma prepare`: read downwards. A generator, so that the door owns the progress bar."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from pixsigma.buckets import AspectTable, training_table
from pixsigma.data.manifest import Row, fingerprint, read_lines
from pixsigma.data.shards import FORMAT, INDEX, NULL
from pixsigma.data.sources import read_rows
from pixsigma.data.transforms import FINE_FROM
from pixsigma.datatools.encode import Encoders, Shard, encode_shards
from pixsigma.datatools.report import write_report
from pixsigma.datatools.scan import Limits, Reject, scan, settle_buckets
from pixsigma.datatools.workers import Workers
from pixsigma.errors import InputError, OutputError
from pixsigma.given import expanded
from pixsigma.hints import KIND
from pixsigma.weights.build import load_components, resolve
from pixsigma.weights.files import atomic_write, read_json, save_tensors, write_json
from pixsigma.weights.folder import folder_tokens, read_autoencoder, read_text_encoder

SETTINGS, ROWS, REJECTS, REPORT = "prepare.json", "rows.jsonl", "rejects.jsonl", "report.html"
"""Files in the folder beside the shards, the index and the empty caption."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the features; a run with others needs a folder of its own."""

    data: str
    model: str = "mini"
    resolution: int | None = None
    """Native side in pixels; the model's own where None."""
    square: bool = False
    """One bucket, as at 256 pixels in the paper's first stage."""
    max_aspect: float = 4.5
    max_enlarge: float = 2.0
    min_bucket: int = 1
    """Buckets with fewer pictures give them to the nearest bucket that has enough."""
    max_tokens: int | None = None
    """Of a caption; the model's own where None."""
    dtype: str = "float32"
    """What the networks compute in."""
    official_features: bool = False
    """Whether to read the authors' `.npy` and `.npz` in place of encoding."""
    hints: str | None = None
    """What a ControlNet is to follow: edges are made of each picture, hints of any other kind lie
    beside it, `a.depth.png` beside `a.jpg`."""

    def __post_init__(self) -> None:
        if self.max_aspect < 1 or self.max_enlarge <= 0 or self.min_bucket < 1:
            raise InputError(
                "max_aspect must be at least 1, max_enlarge above 0 and min_bucket at least 1, "
                f"got {self.max_aspect:g}, {self.max_enlarge:g} and {self.min_bucket}"
            )
        if self.hints is not None and not re.fullmatch(KIND, self.hints):
            raise InputError(f"hints are of a kind such as edges or depth, got {self.hints!r}")
        if self.hints is not None and self.official_features:
            raise InputError("hints are made beside pictures, the authors' features have none")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What decides only how fast it goes; may change from run to run in one folder."""

    device: torch.device
    workers: int = 0
    """Processes that decode; with 0 this one does it."""
    batch_size: int = 8
    shard_bytes: int = 256 * 10**6
    """Size of a shard at most, unless a single row has more; fixed with the first run."""


@dataclass(frozen=True)
class Progress:
    """What a run says now and then."""

    stage: str
    done: int = 0
    total: int | None = None


def prepare(settings: Settings, out: Path, work: Work) -> Iterator[Progress]:
    """Look at every picture, encode it once, write shards, index and report into `out`.

    A run that was stopped goes on with the first shard that is not there. Raises InputError where
    nothing can be used or `out` holds other settings, WeightsError, OutputError, NotFiniteError.
    """
    if "://" not in settings.data:
        settings = replace(settings, data=str(expanded(settings.data).absolute()))
    yield Progress(f"loading {settings.model}")
    encoders, resolution = load_encoders(settings, work)
    settings = replace(settings, resolution=resolution, max_tokens=encoders.max_tokens)
    table = training_table(resolution, square=settings.square, multiple=encoders.multiple)
    yield Progress("listing")
    stored = resolution if settings.official_features else 0
    listed = list(read_rows(settings.data, resolution=stored, square=settings.square))
    if settings.hints is not None:
        listed = [row for row in listed if not row.path.endswith(f".{settings.hints}.png")]
    plan = settle_settings(settings, fingerprint(listed), out, work)
    for half in out.glob(".*.tmp"):  # what a kill in the midst of writing leaves
        half.unlink()
    with Workers(work.workers) as workers:
        if not (out / ROWS).is_file():
            yield from look(listed, settings, table, workers, out)
        rows = [Row.from_json(values) for _, values in read_lines(out / ROWS)]
        buckets = settle_buckets(rows, table, settings.min_bucket)
        shards = plan_shards(buckets, table, encoders, resolution, work.shard_bytes)
        shards = [replace(shard, hints=settings.hints) for shard in shards]
        missing = [shard for shard in shards if not is_written(out / shard.name, plan)]
        done = len(rows) - sum(len(shard.rows) for shard in missing)
        yield Progress("encoding", done, len(rows))
        for num in encode_shards(missing, out, plan, encoders, workers):
            done += num
            yield Progress("encoding", done, len(rows))
    save_tensors(encoders.null(), out / NULL)
    index = make_index(settings, shards, encoders, out)
    write_report(out / REPORT, index, rows, table, read_rejects(out))
    write_json(out / INDEX, index)  # last: its presence says that all is there


def load_encoders(settings: Settings, work: Work) -> tuple[Encoders, int]:
    """The text encoder and the autoencoder of a model, and the resolution to prepare for."""
    dtype = getattr(torch, settings.dtype)
    path = resolve(settings.model, ["text_encoder", "autoencoder"])
    bare = all((path / part).is_dir() for part in ("text_encoder", "vae"))
    if bare and settings.resolution:
        # a folder without a transformer will do: there may be none yet
        text = read_text_encoder(path, dtype=dtype)
        vae, tokens, side = read_autoencoder(path, dtype=dtype), folder_tokens(path), 0
    else:
        parts = load_components(path, dtype=dtype, parts=["text_encoder", "autoencoder"])
        assert parts.text_encoder is not None and parts.autoencoder is not None
        text, vae = parts.text_encoder, parts.autoencoder
        tokens, side = parts.max_tokens, parts.resolution
    text.encoder.to(work.device)
    vae.to(work.device)
    encoders = Encoders(
        text=text,
        autoencoder=vae,
        max_tokens=settings.max_tokens or tokens,
        device=work.device,
        batch_size=work.batch_size,
    )
    return encoders, settings.resolution or side


def settle_settings(settings: Settings, listing: str, out: Path, work: Work) -> str:
    """Write the settings into a new folder, or compare with those of its shards; return their hash.

    Raises InputError that names what differs, OutputError for a folder that is not ours.
    """
    values = asdict(settings) | {"listing": listing, "shard_bytes": work.shard_bytes}
    path = out / SETTINGS
    if path.is_file():
        there = read_json(path)
        changed = [key for key in values if there.get(key) != values[key]]
        if changed and not any(out.glob("*.safetensors")):  # nothing was encoded: begin anew
            for name in (ROWS, REJECTS):
                (out / name).unlink(missing_ok=True)
            write_json(path, values)
            changed = []
        if "listing" in changed:
            raise InputError(
                f"the pictures or captions of {settings.data} are not those that {out} was begun "
                "with; prepare into a new folder"
            )
        if changed:
            told = ", ".join(f"{key} {there.get(key)}, not {values[key]}" for key in changed)
            raise InputError(f"{out} was begun with {told}; give the same, or a new folder")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} must be a new or empty folder, or one that prepare began")
    else:
        write_json(path, values)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def look(
    listed: Sequence[Row], settings: Settings, table: AspectTable, workers: Workers, out: Path
) -> Iterator[Progress]:
    """Look at every picture; write the rows in the order of the shards, and what is not used.

    Raises InputError where nothing is left.
    """
    limits = Limits(
        table=dict(table),  # a mapping proxy does not travel to other processes
        max_aspect=settings.max_aspect,
        max_enlarge=settings.max_enlarge,
        max_tokens=settings.max_tokens or 0,
    )
    rows: list[Row] = []
    rejects: list[Reject] = []
    for found in scan(listed, limits, workers):
        rows.append(found) if isinstance(found, Row) else rejects.append(found)
        yield Progress("looking", len(rows) + len(rejects), len(listed))
    _write_lines(out / REJECTS, [asdict(reject) for reject in rejects])
    if not rows:
        first = f"; the first: {rejects[0].name}: {rejects[0].detail}" if rejects else ""
        counts = Counter(reject.reason for reject in rejects)
        why = ", ".join(f"{num} {reason}" for reason, num in counts.most_common()) or "no picture"
        raise InputError(f"nothing in {settings.data} can be used: {why}{first}")
    buckets = settle_buckets(rows, table, settings.min_bucket)
    _write_lines(out / ROWS, [row.to_json() for each in buckets.values() for row in each])


def plan_shards(
    buckets: dict[str, list[Row]],
    table: AspectTable,
    encoders: Encoders,
    resolution: int,
    most: int,
) -> list[Shard]:
    """Cut every bucket into shards of at most `most` bytes, reckoned with full captions."""
    config, width = encoders.autoencoder.config, encoders.text.encoder.config.d_model
    shards = []
    masked = any(row.mask for rows in buckets.values() for row in rows)
    for ratio, rows in buckets.items():
        height, wide = table[ratio]
        latents = 4 * config.latent_channels * (height // config.factor) * (wide // config.factor)
        sizes = [latents + 2 * len(r.captions) * encoders.max_tokens * width for r in rows]
        for number, part in enumerate(_cut(rows, sizes, most)):
            shards.append(
                Shard(
                    name=f"{wide}x{height}-{number:05}.safetensors",
                    height=height,
                    width=wide,
                    rows=tuple(part),
                    fine=resolution >= FINE_FROM,
                    masked=masked,
                )
            )
    return shards


def is_written(path: Path, plan: str) -> bool:
    """Whether a shard is there and of this plan; shards appear whole or not at all."""
    return path.is_file() and _metadata(path).get("plan") == plan


def make_index(
    settings: Settings, shards: Sequence[Shard], encoders: Encoders, out: Path
) -> dict[str, Any]:
    """What a reader must know, and what people want to."""
    told = [
        {
            "file": shard.name,
            "rows": len(shard.rows),
            "height": shard.height,
            "width": shard.width,
            "bytes": (out / shard.name).stat().st_size,
        }
        for shard in shards
    ]
    buckets: Counter[str] = Counter()
    for shard in shards:
        buckets[f"{shard.width}x{shard.height}"] += len(shard.rows)
    config = encoders.autoencoder.config
    return {
        "format": FORMAT,
        "model": settings.model,
        "resolution": settings.resolution,
        "num_rows": sum(buckets.values()),
        "num_rejects": len(read_rejects(out)),
        "num_cut_captions": sum(int(_metadata(out / s.name).get("cut", 0)) for s in shards),
        "channels": config.latent_channels,
        "factor": config.factor,
        "scaling_factor": config.scaling_factor,
        "shift_factor": config.shift_factor,
        "text_width": encoders.text.encoder.config.d_model,
        "max_tokens": encoders.max_tokens,
        "masked": any(shard.masked for shard in shards),
        "hints": settings.hints,
        "buckets": dict(buckets),
        "shards": told,
    }


def read_rejects(out: Path) -> list[Reject]:
    """What was not used."""
    return [Reject(**values) for _, values in read_lines(out / REJECTS)]


def _cut(rows: Sequence[Row], sizes: Sequence[int], most: int) -> Iterator[list[Row]]:
    part: list[Row] = []
    filled = 0
    for row, size in zip(rows, sizes, strict=True):
        if part and filled + size > most:
            yield part
            part, filled = [], 0
        part.append(row)
        filled += size
    yield part


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _write_lines(path: Path, values: Sequence[dict[str, Any]]) -> None:
    with atomic_write(path) as temp:
        lines = (json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        temp.write_text("".join(lines), encoding="utf-8")
