"""Some rows at a time, the autoencoder gives what it gives for the whole picture."""

import errno
import io
import os
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pixsigma.config import AutoencoderConfig
from pixsigma.errors import OutputError, SizeError
from pixsigma.models import rows, sheets, strips
from pixsigma.models.autoencoder import KLAutoencoder
from pixsigma.models.autoencoder_blocks import Upsample
from pixsigma.models.rows import Added, Convolved, Doubled, Window
from pixsigma.models.sheets import Moments, Sheet
from pixsigma.models.strips import StripAutoencoder, Strips, decode_strips, encode_strips
from pixsigma.models.tiling import decode_tiled

CONFIG = AutoencoderConfig(
    block_out_channels=(8, 16, 16), norm_num_groups=4, layers_per_block=2, shift_factor=0.1
)

WAYS: list[dict[str, Any]] = [
    {"keep": keep, "spill": spill} for keep in ("exact", "half") for spill in (False, True)
]


def network(config: AutoencoderConfig = CONFIG, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(3)
    model = KLAutoencoder(config)
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return model.to(dtype).eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of two or four rows, so that every seam is met."""
    monkeypatch.setattr(rows, "STRIP_BYTES", 4 * 8 * 200)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("size", [(6, 11), (13, 4), (1, 1)])
def test_decoding_equals_the_whole(way: dict[str, Any], size: tuple[int, int]) -> None:
    model, z = network(), torch.randn(2, 4, *size)
    whole, given = model.decode(z), decode_strips(model, z, **way)
    assert given.shape == whole.shape
    bound = 1e-5 if way["keep"] == "exact" else 2e-3
    assert (given - whole).abs().max() <= bound * whole.abs().max()


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("size", [(24, 44), (52, 16), (4, 4)])
def test_encoding_equals_the_whole(way: dict[str, Any], size: tuple[int, int]) -> None:
    model, images = network(), torch.randn(2, 3, *size)
    whole, given = model.encode(images), encode_strips(model, images, **way)
    assert given.shape == whole.shape
    bound = 1e-5 if way["keep"] == "exact" else 3e-3
    assert (given - whole).abs().max() <= bound * whole.abs().max()


def test_tiles_do_not() -> None:
    model = network(replace(CONFIG, sample_size=32))
    z = torch.randn(1, 4, 13, 20)
    whole = model.decode(z)
    assert (decode_tiled(model, z) - whole).abs().max() > 1e-2 * whole.abs().max()


@pytest.mark.parametrize("kept", [0, 10**9])
def test_what_is_computed_again_is_the_same(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = strips._strips
    monkeypatch.setattr(strips, "_strips", lambda *a: replace(made(*a), room=kept))
    model, z = network(), torch.randn(1, 4, 7, 9)
    whole = model.decode(z)
    assert (decode_strips(model, z) - whole).abs().max() <= 1e-5 * whole.abs().max()


def test_half_precision_and_missing_parts() -> None:
    plain = replace(
        CONFIG, mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False
    )
    z, images = torch.randn(1, 4, 6, 10), torch.randn(1, 3, 24, 40)
    for model in (network(plain), network(CONFIG, torch.bfloat16)):
        careful = StripAutoencoder(model, keep="half")
        bound = 1e-2 if model.dtype is torch.float32 else 1e-1
        for given, whole in (
            (careful.decode(z), model.decode(z)),
            (careful.encode(images), model.encode(images)),
        ):
            assert given.dtype is whole.dtype
            assert (given - whole).abs().max() <= bound * whole.abs().max()


def test_what_overflows_in_half_is_kept_by_its_scale() -> None:
    sheet = Sheet(2, 4, 3, "half", torch.float32, torch.device("cpu"))
    x = torch.randn(1, 2, 4, 3)
    x[:, 0] *= 1e7
    x[:, 1] *= 1e-9
    for part in x.split(2, dim=2):
        sheet.append(part)
    torch.testing.assert_close(sheet.read(1, 4), x[:, :, 1:4], rtol=2e-3, atol=1e-12)


@pytest.mark.parametrize("keep", ["exact", "half"])
@pytest.mark.parametrize("spill", [False, True])
def test_sheets_give_back_and_let_go(keep: Any, spill: bool) -> None:
    file = sheets.spill_file() if spill else None
    sheet = Sheet(3, 10, 4, keep, torch.float32, torch.device("cpu"), file)
    x = torch.randn(1, 3, 10, 4)
    for part in x.split(4, dim=2):
        sheet.append(part)
    torch.testing.assert_close(sheet.read(3, 9), x[:, :, 3:9], rtol=1e-3, atol=1e-3)
    sheet.drop_before(5)
    assert [strip.begin for strip in sheet.strips] == [4, 8]
    torch.testing.assert_close(sheet.read(4, 10), x[:, :, 4:], rtol=1e-3, atol=1e-3)
    assert sheet.num_bytes == 3 * 10 * 4 * (4 if keep == "exact" else 2)
    assert all((strip.values is None) == spill for strip in sheet.strips)


def test_a_file_that_takes_a_part_at_a_time_has_all_in_the_end(tmp_path: Path) -> None:
    class Slow(io.FileIO):
        def write(self, data: Any) -> int:
            return super().write(memoryview(data)[:37])

        def readinto(self, data: Any) -> int:
            return super().readinto(memoryview(data)[:41])

    sheet = Sheet(3, 8, 4, "exact", torch.float32, torch.device("cpu"), Slow(tmp_path / "f", "w+"))
    x = torch.randn(1, 3, 8, 4)
    for part in x.split(3, dim=2):
        sheet.append(part)
    assert torch.equal(sheet.read(1, 8), x[:, :, 1:])
    os.truncate(tmp_path / "f", 300)
    with pytest.raises(OutputError, match="lost rows"):
        sheet.read(1, 8)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    sheet = Sheet(3, 8, 4, "exact", torch.float32, torch.device("cpu"), Full(tmp_path / "f", "w+"))
    with pytest.raises(OutputError, match="No space left on device; set TMPDIR"):
        sheet.append(torch.randn(1, 3, 8, 4))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(OutputError, match="set TMPDIR"):
        sheets.spill_file()


def test_moments_are_those_of_all_rows() -> None:
    x = torch.randn(1, 6, 9, 5) + 1000  # a large mean, which sums of squares would not survive
    moments = Moments()
    for part in x.split(4, dim=2):
        moments.add(part)
    groups = x.double().view(3, -1)
    mean, variance = moments.of_groups(3)
    torch.testing.assert_close(mean[::2], groups.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance[::2], groups.var(1, correction=0), rtol=1e-4, atol=0)
    assert torch.equal(mean[::2], mean[1::2])


def test_doubling_needs_sixteen_products_of_thirty_six() -> None:
    block = Upsample(5).requires_grad_(False)
    x = torch.randn(1, 5, 7, 6)
    way = Strips("exact", False, torch.float32, torch.device("cpu"))
    doubled = Doubled(way.held(x), block.conv)
    torch.testing.assert_close(way.gathered(doubled), block(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(doubled.read(3, 10), block(x)[:, :, 3:10], rtol=1e-5, atol=1e-5)


def test_overlapping_rows_are_computed_once() -> None:
    asked = []

    class Source:
        channels, height, width, widest, stored = 2, 12, 3, 2, 72

        def read(self, begin: int, end: int) -> torch.Tensor:
            asked.extend(range(begin, end))
            return torch.arange(begin, end).float().view(1, 1, -1, 1).expand(1, 2, -1, 3)

        def drop_before(self, row: int) -> None:
            pass

    conv = nn.Conv2d(2, 2, 3, padding=1).requires_grad_(False)
    source = Window(Source())
    twice = Convolved(Convolved(source, conv), conv)
    both = Added(twice, source)  # a residual block, whose shortcut comes behind
    for _ in range(2):
        asked.clear()
        for begin in range(0, 12, 4):
            both.read(begin, begin + 4)
        assert sorted(asked) == list(range(12))


@pytest.mark.parametrize(("room", "most"), [(0, 1.35), (10**9, 2.1)])
def test_strips_hold_less_than_the_whole(
    room: int, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sheets hold the largest layer, or two where there is room; the whole holds several."""
    alive: dict[int, Any] = {}
    sizes = []
    append = Sheet.append

    def size(sheet: Sheet) -> int:
        return sum(s.values.nbytes for s in sheet.strips if s.values is not None)

    def counted(sheet: Sheet, x: torch.Tensor) -> None:
        append(sheet, x)
        alive[id(sheet)] = weakref.ref(sheet)
        sizes.append(sum(size(s) for ref in alive.values() if (s := ref()) is not None))

    monkeypatch.setattr(Sheet, "append", counted)
    monkeypatch.setattr(strips, "ROOM", room)
    decode_strips(network(), torch.randn(1, 4, 40, 10))
    largest = 8 * 160 * 40 * 4
    assert (most - 1) * largest <= max(sizes) <= most * largest


def test_freed_memory_goes_back_while_strips_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(strips, "give_back_pages", lambda: given.append(1))
    source = Strips("exact", False, torch.float32, torch.device("cpu")).held(
        torch.randn(1, 8, 90, 50)
    )
    done = list(strips.swept(source))
    assert done == list(rows.strips_of(source)) and len(done) > strips.GIVE_BACK_STRIPS
    assert len(given) == len(done) // strips.GIVE_BACK_STRIPS


def test_room_is_that_of_the_largest_sheet_once_or_twice() -> None:
    config = AutoencoderConfig()
    assert strips.sheet_room(config, 512**2, 4) == 2 * 128 * 512**2 * 4
    assert strips.sheet_room(config, 1536**2, 4) == 128 * 1536**2 * 4
    assert strips.sheet_room(config, 1100**2, 4) == strips.ROOM


def test_sides_must_fit() -> None:
    with pytest.raises(SizeError):
        encode_strips(network(), torch.randn(1, 3, 25, 24))
