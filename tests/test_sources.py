"""Rows of every kind of data set."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pictures import draw, draw_folder, write_lines
from pixsigma.data.manifest import Caption, Row, captions_of, fingerprint, read_bytes
from pixsigma.data.official import read_moments, read_states
from pixsigma.data.sources import read_rows
from pixsigma.errors import (
    CorruptWeightsError,
    InputError,
    MismatchError,
    MissingExtraError,
    MissingWeightsError,
)


def test_a_folder_gives_its_pictures_and_the_texts_beside_them(tmp_path: Path) -> None:
    rows = list(read_rows(str(draw_folder(tmp_path))))
    names = [str(Path(row.path).relative_to(tmp_path)) for row in rows]
    assert names == sorted(names)
    assert len(rows) == 16
    assert rows[0].captions == (
        Caption("picture number 0"),
        Caption("a long caption of the picture that has the number zero", "long"),
    )
    assert next(row for row in rows if "untold" in row.path).captions == ()


def test_rows_survive_json() -> None:
    row = Row(
        path="a.tar",
        member="x/b.png",
        captions=(Caption("é"), Caption("b", "long")),
        width=3,
        height=4,
        sha="ff",
        start=512,
        length=9,
        features=("a.npy", "b.npz"),
    )
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row
    assert row.name == "a.tar:x/b.png"
    assert fingerprint([row]) != fingerprint([row, row])


def test_captions_are_taken_from_the_usual_keys() -> None:
    record = {
        "captions": ["one", {"text": "two ", "kind": "long"}],
        "text": "three",
        "sharegpt4v": ["four", "five"],
        "url": "not a caption",
    }
    assert captions_of(record, "here") == (
        Caption("one"),
        Caption("two", "long"),
        Caption("three"),
        Caption("four", "long"),
        Caption("five", "long"),
    )
    for wrong in ({"text": 3}, {"captions": [{"text": "a", "kind": "middle"}]}, {"captions": [7]}):
        with pytest.raises(InputError, match="here: a caption is a text"):
            captions_of(wrong, "here")


def test_json_lines(tmp_path: Path) -> None:
    values: list[dict[str, object]] = [
        {"path": "x/a.png", "captions": ["a"]},
        {"file_name": "b.png", "caption": "b", "long_caption": "a long b"},
    ]
    rows = list(read_rows(str(write_lines(tmp_path / "rows.jsonl", values))))
    assert [row.path for row in rows] == [str(tmp_path / "x/a.png"), str(tmp_path / "b.png")]
    assert rows[1].captions == (Caption("b"), Caption("a long b", "long"))
    (tmp_path / "bad.jsonl").write_text('{"path": "a.png"}\n\n{"caption": "no path"}\n')
    with pytest.raises(InputError, match="line 3: a row needs one of path"):
        list(read_rows(str(tmp_path / "bad.jsonl")))
    (tmp_path / "worse.jsonl").write_text('{"path": "a.png"}\n[1\n')
    with pytest.raises(InputError, match=r"worse.jsonl, line 2: no JSON"):
        list(read_rows(str(tmp_path / "worse.jsonl")))


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"path": ["a.png", "b.png"], "captions": [["a", "A"], []]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    rows = list(read_rows(str(tmp_path / "rows.parquet")))
    assert [row.captions for row in rows] == [(Caption("a"), Caption("A")), ()]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="no parquet file"):
        list(read_rows(str(tmp_path / "bad.parquet")))


def test_parquet_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "rows.parquet").touch()
    with pytest.raises(MissingExtraError, match=r"pixsigma\[train\]"):
        list(read_rows(str(tmp_path / "rows.parquet")))


# Tar shards


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    data = [draw(tmp_path / f"{i}.png", 64, 64, i).read_bytes() for i in range(3)]
    folder = tmp_path / "shards"
    folder.mkdir()
    write_tar(
        folder / "0.tar",
        {
            "a/x.png": data[0],
            "a/x.txt": b"an x",
            "a/y.json": b'{"caption": "a y", "sharegpt4v": "a long y", "width": 64}',
            "a/y.png": data[1],
        },
    )
    write_tar(folder / "1.tar", {"a/z.png": data[2], "a/z.long.txt": b"long", "a/w.txt": b"none"})
    return folder


def test_tar_shards_are_read_in_place(shards: Path, tmp_path: Path) -> None:
    rows = list(read_rows(str(shards)))
    assert [row.name for row in rows] == [
        f"{shards}/0.tar:a/x.png",
        f"{shards}/0.tar:a/y.png",
        f"{shards}/1.tar:a/z.png",
    ]
    assert [row.captions for row in rows] == [
        (Caption("an x"),),
        (Caption("a y"), Caption("a long y", "long")),
        (Caption("long", "long"),),
    ]
    for i, row in enumerate(rows):
        assert read_bytes(row) == (tmp_path / f"{i}.png").read_bytes()


def test_tar_shards_come_by_url(shards: Path) -> None:
    pytest.importorskip("fsspec")
    by_path = list(read_rows(str(shards)))
    by_url = list(read_rows(f"file://{shards}/*.tar"))
    assert [row.captions for row in by_url] == [row.captions for row in by_path]
    assert all(row.path.startswith("file://") for row in by_url)
    assert [read_bytes(row) for row in by_url] == [read_bytes(row) for row in by_path]


def test_what_is_no_data_set_is_told(shards: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.tar"
    cut.write_bytes((shards / "0.tar").read_bytes()[:700])
    with pytest.raises(InputError, match="no whole, uncompressed tar"):
        list(read_rows(str(cut)))
    two = write_tar(tmp_path / "two.tar", {"a.jpg": b"1", "a.mask.png": b"2", "a.txt": b"an a"})
    with pytest.raises(InputError, match=r"two.tar: a.jpg and a.mask.png are of one name"):
        list(read_rows(str(two)))
    for wrong, said in {
        str(tmp_path / "nothing"): "a data set is a folder",
        str(tmp_path / "no-*.tar"): "no tar shard",
        "s3://bucket/rows.jsonl": "only tar shards",
        "quux://x/y.tar": "no URL that fsspec knows",
    }.items():
        with pytest.raises(InputError, match=said):
            list(read_rows(wrong))


# The authors' layout


def write_official(root: Path, square: bool = False) -> Path:
    """Two pictures, the second without its long caption; features for 64 pixels."""
    records: list[dict[str, Any]] = [
        {"height": 64, "width": 64, "ratio": 1.0, "path": "a/b/1.png", "prompt": "one"},
        {"height": 48, "width": 96, "ratio": 0.5, "path": "2.v2.png", "prompt": "two"},
    ]
    records[0]["sharegpt4v"], records[1]["sharegpt4v"] = "a long one", ""
    data = root / "InternData"
    kind = "" if square else "_ms"
    rng = np.random.default_rng(0)
    for record, name, (h, w) in zip(
        records, ("1" if square else "a/b_1", "2.v2"), ((8, 8), (6, 12)), strict=True
    ):
        (data / f"img_sdxl_vae_features_64resolution{kind}_new" / "a").mkdir(
            parents=True, exist_ok=True
        )
        latents = np.abs(rng.normal(size=(8, h, w))).astype(np.float32)
        np.save(data / f"img_sdxl_vae_features_64resolution{kind}_new" / f"{name}.npy", latents)
        for folder in ("caption_features_new", "sharegpt4v_caption_features_new"):
            (data / folder / "a").mkdir(parents=True, exist_ok=True)
            np.savez(
                data / folder / f"{name}.npz",
                caption_feature=rng.normal(size=(1, 7, 16)).astype(np.float16),
                attention_mask=np.array([[1, 1, 1, 1, 0, 0, 0]], np.int16),
            )
        draw(root / "InternImgs" / record["path"], record["width"], record["height"])
    (data / "data_info.json").write_text(json.dumps(records))
    return root


@pytest.mark.parametrize("square", [False, True])
def test_the_authors_layout(tmp_path: Path, square: bool) -> None:
    root = write_official(tmp_path, square)
    rows = list(read_rows(str(root)))
    assert rows[0].captions == (Caption("one"), Caption("a long one", "long"))
    assert all(Path(row.path).is_file() for row in rows)
    stored = list(read_rows(str(root), resolution=64, square=square))
    assert [len(row.features) for row in stored] == [3, 2]
    assert stored[1].captions == (Caption("two"),)
    assert all(Path(file).is_file() for row in stored for file in row.features)


def test_the_authors_features_are_read_as_they_are(tmp_path: Path) -> None:
    (row, _) = read_rows(str(write_official(tmp_path)), resolution=64)
    mean, std = read_moments(row.features[0])
    whole = np.load(row.features[0])
    assert np.array_equal(mean.numpy(), whole[:4])
    assert np.array_equal(std.numpy(), whole[4:])
    states = read_states(row.features[1], max_tokens=5)
    assert states.shape == (4, 16)
    assert torch.equal(
        states, torch.from_numpy(np.load(row.features[1])["caption_feature"][0, :4]).float()
    )


def test_features_of_a_wrong_shape_are_refused(tmp_path: Path) -> None:
    def saved(array: Any) -> Path:
        np.save(tmp_path / "x.npy", array)
        return tmp_path / "x.npy"

    def zipped(**arrays: Any) -> Path:
        np.savez(tmp_path / "x.npz", **arrays)
        return tmp_path / "x.npz"

    for array in (np.zeros((7, 4, 4)), np.zeros((1, 8, 4, 4)), np.zeros((8, 4, 4), np.int64)):
        with pytest.raises(MismatchError):
            read_moments(saved(array))
    with pytest.raises(MismatchError, match="standard deviations"):
        read_moments(saved(np.full((8, 4, 4), -1.0)))
    with pytest.raises(MismatchError, match="NaN"):
        read_moments(saved(np.full((8, 4, 4), np.nan)))
    with pytest.raises(CorruptWeightsError):
        read_moments(saved(np.array([{"code": 1}], dtype=object)))
    with pytest.raises(MissingWeightsError):
        read_moments(tmp_path / "nothing.npy")
    feature = np.zeros((1, 7, 16))
    with pytest.raises(MismatchError, match="caption_feature"):
        read_states(zipped(other=feature), 10)
    with pytest.raises(MismatchError, match="must be"):
        read_states(zipped(caption_feature=feature[0]), 10)
    with pytest.raises(MismatchError, match="attention_mask"):
        read_states(zipped(caption_feature=feature, attention_mask=np.ones(6)), 10)
    with pytest.raises(MismatchError, match="7 tokens"):
        read_states(zipped(caption_feature=feature), 6)
