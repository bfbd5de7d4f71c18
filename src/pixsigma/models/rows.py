"""Rows of activations that are computed when they are read: the autoencoder, lazily."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixsigma.models import autoencoder_blocks as blocks
from pixsigma.models.sheets import Moments, Rows

STRIP_BYTES = 32 * 2**20
"""Of the widest layer, how much is computed at a time."""

MARGIN = 8
"""Rows that a window keeps above those asked for, since readers of one source are not abreast: a
shortcut is some rows behind the convolutions beside it."""


class Derived:
    """Rows that are computed from those of another one, in its size unless told otherwise."""

    def __init__(self, source: Rows, channels: int | None = None, scale: float = 1.0) -> None:
        self.source = source
        self.channels = source.channels if channels is None else channels
        self.height = int(source.height * scale)
        self.width = int(source.width * scale)
        self.scale = scale

    @property
    def widest(self) -> int:
        """The most channels on the way here, in rows of this width."""
        return max(self.channels, int(self.source.widest / self.scale))

    @property
    def stored(self) -> int:
        """How many numbers the sheet has that they come from."""
        return self.source.stored

    def drop_before(self, row: int) -> None:
        """Free what the rows from `row` on do not need; windows hold those just above it."""
        self.source.drop_before(int(row / self.scale) - 1)


class Window(Derived):
    """Remembers what was read last, so that rows which overlap are computed once a sweep."""

    def __init__(self, source: Rows) -> None:
        super().__init__(source)
        self._begin = 0
        self._held: Tensor | None = None

    def read(self, begin: int, end: int) -> Tensor:
        """What the source has."""
        held = self._held
        stop = self._begin + (0 if held is None else held.shape[2])
        if held is None or not self._begin <= begin <= stop:
            held, self._begin = self.source.read(begin, end), begin
        elif end > stop:
            first = max(self._begin, begin - MARGIN)
            held = torch.cat([held[:, :, first - self._begin :], self.source.read(stop, end)], 2)
            self._begin = first
        self._held = held
        return held[:, :, begin - self._begin : end - self._begin]


class Normed(Derived):
    """Group norm with known statistics, then SiLU if wanted."""

    def __init__(self, source: Rows, norm: nn.GroupNorm, moments: Moments, silu: bool) -> None:
        super().__init__(source)
        mean, variance = moments.of_groups(norm.num_groups)
        scale = norm.weight.double() * torch.rsqrt(variance + norm.eps)
        shift = norm.bias.double() - mean * scale
        wide = torch.promote_types(norm.weight.dtype, torch.float32)
        self._factor, self._shift = (part.to(wide)[:, None, None] for part in (scale, shift))
        self._dtype = norm.weight.dtype
        self._silu = silu

    def read(self, begin: int, end: int) -> Tensor:
        """The rows of the source, each channel stretched and shifted."""
        x = self.source.read(begin, end).to(self._factor.dtype)
        y = torch.addcmul(self._shift, x, self._factor)
        return (F.silu(y, inplace=True) if self._silu else y).to(self._dtype)


class Convolved(Derived):
    """A convolution of stride 1 with zeros around the picture."""

    def __init__(self, source: Rows, conv: nn.Conv2d) -> None:
        super().__init__(Window(source), conv.out_channels)
        self._conv = conv

    def read(self, begin: int, end: int) -> Tensor:
        """From the same rows and, where the kernel is that large, those beside them."""
        reach = int(self._conv.padding[0])
        x = padded_rows(self.source, begin - reach, end + reach)
        return F.conv2d(x, self._conv.weight, self._conv.bias, padding=(0, reach))


class Doubled(Derived):
    """Each place four times, then a 3 × 3 convolution, without making the four.

    An output place sees 2 × 2 different places, whose weights are sums of the kernel's: 16 products
    in place of 36 (sub-pixel convolution, Shi et al. 2016).
    """

    def __init__(self, source: Rows, conv: nn.Conv2d) -> None:
        super().__init__(Window(source), conv.out_channels, 2.0)
        self._bias = conv.bias
        self._kernels = {
            (p, q): joined(joined(conv.weight, p, 2), q, 3).contiguous()
            for p in range(2)
            for q in range(2)
        }

    def read(self, begin: int, end: int) -> Tensor:
        """Rows of the larger picture."""
        first, last = begin // 2, -(-end // 2)
        x = F.pad(padded_rows(self.source, first - 1, last + 1), (1, 1))
        rows, width = last - first, self.source.width
        shape = 1, self.channels, 2 * rows, 2 * width
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        for (p, q), kernel in self._kernels.items():
            part = x[:, :, p : p + rows + 1, q : q + width + 1]
            y[:, :, p::2, q::2] = F.conv2d(part, kernel, self._bias)
        return y[:, :, begin - 2 * first : end - 2 * first]


class Halved(Derived):
    """A 3 × 3 convolution of stride 2 with zeros to the right and below only."""

    def __init__(self, source: Rows, conv: nn.Conv2d) -> None:
        super().__init__(Window(source), conv.out_channels, 0.5)
        self._conv = conv

    def read(self, begin: int, end: int) -> Tensor:
        """Rows of the smaller picture."""
        x = F.pad(padded_rows(self.source, 2 * begin, 2 * end + 1), (0, 1))
        return F.conv2d(x, self._conv.weight, self._conv.bias, stride=2)


class Added(Derived):
    """The sum of two."""

    def __init__(self, source: Rows, other: Rows) -> None:
        super().__init__(source)
        self._other = other

    @property
    def widest(self) -> int:
        """Of either."""
        return max(self.source.widest, self._other.widest)

    def read(self, begin: int, end: int) -> Tensor:
        """The rows of both, added."""
        return self.source.read(begin, end).add_(self._other.read(begin, end))

    def drop_before(self, row: int) -> None:
        """Free what neither needs."""
        self.source.drop_before(row)
        self._other.drop_before(row)


class Attended(Derived):
    """x + attention of its places among all: keys and values are whole, queries come in rows."""

    def __init__(self, source: Rows, normed: Rows, attention: blocks.SpatialAttention) -> None:
        super().__init__(source)
        self._normed = normed
        self._attention = attention
        num = source.height * source.width
        like = attention.to_k.weight
        self._keys, self._values = (like.new_empty(1, 1, num, source.channels) for _ in range(2))
        for begin, end in strips_of(normed):
            places = slice(begin * source.width, end * source.width)
            tokens = self._tokens(begin, end)
            self._keys[0, 0, places] = attention.to_k(tokens)
            self._values[0, 0, places] = attention.to_v(tokens)

    def read(self, begin: int, end: int) -> Tensor:
        """Queries of some rows against all keys; N × N weights are never held at once."""
        x = self.source.read(begin, end)
        q = self._attention.to_q(self._tokens(begin, end))[None, None]
        h = F.scaled_dot_product_attention(q, self._keys, self._values)[0, 0]
        h = self._attention.to_out[0](h).unflatten(0, (end - begin, self.width))
        return x + h.permute(2, 0, 1)[None]

    def _tokens(self, begin: int, end: int) -> Tensor:
        """(rows · w, c)"""
        return self._normed.read(begin, end)[0].permute(1, 2, 0).flatten(0, 1)


def joined(kernel: Tensor, place: int, dim: int) -> Tensor:
    """Three taps on two places: for an even output (0) the last two are one, else the first two."""
    first, middle, last = kernel.unbind(dim)
    pair = (first, middle + last) if place == 0 else (first + middle, last)
    return torch.stack(pair, dim)


def padded_rows(source: Rows, begin: int, end: int) -> Tensor:
    """Rows of a picture with zeros above and below it."""
    x = source.read(max(begin, 0), min(end, source.height))
    above, below = max(-begin, 0), max(end - source.height, 0)
    return F.pad(x, (0, 0, above, below)) if above or below else x


def strips_of(rows: Rows) -> Iterator[tuple[int, int]]:
    """Begin and end of each strip, an even number of rows."""
    num = max(2, STRIP_BYTES // (rows.width * rows.widest * 4) // 2 * 2)
    for begin in range(0, rows.height, num):
        yield begin, min(begin + num, rows.height)


class Once(Derived):
    """The same rows, whose source nobody frees."""

    def read(self, begin: int, end: int) -> Tensor:
        """What the source has."""
        return self.source.read(begin, end)

    def drop_before(self, row: int) -> None:
        """Nothing: the source is read again."""
