"""Where the rows of large activations are kept: exactly, in half the memory, or in a file."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from pixsigma.errors import OutputError

Keep: TypeAlias = Literal["exact", "half"]
"""Activations as computed, or in 16 bits: scaled per strip and channel, so nothing overflows."""


class Rows(Protocol):
    """A picture of `channels` maps of `height` × `width` that is read some rows at a time.

    Rows are asked for from the top to the bottom, in as many sweeps as it takes.
    """

    channels: int
    height: int
    width: int

    @property
    def widest(self) -> int:
        """The most channels of what they are computed from, in rows of this width."""
        ...

    @property
    def stored(self) -> int:
        """How many numbers the sheet has that they come from."""
        ...

    def read(self, begin: int, end: int) -> Tensor:
        """(1, c, end - begin, w), channels last."""
        ...

    def drop_before(self, row: int) -> None:
        """Free what lies above a row: nobody will read it again."""
        ...


class Moments:
    """Mean and variance of every channel, gathered strip by strip (Chan et al. 1979), in fp64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.square = torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Take in (1, c, rows, w)."""
        flat = x[0].permute(1, 2, 0).flatten(0, 1).float()
        num = len(flat)
        # About a mean of some places, so that squares of large values do not cancel; this way, as
        # it takes half the time of torch.var_mean along columns.
        near = flat[:64].mean(0)
        off = flat - near
        shift = off.sum(0).double() / num
        var = (off.square_().sum(0).double() / num - shift.square()).clamp_(min=0)
        mean = near.double() + shift
        away, both = mean - self.mean, self.count + num
        self.mean = self.mean + away * (num / both)
        self.square = self.square + var * num + away.square() * (self.count * num / both)
        self.count = both

    def of_groups(self, groups: int) -> tuple[Tensor, Tensor]:
        """Mean and variance (c,) of the group that each channel is in."""
        means, variances = (
            part.expand(len(self.mean)).unflatten(0, (groups, -1))
            for part in (self.mean, self.square / self.count)
        )
        mean = means.mean(1, keepdim=True)
        variance = (variances + (means - mean).square()).mean(1, keepdim=True)
        return mean.expand_as(means).flatten(), variance.expand_as(means).flatten()


@dataclass
class Strip:
    """Some rows of a sheet, (rows, w, c), where they are kept."""

    begin: int
    values: Tensor | None
    """None where they are in the file, at `offset`."""
    scale: Tensor | None
    """(c,), what 16-bit numbers are multiplied by."""
    rows: int
    offset: int = 0


@dataclass
class Sheet:
    """Rows that were computed and are kept."""

    channels: int
    height: int
    width: int
    keep: Keep
    dtype: torch.dtype
    """That they are computed in."""
    device: torch.device
    file: IO[bytes] | None = None
    """Where they are written to instead of memory."""
    moments: Moments = field(default_factory=Moments)
    strips: list[Strip] = field(default_factory=list)

    def __del__(self) -> None:
        if self.file is not None:
            self.file.close()

    @property
    def widest(self) -> int:
        """Nothing is computed: as wide as it is."""
        return self.channels

    @property
    def stored(self) -> int:
        """How many numbers are kept when it is full."""
        return self.channels * self.height * self.width

    @property
    def stored_dtype(self) -> torch.dtype:
        """The type of what is kept."""
        return torch.float16 if self.keep == "half" else self.dtype

    @property
    def num_bytes(self) -> int:
        """Size of all rows."""
        return self.stored * self.stored_dtype.itemsize

    def append(self, x: Tensor) -> None:
        """Keep the next rows, (1, c, rows, w), and count them into the moments."""
        self.moments.add(x)
        begin = self.strips[-1].begin + self.strips[-1].rows if self.strips else 0
        values = x[0].permute(1, 2, 0)
        scale = None
        if self.keep == "half":
            most = values.abs().amax((0, 1)).float()
            scale = torch.where(most > 0, most, 1.0) / 32768
            values = values / scale.to(values.dtype)
        # a copy, or the strip would hold all of the tensor that it is a view of
        values = values.to(self.stored_dtype, memory_format=torch.contiguous_format, copy=True)
        strip = Strip(begin, values, scale, len(values))
        if self.file is not None:
            strip.offset = _put(self.file, _bytes_of(values.cpu()))
            strip.values = None
        self.strips.append(strip)

    def read(self, begin: int, end: int) -> Tensor:
        """(1, c, end - begin, w), channels last, in the type that it was computed in."""
        parts = [self._load(strip, begin, end) for strip in self._touched(begin, end)]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole.permute(2, 0, 1)[None]

    def drop_before(self, row: int) -> None:
        """Free the strips that end above a row."""
        self.strips = [strip for strip in self.strips if strip.begin + strip.rows > row]

    def _touched(self, begin: int, end: int) -> Iterator[Strip]:
        for strip in self.strips:
            if strip.begin < end and begin < strip.begin + strip.rows:
                yield strip

    def _load(self, strip: Strip, begin: int, end: int) -> Tensor:
        first, last = max(begin - strip.begin, 0), min(end - strip.begin, strip.rows)
        if strip.values is None:
            values = self._from_file(strip, first, last)
        else:
            values = strip.values[first:last]
        return values if strip.scale is None else values.to(self.dtype) * strip.scale.to(self.dtype)

    def _from_file(self, strip: Strip, first: int, last: int) -> Tensor:
        assert self.file is not None
        values = torch.empty(last - first, self.width, self.channels, dtype=self.stored_dtype)
        row_bytes = self.width * self.channels * self.stored_dtype.itemsize
        self.file.seek(strip.offset + first * row_bytes)
        _fill(self.file, _bytes_of(values))
        return values.to(self.device)


def spill_file() -> IO[bytes]:
    """A file without a name in the folder for temporary files (TMPDIR); gone when it is closed.

    Raises OutputError where there is no such folder.
    """
    try:
        return tempfile.TemporaryFile(buffering=0)
    except OSError as error:
        raise _no_room(error) from error


def _put(file: IO[bytes], values: memoryview) -> int:
    """Write at the end of an unbuffered file, which may take a part at a time; returns where."""
    offset = file.seek(0, 2)
    try:
        while values:
            values = values[file.write(values) :]
    except OSError as error:
        raise _no_room(error) from error
    return offset


def _fill(file: IO[bytes], values: memoryview) -> None:
    """Read on in an unbuffered file, which may give a part at a time, until `values` is full."""
    while values:
        if not (num := file.readinto(values)):  # type: ignore[attr-defined]
            raise OutputError("the temporary file of a decoding has lost rows that were in it")
        values = values[num:]


def _no_room(error: OSError) -> OutputError:
    return OutputError(
        f"rows of the decoding do not fit into temporary files: {error}; "
        "set TMPDIR to a folder on a disk with more room"
    )


def _bytes_of(values: Tensor) -> memoryview:
    found: memoryview = values.view(torch.uint8).flatten().numpy().data
    return found
