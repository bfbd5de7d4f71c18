import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

from pixsigma.buckets import (
    ASPECT_RATIOS,
    ASPECT_RATIOS_TEST,
    bin_table,
    check_size,
    nearest,
    nearest_ratio,
    nearest_valid_sizes,
    size_for_aspect,
)
from pixsigma.errors import SizeError


def tables_of_diffusers() -> dict[str, dict[str, list[float]]]:
    """Read from the source: importing these pipelines takes many seconds."""
    spec = find_spec("diffusers")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "pipelines" / "pixart_alpha"
    tables = {}
    for name in ("pipeline_pixart_alpha.py", "pipeline_pixart_sigma.py"):
        for node in ast.parse((folder / name).read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("ASPECT"):
                tables[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
    return tables


@pytest.mark.parametrize(("sample_size", "side"), [(32, 256), (64, 512), (128, 1024), (256, 2048)])
def test_binning_reads_the_tables_of_diffusers(sample_size: int, side: int) -> None:
    theirs = tables_of_diffusers()[f"ASPECT_RATIO_{side}_BIN"]
    ours = bin_table(sample_size)
    assert {k: [float(h), float(w)] for k, (h, w) in ours.items()} == theirs
    # of two ratios at the same distance the first wins, so the order is part of the meaning
    assert list(ours) == list(theirs)


@pytest.mark.parametrize("side", [256, 512, 1024, 2048])
def test_nearest_is_the_bin_of_diffusers(side: int) -> None:
    from diffusers.image_processor import PixArtImageProcessor

    table = bin_table(side // 8)
    theirs = {ratio: list(size) for ratio, size in table.items()}
    for height in range(100, 2000, 173):
        for width in range(100, 2000, 131):
            expected = PixArtImageProcessor.classify_height_width_bin(height, width, theirs)
            assert nearest(table, height, width) == expected


def test_full_hd_falls_into_the_published_bucket() -> None:
    table = ASPECT_RATIOS[1024]
    assert nearest_ratio(table, height=1080, width=1920) == "0.57"
    assert nearest(table, height=1080, width=1920) == (768, 1344)


def test_of_equal_distances_the_first_wins() -> None:
    assert nearest({"1.5": (3, 2), "0.5": (1, 2)}, 4, 4) == (3, 2)
    assert nearest({"0.5": (1, 2), "1.5": (3, 2)}, 4, 4) == (1, 2)


def test_tables_have_the_published_lengths_areas_and_steps() -> None:
    areas = {256: (59.1e3, 65.6e3), 512: (0.236e6, 0.263e6), 1024: (0.946e6, 1.049e6)}
    areas |= {2048: (3.78e6, 4.2e6), 2880: (7.249e6, 8.3e6)}
    steps = {256: 16, 512: 32, 1024: 64, 2048: 128, 2880: 64}
    for side, table in ASPECT_RATIOS.items():
        assert len(table) == 40
        assert len(ASPECT_RATIOS_TEST[side]) == 33
        for ratio, (height, width) in table.items():
            assert str(float(ratio)) == ratio
            assert float(ratio) == pytest.approx(height / width, rel=0.031)
            assert areas[side][0] <= height * width <= areas[side][1]
            assert height % steps[side] == width % steps[side] == 0


def test_single_entries_of_the_large_tables() -> None:
    assert ASPECT_RATIOS[2880]["0.55"] == (2112, 3840)
    assert ASPECT_RATIOS[2880]["4.0"] == (5760, 1408)
    assert ASPECT_RATIOS_TEST[2880]["0.26"] == (2048, 7936)
    assert ASPECT_RATIOS_TEST[2048]["0.26"] == (1024, 3968)
    assert "0.28" in ASPECT_RATIOS_TEST[1024] and "0.28" not in ASPECT_RATIOS_TEST[2048]


def test_tables_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        ASPECT_RATIOS[256]["1.0"] = (1, 1)  # type: ignore[index]


def test_a_model_without_a_table_is_told_what_to_do() -> None:
    with pytest.raises(SizeError, match=r"this one has 128; .*use_resolution_binning=False"):
        bin_table(16)


def test_aspects_give_trained_sizes_where_there_are_some() -> None:
    assert size_for_aspect(1024, width=16, height=9) == (768, 1344)
    assert size_for_aspect(1024, width=1, height=1) == (1024, 1024)
    assert size_for_aspect(128, width=16, height=9) == (96, 176)
    assert size_for_aspect(128, width=1, height=4) == (256, 64)
    assert size_for_aspect(256, width=3, height=2) == (208, 304)
    assert size_for_aspect(256, width=3, height=2, multiple=32) == (224, 320)
    assert size_for_aspect(512, width=3, height=2, multiple=32) == (416, 608)


@pytest.mark.parametrize(("width", "height"), [(5, 1), (1, 5), (0, 1), (1, 0)])
def test_aspects_beyond_training_are_refused(width: int, height: int) -> None:
    with pytest.raises(SizeError, match="between 1:4 and 4:1"):
        size_for_aspect(1024, width, height)


def test_nearest_valid_sizes_begin_with_the_nearest() -> None:
    assert nearest_valid_sizes(100, 100)[0] == (96, 96)
    assert nearest_valid_sizes(108, 64) == [(112, 64), (96, 64)]
    assert nearest_valid_sizes(64, 64) == [(64, 64)]
    assert nearest_valid_sizes(3, 64) == [(16, 64)]


def test_a_wrong_size_names_right_ones() -> None:
    check_size(1344, 768)
    with pytest.raises(SizeError, match=r"got 1000x600; nearest: 992x592 or 992x608"):
        check_size(1000, 600)
    with pytest.raises(SizeError, match="nearest: 16x16"):
        check_size(0, -3)
    with pytest.raises(SizeError, match="1 or more"):
        nearest(ASPECT_RATIOS[256], 0, 10)
