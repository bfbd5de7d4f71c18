"""Look at every picture once: what can be used, in which bucket, and why the rest cannot."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from pixsigma.buckets import AspectTable, nearest, nearest_ratio
from pixsigma.data.manifest import Row, read_bytes
from pixsigma.data.transforms import PictureError, cover_size, open_picture
from pixsigma.datatools.workers import Workers
from pixsigma.errors import WeightsError

OFFICIAL_FACTOR = 8
"""Pixels a side for one latent, in all features that the authors' tools write."""

Reason: TypeAlias = Literal[
    "missing", "corrupt", "tiny", "extreme aspect", "empty caption", "duplicate", "features"
]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a picture must keep to."""

    table: AspectTable
    """The buckets."""
    max_aspect: float = 4.5
    """Longest side over shortest, either way; the authors look at tall pictures only."""
    max_enlarge: float = 2.0
    """How many times a picture may be enlarged to cover its bucket."""
    max_tokens: int = 300
    """Tokens that stored features of a caption may have."""


@dataclass(frozen=True)
class Reject:
    """A row that is not used, and why."""

    name: str
    reason: Reason
    detail: str


def scan(rows: Iterable[Row], limits: Limits, workers: Workers) -> Iterator[Row | Reject]:
    """Every row with its size and hash, or a Reject, in the order of the rows.

    Of files with the same bytes the first is kept. Captions without a word are left out.
    """
    first: dict[str, str] = {}
    for found in workers.map(partial(examine, limits=limits), rows):
        if isinstance(found, Row) and found.sha:
            twin = first.setdefault(found.sha, found.name)
            if twin != found.name:
                yield Reject(found.name, "duplicate", f"the same bytes as {twin}")
                continue
        yield found


def examine(row: Row, limits: Limits) -> Row | Reject:
    """Read, hash and decode one picture, check it against the limits; raises nothing."""
    captions = tuple(caption for caption in row.captions if caption.text)
    if not captions:
        return Reject(row.name, "empty caption", "no caption with a word in it")
    if row.features:
        return _examine_features(row, limits)
    try:
        data = read_bytes(row)
        image = open_picture(data)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        return Reject(row.name, "missing" if missing else "corrupt", str(error))
    except PictureError as error:
        return Reject(row.name, "corrupt", str(error))
    return check_size_of(
        dataclasses.replace(
            row,
            captions=captions,
            width=image.width,
            height=image.height,
            sha=hashlib.sha256(data).hexdigest(),
        ),
        limits,
    )


def check_size_of(row: Row, limits: Limits) -> Row | Reject:
    """The row, or why its size is of no use."""
    height, width = row.height, row.width
    aspect = max(height / width, width / height)
    if aspect > limits.max_aspect:
        return Reject(row.name, "extreme aspect", f"{width}x{height} is {aspect:.3g} : 1")
    enlarged = cover_size(height, width, *nearest(limits.table, height, width))[0] / height
    if enlarged > limits.max_enlarge:
        detail = f"{width}x{height} would be enlarged {enlarged:.3g} times"
        return Reject(row.name, "tiny", detail)
    return row


def settle_buckets(rows: list[Row], table: AspectTable, min_bucket: int) -> dict[str, list[Row]]:
    """The rows of each ratio of the table, in the table's order.

    Pictures of a bucket with fewer than `min_bucket` go to the nearest that has enough; where
    none has, to the fullest.
    """
    counts = Counter(nearest_ratio(table, row.height, row.width) for row in rows)
    kept = {ratio: table[ratio] for ratio in table if counts[ratio] >= min_bucket}
    if not kept and counts:
        fullest = counts.most_common(1)[0][0]
        kept = {fullest: table[fullest]}
    buckets: dict[str, list[Row]] = {ratio: [] for ratio in kept}
    for row in rows:
        # the latents of stored features have their size already
        own = table if row.features else kept
        ratio = nearest_ratio(own, row.height, row.width)
        buckets.setdefault(ratio, []).append(row)
    return {ratio: buckets[ratio] for ratio in table if buckets.get(ratio)}


def _examine_features(row: Row, limits: Limits) -> Row | Reject:
    """A row with the authors' features: its size is that of the latents."""
    from pixsigma.data.official import read_moments, read_states  # brings torch

    try:
        mean, _ = read_moments(row.features[0])
        for path in row.features[1:]:
            read_states(path, limits.max_tokens)
    except WeightsError as error:
        return Reject(row.name, "features", str(error))
    height, width = (side * OFFICIAL_FACTOR for side in mean.shape[1:])
    if (height, width) not in limits.table.values():
        return Reject(row.name, "features", f"{row.features[0]} is of {width}x{height}, no bucket")
    return dataclasses.replace(row, height=height, width=width)
