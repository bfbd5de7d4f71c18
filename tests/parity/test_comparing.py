"""What is timed against diffusers must be the same step: else the figures compare nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pixsigma.cli import app
from pixsigma.comparing import Task, in_diffusers, step_of_diffusers, step_of_ours
from pixsigma.errors import InputError
from pixsigma.measuring import relative_error
from small import KINDS, SIGMA, small_transformer


@pytest.mark.parametrize("side", [64, 128])
def test_a_guided_step_is_that_of_diffusers(side: int) -> None:
    model = small_transformer()
    task = Task.of(model.config, side, num_tokens=7)
    ours = step_of_ours(model, task)
    theirs = step_of_diffusers(in_diffusers(model), task)
    expected = theirs()
    assert relative_error(ours(), expected) < 1e-5
    assert torch.equal(ours(), ours())
    assert relative_error(step_of_ours(model, task, again=True)(), expected) < 1e-5


def test_weights_are_shared_and_not_copied() -> None:
    model = small_transformer()
    theirs = in_diffusers(model)
    ours = model.blocks[0].mlp.fc1.weight
    assert theirs.transformer_blocks[0].ff.net[0].proj.weight.data_ptr() == ours.data_ptr()


@pytest.mark.parametrize("kind", ["alpha", "compressed", "normed"])
def test_models_that_cannot_be_compared_are_refused(kind: str) -> None:
    with pytest.raises(InputError, match="plain models"):
        in_diffusers(small_transformer(replace(KINDS[kind], num_layers=SIGMA.num_layers)))


def test_bench_tells_times_and_errors(tmp_path: Path) -> None:
    arguments = ["bench", "--size", "64x64", "--rounds", "1", "--out", str(tmp_path), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "bench.json").read_text())
    assert list(report["variants"])[:2] == ["diffusers", "ours"]
    assert report["variants"]["ours"]["error"] < 1e-4
    assert report["machine"]["threads"] >= 1
    assert (tmp_path / "bench.png").stat().st_size > 1000


@pytest.mark.parametrize("arguments", [["--size", "64x128"], ["--rounds", "0"], ["--tokens", "0"]])
def test_bench_refuses_what_it_does_not_measure(arguments: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "--out", str(tmp_path), *arguments])
    assert result.exit_code != 0
