"""A ControlNet's training: only the copy moves, what is written draws, resumption is exact."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from pixsigma import GenerationRequest, InputError, MismatchError
from pixsigma.data.features import Batch
from pixsigma.data.shards import open_features
from pixsigma.datatools.prepare import Settings, Work, prepare
from pixsigma.interfaces import TextFeatures
from pixsigma.training.control import Following, following
from pixsigma.training.optim import optimizers
from pixsigma.training.recipe import Recipe, read_recipe
from pixsigma.training.run import train
from pixsigma.training.sections import ControlSection
from pixsigma.training.trainer import Trainer
from pixsigma.training.validation import held_out_loss
from pixsigma.weights.controls import read_control
from pixsigma.weights.folder import save_folder
from small import SIGMA, small_pipeline, small_transformer

LAYERS = replace(SIGMA, num_layers=4)
RECIPE = """
features = "{folder}/features.safetensors"
[model]
init_from = "{folder}/base/transformer"
[control]
kind = "edges"
num_copied = 2
[optimizer]
learning_rate = 1e-2
warmup_steps = 0
[run]
steps = 6
batch_size = 4
checkpoint_every = 2
log_every = 2
ema_decay = 0.5
caption_dropout = 0.5
device = "cpu"
[validation]
every = 6
features = "{folder}/features.safetensors"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and pictures whose latents are their hints: what a copy can learn at once."""
    folder = tmp_path_factory.mktemp("control")
    torch.manual_seed(0)
    hint = torch.randn(8, 4, 4, 4)
    tensors = {
        "mean": hint.clone(),
        "std": torch.full((8, 4, 4, 4), 0.01),
        "text": torch.randn(5, 6, SIGMA.caption_channels),
        "text_mask": torch.ones(5, 6, dtype=torch.bool),
        "captions": torch.tensor([[0, 1], [2, -1], [3, 4], [0, -1]] * 2),
        "null_text": torch.zeros(1, 6, SIGMA.caption_channels),
        "null_mask": torch.tensor([[True] + [False] * 5]),
    }
    save_file(tensors, folder / "bare.safetensors")
    told = {"hint": "edges"}
    save_file({**tensors, "hint": hint}, folder / "features.safetensors", metadata=told)
    pipe = small_pipeline(transformer=small_transformer(LAYERS))
    pipe.save_pretrained(folder / "base")
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
    return folder


def recipe(folder: Path, **changes: Any) -> Recipe:
    given = {key.replace("__", "."): value for key, value in changes.items()}
    return read_recipe(folder / "recipe.toml", given)


@pytest.fixture(scope="module")
def done(folder: Path) -> Path:
    list(train(recipe(folder), folder / "run"))
    return folder / "run"


def test_only_the_copy_is_trained_and_written(folder: Path, done: Path) -> None:
    base = small_transformer(LAYERS)
    net, report = read_control(done, base, "sigma", kind="edges")
    fresh = Following(small_transformer(LAYERS), ControlSection(num_copied=2)).copy
    moved = [
        key
        for key, value in net.state_dict().items()
        if not torch.equal(value, fresh.state_dict()[key])
    ]
    assert report.kind == "edges" and len(moved) == len(net.state_dict())
    assert not (done / "model").exists()
    trainer = Trainer(recipe(folder), done)
    trainer.resume()
    expected = small_transformer(LAYERS).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in trainer.model.base.state_dict().items())
    checkpoint = torch.load(next((done / "checkpoints").rglob("*.pt")), weights_only=False)
    assert all(key.startswith("copy.") for key in checkpoint["model"])


def test_it_learns_to_follow(folder: Path) -> None:
    plan = recipe(folder, run__steps=40, run__log_every=1, run__checkpoint_every=100)
    reports = list(train(plan, folder / "long"))
    first, last = (sum(r.loss for r in part) / 8 for part in (reports[:8], reports[-8:]))
    assert last < 0.8 * first
    data = open_features(folder / "features.safetensors")
    trainer = Trainer(plan, folder / "long")
    before = held_out_loss(trainer.averaged(), trainer.schedule, data, torch.device("cpu"))
    trainer.resume()
    after = held_out_loss(trainer.averaged(), trainer.schedule, data, torch.device("cpu"))
    assert after < 0.8 * before
    assert reports[-1].held_out_loss == pytest.approx(after)


def test_muon_moves_the_matrices_of_copies_and_their_links(folder: Path, tmp_path: Path) -> None:
    trainer = Trainer(recipe(folder, optimizer__name="muon"), tmp_path)
    muon, rest = optimizers(trainer.model, trainer.recipe.optimizer)
    # seven of each block, a link behind it and one before the first
    assert len(muon.param_groups[0]["params"]) == 2 * 7 + 3
    assert all(p.ndim == 1 or p.shape[0] == 6 for p in rest.param_groups[0]["params"])


def test_a_fresh_copy_answers_as_the_model(folder: Path) -> None:
    base = small_transformer(LAYERS)
    model = Following(base, ControlSection())
    text = torch.randn(2, 6, SIGMA.caption_channels)
    mask = torch.ones(2, 6, dtype=torch.bool)
    x, t, hint = torch.randn(2, 4, 4, 4), torch.tensor([10.0, 900.0]), torch.randn(2, 4, 4, 4)
    batch = Batch(x, TextFeatures(text, mask), hint=hint)
    torch.testing.assert_close(following(model, batch)(x, t, text, mask), base(x, t, text, mask))


def test_resumption_is_exact(folder: Path, done: Path) -> None:
    steps = iter(range(100))
    list(train(recipe(folder), folder / "cut", stop=lambda: next(steps) >= 3))
    list(train(recipe(folder), folder / "cut", resume=True))
    one, other = (
        load_file(run / "control" / "controlnet.safetensors") for run in (done, folder / "cut")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_what_was_trained_draws(done: Path, tmp_path: Path) -> None:
    pipe = small_pipeline(transformer=small_transformer(LAYERS))
    hint = Image.new("RGB", (32, 32))
    ImageDraw.Draw(hint).ellipse((6, 6, 26, 26), outline="white")
    hint.save(tmp_path / "hint.png")
    plain = {"prompt": "a", "width": 32, "height": 32, "num_inference_steps": 2, "seed": 1}
    control = {"kind": "edges", "hint": str(tmp_path / "hint.png"), "ready": True}
    drawn = []
    for controls in ([], [control | {"network": str(done)}]):
        request = GenerationRequest.model_validate(plain | {"control": controls})
        *_, last = pipe.stream(request)
        drawn.append(last.latents)
    assert not torch.allclose(*drawn)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"control__kind": "depth"}, "control.kind is depth, .* has edges hints"),
        ({"features": "{folder}/bare.safetensors"}, "has no hints"),
        ({"model__sample_size": 8}, "as it is"),
        ({"adapter__rank": 2}, "one thing"),
        ({"validation__prompts": ["a"], "base": "mini"}, "validation.prompts"),
        ({"control__kind": "An Edge"}, "control.kind"),
        ({"control__num_copied": 4}, "1 to 3 blocks"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    given = {k: v.format(folder=folder) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises((InputError, MismatchError), match=words):
        list(train(recipe(folder, **given), tmp_path / "run"))


# Features


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        photo = Image.new("RGB", (40, 40), "white")
        ImageDraw.Draw(photo).ellipse((6, 6, 30, 34), fill=colour)
        photo.save(folder / f"{name}.png")
        Image.linear_gradient("L").resize((40, 40)).save(folder / f"{name}.depth.png")
        (folder / f"{name}.txt").write_text(f"a {colour} disc")
    pipe = small_pipeline(transformer=small_transformer(LAYERS))
    save_folder(
        folder / "model",
        transformer=pipe.transformer,
        text_encoder=pipe.text_encoder,
        autoencoder=pipe.vae,
        sampler=pipe.sampler,
        schedule=pipe.schedule,
        variant="sigma",
    )
    return folder


def prepared(pictures: Path, out: Path, hints: str | None) -> Any:
    data = pictures / "data.jsonl"
    data.write_text("".join(f'{{"path": "{n}.png", "caption": "{n}"}}\n' for n in "abc"))
    settings = Settings(
        data=str(data), model=str(pictures / "model"), resolution=32, square=True, hints=hints
    )
    list(prepare(settings, out, Work(device=torch.device("cpu"))))
    return open_features(out)


@pytest.mark.parametrize("kind", ["edges", "depth"])
def test_prepare_encodes_hints_as_drawing_does(pictures: Path, tmp_path: Path, kind: str) -> None:
    from pixsigma.controls import hint_of
    from pixsigma.requests import ControlChoice

    data = prepared(pictures, tmp_path / "out", kind)
    assert data.hint_kind == kind
    batch = data.batch(torch.arange(3), 0.0, torch.Generator().manual_seed(0))
    assert batch.hint is not None and batch.hint.shape == batch.latents.shape
    pipe = small_pipeline(transformer=small_transformer(LAYERS))
    source = "a.png" if kind == "edges" else "a.depth.png"
    choice = ControlChoice(kind=kind, hint=str(pictures / source))
    expected = pipe.encode_pictures(hint_of(choice, (32, 32), (40, 40)))
    # scaled down by Lanczos there and by bicubic here
    near = torch.stack([(row - expected[0]).norm() / expected.norm() for row in batch.hint])
    assert near.min() < 0.35
    assert batch.to(torch.device("cpu")).hint is not None


def test_without_hints_there_are_none(pictures: Path, tmp_path: Path) -> None:
    data = prepared(pictures, tmp_path / "out", None)
    batch = data.batch(torch.arange(3), 0.0, torch.Generator().manual_seed(0))
    assert data.hint_kind is None and batch.hint is None


def test_a_hint_that_is_not_there_is_named(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.pose\.png|b\.pose\.png|c\.pose\.png"):
        prepared(pictures, tmp_path / "out", "pose")
    with pytest.raises(InputError, match="Pose"):
        prepared(pictures, tmp_path / "out", "Pose")
    with pytest.raises(InputError, match="authors' features"):
        Settings(data="x", hints="edges", official_features=True)


def test_hints_in_a_folder_are_no_pictures(pictures: Path, tmp_path: Path) -> None:
    settings = Settings(
        data=str(pictures), model=str(pictures / "model"), resolution=32, square=True, hints="depth"
    )
    list(prepare(settings, tmp_path / "out", Work(device=torch.device("cpu"))))
    assert len(open_features(tmp_path / "out")) == 3
