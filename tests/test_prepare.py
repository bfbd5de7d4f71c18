"""From pictures to shards and back to batches."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pictures import draw, draw_folder, small_encoders_folder, write_lines
from pixsigma.buckets import training_table
from pixsigma.cli import app
from pixsigma.data.batching import BucketBatches
from pixsigma.data.manifest import Caption, Row
from pixsigma.data.shards import ShardedFeatures, open_features
from pixsigma.data.transforms import cover_and_crop, open_picture, to_array
from pixsigma.datatools import prepare as preparing
from pixsigma.datatools.prepare import Settings, Work, prepare
from pixsigma.datatools.scan import settle_buckets
from pixsigma.datatools.workers import Workers
from pixsigma.errors import (
    CorruptWeightsError,
    InputError,
    MismatchError,
    MissingWeightsError,
    OutOfMemoryError,
    OutputError,
)
from small import small_autoencoder, small_text_encoder
from test_sources import write_official

CPU = Work(device=torch.device("cpu"), batch_size=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_encoders_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def settings(model: Path, data: Path) -> Settings:
    return Settings(data=str(data), model=str(model), resolution=64)


@pytest.fixture(scope="module")
def prepared(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "out"
    list(prepare(settings, out, CPU))
    return out


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_file_that_is_not_used_has_its_reason(prepared: Path, data: Path) -> None:
    reasons = {Path(str(r["name"])).stem: r["reason"] for r in lines(prepared / "rejects.jsonl")}
    assert reasons == {
        "wide": "extreme aspect",
        "tall": "extreme aspect",
        "tiny": "tiny",
        "silent": "empty caption",
        "untold": "empty caption",
        "broken": "corrupt",
        "twin": "duplicate",
    }


def test_pictures_are_in_the_bucket_of_their_shape(prepared: Path) -> None:
    index = json.loads((prepared / "index.json").read_text())
    assert sum(index["buckets"].values()) == index["num_rows"] == 9
    table = set(training_table(64).values())
    for shard in index["shards"]:
        assert (shard["height"], shard["width"]) in table
        tensors = load_file(prepared / shard["file"])
        assert tensors["mean"].shape == (
            shard["rows"],
            4,
            shard["height"] // 2,
            shard["width"] // 2,
        )
    assert index["buckets"]["64x64"] == 4


def test_latents_and_text_are_what_the_networks_make_of_them(prepared: Path) -> None:
    index = json.loads((prepared / "index.json").read_text())
    features = ShardedFeatures(prepared)
    rows = [Row.from_json(values) for values in lines(prepared / "rows.jsonl")]
    assert len(features) == len(rows)
    vae, text = small_autoencoder(), small_text_encoder()
    sizes = [(s["height"], s["width"]) for s in index["shards"] for _ in range(s["rows"])]
    for number in (0, 5, 8):
        image = cover_and_crop(open_picture(Path(rows[number].path).read_bytes()), *sizes[number])
        pixels = torch.from_numpy(to_array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            mean, std = vae.moments(pixels)
        shard, place = features._place(number)
        scale = vae.config.scaling_factor
        torch.testing.assert_close(shard["mean"][place].float(), mean[0] * scale, atol=2e-3, rtol=0)
        torch.testing.assert_close(shard["std"][place].float(), std[0] * scale, atol=2e-3, rtol=0)
        batch = features.batch(torch.tensor([number]), 0.0, torch.Generator().manual_seed(0))
        wanted = [text.encode([c.text]).embeddings[0] for c in rows[number].captions]
        found = batch.text.embeddings[0][batch.text.mask[0]]
        assert any(
            len(w) == len(found) and torch.allclose(found, w, atol=5e-3, rtol=1e-3) for w in wanted
        )


def test_dropped_captions_are_the_empty_one_and_batches_are_of_one_size(prepared: Path) -> None:
    features = ShardedFeatures(prepared)
    rows = (features.bucket_of == features.bucket_of[0]).nonzero()[:, 0]
    batch = features.batch(rows, 1.0, torch.Generator().manual_seed(0))
    null = small_text_encoder().encode([""])
    torch.testing.assert_close(
        batch.text.embeddings, null.embeddings.expand(len(rows), -1, -1), atol=5e-3, rtol=1e-3
    )
    first, last = torch.tensor([0]), torch.tensor([len(features) - 1])
    with pytest.raises(MismatchError, match="one size"):
        features.batch(torch.cat([first, last]), 0.0, torch.Generator())


def test_long_and_short_captions_are_mixed_by_their_ratio(prepared: Path) -> None:
    rows = [Row.from_json(values) for values in lines(prepared / "rows.jsonl")]
    both = next(i for i, row in enumerate(rows) if len(row.captions) == 2)
    text = small_text_encoder()
    lengths = {c.kind: text.encode([c.text]).mask.shape[1] for c in rows[both].captions}
    assert lengths["short"] != lengths["long"]
    for share, low, high in ((0.0, 0, 0), (1.0, 1, 1), (0.6, 0.5, 0.7), (None, 0.4, 0.6)):
        features = ShardedFeatures(prepared, long_captions=share)
        rng = torch.Generator().manual_seed(0)
        batch = features.batch(torch.full((400,), both), 0.0, rng)
        long = (batch.text.mask.sum(dim=1) == lengths["long"]).float().mean()
        assert low <= long <= high
    alone = next(i for i, row in enumerate(rows) if len(row.captions) == 1)
    ShardedFeatures(prepared, long_captions=1.0).batch(torch.tensor([alone]), 0.0, rng)


def test_batches_by_bucket_read_every_picture(prepared: Path) -> None:
    features = ShardedFeatures(prepared)
    batches = BucketBatches(features.bucket_of, 2, seed=0)
    rng = torch.Generator().manual_seed(0)
    seen: set[int] = set()
    for step in range(batches.steps_before(2)):
        rows = batches.rows(step)
        batch = features.batch(rows, 0.1, rng)
        bucket = int(features.bucket_of[rows[0]])
        assert tuple(batch.latents.shape[1:]) == features.latent_shapes[bucket]
        seen |= set(rows.tolist())
    assert seen == set(range(9))


# Stopping and going on


def content(folder: Path) -> dict[str, object]:
    """Of every file; safetensors orders its metadata by chance, so of those the tensors."""
    return {
        path.name: {name: tensor.tolist() for name, tensor in load_file(path).items()}
        if path.suffix == ".safetensors"
        else path.read_bytes()
        for path in folder.iterdir()
    }


def test_a_stopped_run_goes_on_with_the_first_missing_shard(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = replace(CPU, shard_bytes=30_000)  # two or three pictures
    whole, out = tmp_path / "whole", tmp_path / "out"
    list(prepare(settings, whole, work))
    run = prepare(settings, out, work)
    for progress in run:
        if progress.stage == "encoding" and progress.done >= 5:
            break
    run.close()
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("*-*.safetensors")}
    assert 0 < len(done) < len(list(whole.glob("*-*.safetensors")))
    assert not (out / "index.json").exists()
    with pytest.raises(MissingWeightsError, match="to its end"):
        open_features(out)

    encoded: list[int] = []
    original = preparing.encode_shards

    def counted(*args: object) -> Iterator[int]:
        for num in original(*args):  # type: ignore[arg-type]
            encoded.append(num)
            yield num

    monkeypatch.setattr(preparing, "encode_shards", counted)
    (out / ".64x64-00000.safetensors.0a1b2c3d.tmp").write_bytes(b"half")
    list(prepare(settings, out, work))
    kept = sum(len(load_file(out / name)["mean"]) for name in done)
    assert sum(encoded) == 9 - kept
    assert {name: (out / name).stat().st_mtime_ns for name in done} == done
    assert content(out) == content(whole)
    for path in out.glob("*-*.safetensors"):
        tensors = load_file(path)
        assert sum(t.nbytes for t in tensors.values()) <= 30_000 or len(tensors["mean"]) == 1


def test_a_folder_keeps_its_settings_and_its_pictures(
    settings: Settings, prepared: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="square False, not True"):
        list(prepare(replace(settings, square=True), prepared, CPU))
    few = tmp_path / "few"
    draw(few / "a.png", 64, 64).with_suffix(".txt").write_text("a")
    out = tmp_path / "out"
    list(prepare(replace(settings, data=str(few)), out, CPU))
    draw(few / "b.png", 64, 64, seed=1).with_suffix(".txt").write_text("b")
    with pytest.raises(InputError, match="not those that"):
        list(prepare(replace(settings, data=str(few)), out, CPU))
    with pytest.raises(OutputError, match="new or empty folder"):
        list(prepare(settings, few, CPU))


def test_worker_processes_do_the_same(settings: Settings, prepared: Path, tmp_path: Path) -> None:
    list(prepare(settings, tmp_path / "out", replace(CPU, workers=1)))
    assert content(tmp_path / "out") == content(prepared)


def die(_: int) -> int:
    import os

    os._exit(9)


def test_a_killed_worker_is_told() -> None:
    with Workers(1) as workers, pytest.raises(OutOfMemoryError, match="fewer --workers"):
        list(workers.map(die, [1]))


# Buckets


def row(width: int, height: int) -> Row:
    return Row(path="x", captions=(Caption("x"),), width=width, height=height)


def test_small_buckets_go_to_their_neighbours() -> None:
    table = training_table(256)
    rows = [row(100, 100)] * 5 + [row(200, 100)] * 4 + [row(180, 100)] + [row(95, 100)]
    assert len(settle_buckets(rows, table, 1)) == 4
    merged = settle_buckets(rows, table, 3)
    assert {ratio: len(each) for ratio, each in merged.items()} == {"0.5": 5, "1.0": 6}
    assert {len(each) for each in settle_buckets(rows, table, 50).values()} == {11}
    assert settle_buckets([], table, 1) == {}


def test_square_has_one_bucket(settings: Settings, tmp_path: Path) -> None:
    list(prepare(replace(settings, square=True), tmp_path, CPU))
    assert ShardedFeatures(tmp_path).latent_shapes == [(4, 32, 32)]


# Other inputs, and what cannot be used


def test_json_lines_with_long_captions_are_cut_and_counted(model: Path, tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 64, 64)
    listed = write_lines(
        tmp_path / "rows.jsonl",
        [{"path": "a.png", "long_caption": "word " * 60}, {"path": "gone.png", "caption": "gone"}],
    )
    settings = Settings(data=str(listed), model=str(model), resolution=64, max_tokens=10)
    list(prepare(settings, tmp_path / "out", CPU))
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["num_cut_captions"] == 1
    assert lines(tmp_path / "out" / "rejects.jsonl")[0]["reason"] == "missing"
    features = ShardedFeatures(tmp_path / "out")
    batch = features.batch(torch.tensor([0]), 0.0, torch.Generator())
    assert batch.text.mask.sum() == 10


def eight_times_smaller(folder: Path) -> Path:
    """A model whose autoencoder has the factor of published ones."""
    from pixsigma.models.autoencoder import KLAutoencoder
    from pixsigma.weights.folder import save_autoencoder

    small_encoders_folder(folder)
    config = replace(small_autoencoder().config, block_out_channels=(8, 8, 8, 8))
    save_autoencoder(KLAutoencoder(config), folder / "vae")
    return folder


def test_the_authors_features_become_shards(tmp_path: Path) -> None:
    root = write_official(tmp_path / "data")
    model = eight_times_smaller(tmp_path / "model")
    settings = Settings(
        data=str(root), model=str(model), resolution=64, official_features=True, max_tokens=20
    )
    list(prepare(settings, tmp_path / "out", CPU))
    latents = root / "InternData" / "img_sdxl_vae_features_64resolution_ms_new" / "a" / "b_1.npy"
    (shard,) = (tmp_path / "out").glob("64x64-*.safetensors")
    tensors = load_file(shard)
    expected = torch.from_numpy(np.load(latents)) * 0.13025
    torch.testing.assert_close(tensors["mean"][0].float(), expected[:4], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(tensors["std"][0].float(), expected[4:], atol=1e-3, rtol=1e-3)
    assert tensors["text_offsets"].tolist() == [0, 4, 8]
    assert tensors["caption_long"].tolist() == [[False, True]]


def test_features_of_wrong_shapes_are_not_used(tmp_path: Path, model: Path) -> None:
    root = write_official(tmp_path / "data")
    latents = root / "InternData" / "img_sdxl_vae_features_64resolution_ms_new"
    np.save(latents / "2.v2.npy", np.ones((8, 5, 5), np.float32))
    (latents / "a" / "b_1.npy").unlink()
    settings = Settings(data=str(root), model=str(model), resolution=64, official_features=True)
    with pytest.raises(InputError, match=r"2 features; the first.*no features at"):
        list(prepare(settings, tmp_path / "out", CPU))
    reasons = [str(r["detail"]) for r in lines(tmp_path / "out" / "rejects.jsonl")]
    assert "40x40, no bucket" in reasons[1]
    # an autoencoder with another factor cannot have made them
    whole = write_official(tmp_path / "whole")
    with pytest.raises(MismatchError, match=r"makes \(4, 24, 48\)"):
        list(prepare(replace(settings, data=str(whole)), tmp_path / "other", CPU))


def test_a_batch_is_the_same_under_autocast(prepared: Path) -> None:
    """Which joins no float16 on a CPU; held-out batches are read under it."""
    features, rows = ShardedFeatures(prepared), torch.tensor([0])
    plain = features.batch(rows, 0.0, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        coarse = features.batch(rows, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(coarse.latents, plain.latents)
    assert torch.equal(coarse.text.embeddings, plain.text.embeddings)


def test_damaged_shards_are_told(prepared: Path, tmp_path: Path) -> None:
    for name in ("index.json", "null.safetensors"):
        (tmp_path / name).write_bytes((prepared / name).read_bytes())
    with pytest.raises(MissingWeightsError, match="listed and not there"):
        open_features(tmp_path)
    for path in prepared.glob("*-*.safetensors"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[:50])
    with pytest.raises(CorruptWeightsError, match="delete it"):
        open_features(tmp_path).batch(torch.tensor([0]), 0.0, torch.Generator())
    for path in prepared.glob("*-*.safetensors"):
        tensors = load_file(path) | {"mean": torch.zeros(1, 4, 2, 2)}
        save_file(tensors, tmp_path / path.name)
    with pytest.raises(MismatchError, match="should hold latents"):
        open_features(tmp_path).batch(torch.tensor([0]), 0.0, torch.Generator())
    (tmp_path / "index.json").write_text('{"format": 99}')
    with pytest.raises(CorruptWeightsError, match="format 1"):
        open_features(tmp_path)


# The page and the door


def test_the_report_needs_nothing_beside_it(prepared: Path) -> None:
    page = (prepared / "report.html").read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:)|https?://|@import|<script""", page)
    assert page.count("<img") == 9
    for said in ("9 pictures for 64 px", "64x64", "extreme aspect", "picture number 0"):
        assert said in page


def test_captions_cannot_break_the_report(model: Path, tmp_path: Path) -> None:
    draw(tmp_path / "data" / "a.png", 64, 64).with_suffix(".txt").write_text("<script>x</script>&")
    settings = Settings(data=str(tmp_path / "data"), model=str(model), resolution=64)
    list(prepare(settings, tmp_path / "out", CPU))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;x&lt;/script&gt;&amp;" in page


def test_the_command_tells_what_there_is(settings: Settings, tmp_path: Path) -> None:
    common = ["prepare", settings.data, str(tmp_path / "out"), "--model", settings.model]
    fixed = ["--resolution", "64", "--workers", "0", "--device", "cpu"]
    told = CliRunner().invoke(app, [*common, *fixed, "--json"])
    assert told.exit_code == 0
    facts = json.loads(told.stdout)
    assert facts["num_rows"] == 9
    assert facts["num_rejects"] == 7
    assert Path(facts["report"]).is_file()
    again = CliRunner().invoke(app, [*common, *fixed])
    assert again.exit_code == 0
    assert "9 pictures in" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--resolution", "100"], 2),
        (["--resolution", "64", "--batch", "0"], 2),
        (["--resolution", "64", "--max-aspect", "0.5"], 2),
        (["--resolution", "64", "--dtype", "fp8"], 2),
        (["--resolution", "64", "--official-features"], 2),
        (["--resolution", "64", "--model", "no/such/folder"], 3),
    ],
)
def test_bad_wishes_end_with_one_line_and_a_code(
    settings: Settings, tmp_path: Path, arguments: list[str], code: int
) -> None:
    call = ["prepare", settings.data, str(tmp_path / "out"), "--workers", "0", "--device", "cpu"]
    result = CliRunner().invoke(app, [*call, "--model", settings.model, *arguments])
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("pixsigma: ")
    assert result.stderr.count("\n") == 1


def test_workers_do_not_load_torch() -> None:
    loaded = "import pixsigma.datatools.scan, sys; print('torch' in sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "False"


def test_a_run_that_encoded_nothing_leaves_its_folder_free(
    model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    foreign = Settings(data=str(data), model=str(model), resolution=64, hints="depth")
    with pytest.raises(InputError, match="hint"):
        list(prepare(foreign, out, CPU))
    list(prepare(replace(foreign, hints=None), out, CPU))
    with pytest.raises(InputError, match="was begun with hints None, not depth"):
        list(prepare(foreign, out, CPU))
