"""Weak to strong: stages that begin with one another, in one file and one command."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pictures import small_encoders_folder
from pixsigma.cli import app
from pixsigma.errors import InputError, MissingWeightsError
from pixsigma.training.chain import Chain, read_chain, train_chain
from pixsigma.training.checkpoint import checkpoints
from pixsigma.weights.folder import read_transformer, save_transformer
from processes import in_two
from small import small_features, small_transformer

PROCESS = """
import os, sys
from pathlib import Path
from pixsigma.training.chain import read_chain, train_chain
chain, run = read_chain(Path(sys.argv[1])), Path(sys.argv[2])
asked = iter(range(100))
heard = lambda: next(asked) == 2 and os.environ["RANK"] == "1"
stopped = [(report.stage, report.step) for report in train_chain(chain, run, stop=heard)]
rest = [(report.stage, report.step) for report in train_chain(chain, run, resume=True)]
(run / f"told-{os.environ['RANK']}").write_text(f"{stopped}\\n{rest}")
"""
CHAIN = """
init_from = "{folder}/model"
base = "{folder}/model"
[optimizer]
learning_rate = 1e-3
warmup_steps = 0
[run]
steps = 2
batch_size = 4
log_every = 1
device = "cpu"
[validation]
every = 1000
[[stage]]
name = "vae"
verb = "swap-autoencoder"
base = "{folder}/model"
features = "{folder}/4.safetensors"
[[stage]]
name = "high"
verb = "raise-resolution"
resolution = 64
features = "{folder}/8.safetensors"
run = {{ steps = 3 }}
[[stage]]
name = "long"
verb = "lengthen-text"
max_tokens = 40
features = "{folder}/8.safetensors"
[[stage]]
name = "kv"
verb = "compress-kv"
kv_compression = {{ layers = [1] }}
features = "{folder}/8.safetensors"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_encoders_folder(tmp_path_factory.mktemp("chain") / "model").parent
    model = small_transformer()
    save_transformer(model, folder / "model" / "transformer")
    for side in (4, 8):
        small_features(folder / f"{side}.safetensors", side=side, several=False)
    (folder / "chain.toml").write_text(CHAIN.format(folder=folder))
    return folder


def chain(folder: Path, **changes: Any) -> Chain:
    given = {key.replace("__", "."): value for key, value in changes.items()}
    return read_chain(folder / "chain.toml", given)


def weights(model: Path) -> dict[str, torch.Tensor]:
    """Those of a folder's transformer."""
    return read_transformer(model).state_dict()


def test_each_stage_begins_with_the_one_before(folder: Path, tmp_path: Path) -> None:
    recipes = chain(folder).recipes(tmp_path)
    begun = [recipe.model.init_from for recipe in recipes.values()]
    assert begun == [str(folder / "model"), *(str(tmp_path / n) for n in ("vae", "high", "long"))]
    assert [recipe.run.steps for recipe in recipes.values()] == [2, 3, 2, 2]
    high = recipes["high"].model
    assert (high.sample_size, high.interpolation_scale) == (8, 0.125)
    assert [recipe.max_tokens for recipe in recipes.values()] == [None, None, 40, 40]
    assert recipes["kv"].model.told.keys() == {"kv_compression"}


def test_a_chain_is_one_command_and_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    calls = iter([False] * 3 + [True])
    reports = list(train_chain(chain(folder), tmp_path / "run", stop=lambda: next(calls)))
    assert [(report.stage, report.step) for report in reports] == [
        ("vae", 1),
        ("vae", 2),
        ("high", 1),
    ]
    with pytest.raises(InputError, match="holds stages already"):
        next(train_chain(chain(folder), tmp_path / "run"))
    before = (tmp_path / "run" / "vae" / "model" / "transformer" / "config.json").stat().st_mtime_ns
    command = ["train", str(folder / "chain.toml"), "--out", str(tmp_path / "run"), "--resume"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "9 steps" in result.stdout and str(tmp_path / "run" / "kv") in result.stdout
    after = (tmp_path / "run" / "vae" / "model" / "transformer" / "config.json").stat().st_mtime_ns
    assert before == after
    last = read_transformer(tmp_path / "run" / "kv" / "model")
    assert last.config.sample_size == 8 and last.config.interpolation_scale == 0.125
    assert last.config.kv_compression is not None
    assert [path.stem for path in checkpoints(tmp_path / "run" / "high")] == ["00000003"]


def test_a_stage_reads_longer_texts_from_then_on(folder: Path, tmp_path: Path) -> None:
    from pixsigma.weights.folder import folder_tokens

    only = chain(folder)
    only = only.model_copy(update={"stage": only.stage[2:3]})
    only = only.model_copy(update={"run": only.run | {"steps": 1}})
    list(train_chain(only, tmp_path))
    assert folder_tokens(tmp_path / "long" / "model") == 40
    assert folder_tokens(folder / "model") != 40


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stage__high__resolution": 60}, "multiple of 8"),
        ({"stage__high__resolutoin": 64}, "is resolution meant"),
        ({"stage__vae__max_tokens": 9}, "max_tokens is for lengthen-text"),
        ({"stage__vae__name": "high"}, "each stage has its own name"),
        ({"stage__low__resolution": 64}, "there is no low"),
        ({"stage__kv__run": {"stpes": 1}}, "stage kv: run.stpes is no key; is steps meant"),
        ({"stage__long__verb": "raise-resolution"}, "raise-resolution needs resolution"),
    ],
)
def test_bad_chains_end_before_the_first_step(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        chain(folder, **changes)


def test_a_missing_stage_is_told_before_the_first(folder: Path, tmp_path: Path) -> None:
    plan = chain(folder, stage__kv__features=str(tmp_path / "nothing"))
    with pytest.raises(MissingWeightsError, match="nothing"):
        next(train_chain(plan, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_two_processes_walk_through_a_chain_together(folder: Path, tmp_path: Path) -> None:
    """One hears Ctrl-C before its third step, in the second stage; both stop and go on there."""
    in_two(PROCESS, str(folder / "chain.toml"), str(tmp_path / "two"))
    told = [(tmp_path / "two" / f"told-{rank}").read_text() for rank in range(2)]
    assert told[0] == told[1]
    stopped, rest = map(ast.literal_eval, told[0].splitlines())
    steps = [(name, i + 1) for name in ("vae", "high", "long", "kv") for i in range(2)]
    steps.insert(4, ("high", 3))
    assert stopped and stopped + rest == steps
    assert {name for name, _ in stopped} == {"vae", "high"}
    alone = chain(folder, run__accumulate=2)
    list(train_chain(alone, tmp_path / "one"))
    begun = weights(folder / "model")
    for name in ("vae", "kv"):
        one, two = (weights(tmp_path / run / name / "model") for run in ("one", "two"))
        assert one.keys() == two.keys()
        parted = torch.cat([(two[key] - one[key]).flatten() for key in one])
        way = torch.cat([(one[key] - begun[key]).flatten() for key in begun])
        # Adam takes the sign of a gradient near zero from rounding, so single weights may part.
        assert parted.norm() < 0.02 * way.norm()
