"""Encoding and decoding some rows at a time, equal to the whole picture at once.

What joins the rows of a picture is treated as such: group norms have the statistics of all rows
(one sweep gathers them, the next one uses them), convolutions see the rows beside theirs, and the
attention in the middle has every key. Between layers activations lie in sheets (`sheets.py`); what
is too large for one is computed again in each sweep that needs it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixsigma.config import AutoencoderConfig
from pixsigma.models import autoencoder_blocks as blocks
from pixsigma.models.autoencoder import KLAutoencoder
from pixsigma.models.rows import (
    Added,
    Attended,
    Convolved,
    Doubled,
    Halved,
    Normed,
    Once,
    Window,
    strips_of,
)
from pixsigma.models.sheets import Keep, Moments, Rows, Sheet, spill_file
from pixsigma.pages import give_back_pages
from pixsigma.shapes import Images, Latents

GIVE_BACK_STRIPS = 8
"""After so many, some milliseconds are spent on memory that others may need."""

ROOM = 1_100_000_000
"""Bytes of sheets that may lie in memory even where the largest is smaller: at 1024px in fp32 two
of the largest, so that nothing is computed again."""


@torch.no_grad()
def decode_strips(
    autoencoder: KLAutoencoder, latents: Latents, *, keep: Keep = "exact", spill: bool = False
) -> Images:
    """What `autoencoder.decode` gives, picture by picture, in a fraction of the memory.

    `keep="half"` keeps activations in 16 bits; `spill` writes them to a file in the folder for
    temporary files. The result differs by rounding, with 16 bits by about 1e-3 of its range.
    """
    config = autoencoder.config
    parts = []
    for one in latents.split(1):
        z = (one / config.scaling_factor + (config.shift_factor or 0.0)).to(autoencoder.dtype)
        z = z if autoencoder.post_quant_conv is None else autoencoder.post_quant_conv(z)
        pixels = z.shape[2] * z.shape[3] * config.factor**2
        parts.append(_strips(autoencoder, z, pixels, keep, spill).decoded(autoencoder.decoder, z))
    return torch.cat(parts)


@torch.no_grad()
def encode_strips(
    autoencoder: KLAutoencoder, images: Images, *, keep: Keep = "exact", spill: bool = False
) -> Latents:
    """What `autoencoder.encode` gives, picture by picture, in a fraction of the memory.

    Raises SizeError where a side is no multiple of the factor.
    """
    autoencoder.check_size(images)
    config = autoencoder.config
    parts = []
    for one in images.to(autoencoder.dtype).split(1):
        strips = _strips(autoencoder, one, one.shape[2] * one.shape[3], keep, spill)
        h = strips.encoded(autoencoder.encoder, one)
        h = h if autoencoder.quant_conv is None else autoencoder.quant_conv(h)
        parts.append(h.chunk(2, dim=1)[0])
    return (torch.cat(parts) - (config.shift_factor or 0.0)) * config.scaling_factor


@dataclass(frozen=True)
class StripAutoencoder:
    """An `Autoencoder` in little memory whose results are those of the whole picture."""

    autoencoder: KLAutoencoder
    keep: Keep = "exact"
    spill: bool = False
    """Whether activations go to a temporary file."""

    def encode(self, images: Images) -> Latents:
        """Scaled latents, the mean of the posterior."""
        return encode_strips(self.autoencoder, images, keep=self.keep, spill=self.spill)

    def decode(self, latents: Latents) -> Images:
        """Pictures in about [-1, 1], not clamped."""
        return decode_strips(self.autoencoder, latents, keep=self.keep, spill=self.spill)


def _strips(
    autoencoder: KLAutoencoder, x: Tensor, pixels: int, keep: Keep, spill: bool
) -> "Strips":
    dtype = autoencoder.dtype
    keep = "exact" if dtype.itemsize == 2 else keep
    room = sheet_room(autoencoder.config, pixels, 2 if keep == "half" else dtype.itemsize)
    return Strips(keep, spill, dtype, x.device, room)


def sheet_room(config: AutoencoderConfig, pixels: int, itemsize: int) -> int:
    """Bytes of sheets in memory for a picture: two of the largest, or as many as `ROOM`, or one."""
    largest = config.block_out_channels[0] * pixels * itemsize
    return min(2 * largest, max(largest, ROOM))


@dataclass
class Strips:
    """How one picture is worked through."""

    keep: Keep
    spill: bool
    dtype: torch.dtype
    device: torch.device
    room: int = 0
    """Bytes of sheets that a layer may keep beside what it reads; the largest sheet needs them."""

    def held(self, x: Tensor) -> Sheet:
        """Rows of (1, c, h, w) in memory."""
        _, channels, height, width = x.shape
        sheet = Sheet(channels, height, width, "exact", x.dtype, x.device)
        sheet.append(x)
        return sheet

    def stored(self, rows: Rows) -> Sheet:
        """Compute all rows and keep them; frees what they come from on the way."""
        file = spill_file() if self.spill else None
        shape = rows.channels, rows.height, rows.width
        sheet = Sheet(*shape, self.keep, self.dtype, self.device, file)
        for begin, end in swept(rows):
            sheet.append(rows.read(begin, end))
            rows.drop_before(end)
        return sheet

    def normed(self, rows: Rows, norm: nn.GroupNorm, silu: bool = True) -> Normed:
        """The group norm of the whole picture; a sweep where its moments are not known."""
        if isinstance(rows, Sheet):
            return Normed(rows, norm, rows.moments, silu)
        moments = Moments()
        for begin, end in swept(rows):
            moments.add(rows.read(begin, end))
        return Normed(rows, norm, moments, silu)

    def fits(self, x: Rows, h: Rows) -> bool:
        """Whether `h` may be kept beside what `x` comes from."""
        size = 2 if self.keep == "half" else self.dtype.itemsize
        return self.spill or (x.stored + h.channels * h.height * h.width) * size <= self.room

    def resnet(self, block: blocks.ResnetBlock, x: Rows) -> Sheet:
        """As `ResnetBlock.forward`."""
        h: Rows = Convolved(self.normed(x, block.norm1), block.conv1)
        if self.fits(x, h):
            h = self.kept(h)
        h = Convolved(self.normed(h, block.norm2), block.conv2)
        shortcut = x if block.conv_shortcut is None else Convolved(x, block.conv_shortcut)
        return self.stored(Added(h, shortcut))

    def kept(self, rows: Rows) -> Sheet:
        """`stored`, where what they come from is read once more."""
        return self.stored(Once(rows))

    def middle(self, block: blocks.MidBlock, x: Rows) -> Sheet:
        """As `MidBlock.forward`."""
        sheet = self.resnet(blocks_resnet(block, 0), x)
        for attention in block.attentions:
            assert isinstance(attention, blocks.SpatialAttention)
            normed = self.normed(sheet, attention.group_norm, silu=False)
            sheet = self.stored(Attended(sheet, normed, attention))
        return self.resnet(blocks_resnet(block, 1), sheet)

    def gathered(self, rows: Rows) -> Tensor:
        """All rows as one tensor, (1, c, h, w)."""
        shape = 1, rows.channels, rows.height, rows.width
        out = torch.empty(shape, dtype=self.dtype, device=self.device)
        for begin, end in swept(rows):
            out[:, :, begin:end] = rows.read(begin, end)
            rows.drop_before(end)
        return out

    def decoded(self, decoder: blocks.Decoder, z: Tensor) -> Tensor:
        """As `Decoder.forward`, for one picture."""
        x: Rows = self.stored(Convolved(self.held(z), decoder.conv_in))
        x = self.middle(decoder.mid_block, x)
        for block in decoder.up_blocks:
            assert isinstance(block, blocks.UpBlock)
            for resnet in block.resnets:
                assert isinstance(resnet, blocks.ResnetBlock)
                x = self.resnet(resnet, x)
            for upsample in block.upsamplers:
                assert isinstance(upsample, blocks.Upsample)
                x = Window(Doubled(x, upsample.conv))
        return self.gathered(Convolved(self.normed(x, decoder.conv_norm_out), decoder.conv_out))

    def encoded(self, encoder: blocks.Encoder, images: Tensor) -> Tensor:
        """As `Encoder.forward`, for one picture."""
        x: Rows = Window(Convolved(self.held(images), encoder.conv_in))
        for block in encoder.down_blocks:
            assert isinstance(block, blocks.DownBlock)
            for resnet in block.resnets:
                assert isinstance(resnet, blocks.ResnetBlock)
                x = self.resnet(resnet, x)
            for downsample in block.downsamplers:
                assert isinstance(downsample, blocks.Downsample)
                x = self.stored(Halved(x, downsample.conv))
        x = self.middle(encoder.mid_block, x)
        return self.gathered(Convolved(self.normed(x, encoder.conv_norm_out), encoder.conv_out))


def swept(rows: Rows) -> Iterator[tuple[int, int]]:
    """Begin and end of each strip; what was computed on the way is given back now and then.

    The C library keeps freed pieces, and small ones that stay between them leave few to use again.
    """
    for number, strip in enumerate(strips_of(rows), start=1):
        yield strip
        if number % GIVE_BACK_STRIPS == 0:
            give_back_pages()


def blocks_resnet(block: blocks.MidBlock, i: int) -> blocks.ResnetBlock:
    """A residual block of the middle, with its type."""
    found = block.resnets[i]
    assert isinstance(found, blocks.ResnetBlock)
    return found
