"""Image prompts: nothing at first, then what the formula says; files, drawings, training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pixsigma import GenerationRequest, InputError, MismatchError, PixArtSigmaPipeline, SizeError
from pixsigma.controls import prompt_of
from pixsigma.costs import step_cost
from pixsigma.data.shards import open_features
from pixsigma.datatools.prepare import Settings, Work, prepare
from pixsigma.hints import PICTURE
from pixsigma.models.blocks import Beside, CrossAttention, split_heads
from pixsigma.models.controlled import Control, Controlled
from pixsigma.models.image_prompt import ImagePrompt
from pixsigma.requests import ControlChoice, request_from
from pixsigma.training.recipe import read_recipe
from pixsigma.training.run import train
from pixsigma.training.sections import ControlSection
from pixsigma.weights.controls import Outline, outline_of, read_control, save_control
from pixsigma.weights.folder import save_transformer
from small import SIGMA, small_pipeline, small_transformer

LAYERS = replace(SIGMA, num_layers=4)


def woken(seed: int = 5) -> ImagePrompt:
    """An image prompt whose values are no longer zero."""
    torch.manual_seed(seed)
    net = ImagePrompt(LAYERS, num_tokens=3, num_blocks=2)
    net.init_weights()
    for link in net.links:
        torch.nn.init.normal_(link.get_parameter("weight"), std=0.3)
    return net.eval()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(2, 4, 8, 6), torch.randn(1, 5, 16), torch.randn(1, 4, 4, 10)


@torch.no_grad()
def asked(*controls: Control, t: float = 500.0, led: bool = True) -> Tensor:
    x, text, _ = inputs()
    network = Controlled(small_transformer(LAYERS), controls)
    answer: Tensor = network(x, network.embed(torch.tensor([t])), [network.read(text, leading=led)])
    return answer


# The formula


@torch.no_grad()
def test_a_fresh_one_changes_nothing() -> None:
    base, (x, text, hint) = small_transformer(LAYERS), inputs()
    plain = base(x, torch.tensor([500.0]), text)
    fresh = Control(ImagePrompt.fresh(base), hint)
    torch.testing.assert_close(asked(fresh), plain)


@torch.no_grad()
def test_answers_of_text_and_pictures_are_summed() -> None:
    """Equation 5 of IP-Adapter, written out: one query, two attentions."""
    torch.manual_seed(0)
    cross = CrossAttention(32, 2)
    x, text = torch.randn(4, 6, 32), torch.randn(2, 5, 32)
    keys, values = torch.randn(2, 1, 2, 3, 16).unbind(0)
    words = cross.read(text, None)._replace(pictures=(Beside(keys, values, 0.7, None),))
    q = split_heads(cross.q_linear(x), 2)
    of_text = scaled_dot_product_attention(
        q, *(each.repeat_interleave(2, dim=0) for each in (words.keys, words.values))
    )
    of_picture = scaled_dot_product_attention(q, keys, values)
    expected = cross.proj((of_text + 0.7 * of_picture).transpose(1, 2).flatten(2))
    torch.testing.assert_close(cross(x, words), expected)


@torch.no_grad()
def test_a_text_of_one_token_has_pictures_too() -> None:
    torch.manual_seed(0)
    cross = CrossAttention(32, 2)
    x, words = torch.randn(2, 6, 32), cross.read(torch.randn(1, 1, 32), None)
    keys, values = torch.randn(2, 1, 2, 3, 16).unbind(0)
    beside = words._replace(pictures=(Beside(keys, values, 1.0, None),))
    assert words.single and not beside.single
    assert cross(x, beside).shape == x.shape
    assert not torch.allclose(cross(x, beside), cross(x, words))


@torch.no_grad()
def test_weights_ranges_and_texts_that_do_not_lead() -> None:
    hint = inputs()[2]
    net, other = woken(), woken(seed=6)
    plain, full = asked(), asked(Control(net, hint))
    assert not torch.allclose(plain, full)
    assert torch.equal(asked(Control(net, hint), led=False), plain)
    halves = asked(Control(net, hint, weight=0.5), Control(net, hint, weight=0.5))
    torch.testing.assert_close(halves, full)
    late, rest = Control(net, hint, begins=300.0), Control(other, hint)
    assert torch.equal(asked(late), plain)
    torch.testing.assert_close(asked(late, t=300.0), asked(Control(net, hint), t=300.0))
    torch.testing.assert_close(asked(late, rest), asked(rest))


def test_the_plan_counts_it() -> None:
    plain = step_cost(LAYERS, 8, 8, 2, 5)
    with_it = step_cost(LAYERS, 8, 8, 2, 5, (Outline(num_tokens=3, num_blocks=2),))
    assert with_it.flops > plain.flops


# Files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image prompt and pictures."""
    folder = tmp_path_factory.mktemp("prompts")
    base = small_transformer(LAYERS)
    save_control(woken().state_dict(), base, folder / "net", kind=PICTURE, variant="sigma")
    photo = Image.new("RGB", (64, 48), "white")
    ImageDraw.Draw(photo).ellipse((6, 6, 26, 26), fill="red")
    photo.save(folder / "photo.png")
    Image.new("RGB", (20, 200)).save(folder / "narrow.png")
    return folder


def test_what_is_saved_is_what_is_read(folder: Path) -> None:
    net, report = read_control(folder / "net", small_transformer(LAYERS), "sigma", kind=PICTURE)
    expected = woken().state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in net.state_dict().items())
    assert (report.kind, report.num_copied, report.num_tokens) == (PICTURE, 0, 3)
    assert report.num_parameters == sum(p.numel() for p in net.parameters())
    outline = outline_of(folder / "net")
    assert (outline.num_copied, outline.num_tokens, outline.num_blocks) == (0, 3, 2)


def test_misfits_are_refused_with_the_reason(folder: Path, tmp_path: Path) -> None:
    base = small_transformer(LAYERS)
    with pytest.raises(MismatchError, match="follows picture, it was asked to follow edges"):
        read_control(folder / "net", base, "sigma", kind="edges")
    with pytest.raises(MismatchError, match="width"):
        wide = small_transformer(replace(LAYERS, num_attention_heads=2))
        read_control(folder / "net", wide, "sigma")
    with pytest.raises(MismatchError, match=r"links\.3"):
        deep = small_transformer(replace(LAYERS, num_layers=3))
        read_control(folder / "net", deep, "sigma")
    state = woken().state_dict()
    del state["norm.bias"]
    save_control(state, base, tmp_path / "holed", kind=PICTURE, variant="sigma")
    with pytest.raises(MismatchError, match=r"norm\.bias"):
        read_control(tmp_path / "holed", base, "sigma")
    copy = {f"controlnet.0.{name}": torch.zeros(72, 72) for name in ("after_proj.weight",)}
    save_file(copy, tmp_path / "copy.safetensors")
    with pytest.raises(MismatchError, match="is a ControlNet"):
        read_control(tmp_path / "copy.safetensors", base, "sigma", kind=PICTURE)


# Drawing


@pytest.fixture
def pipe() -> PixArtSigmaPipeline:
    return small_pipeline(transformer=small_transformer(LAYERS))


def control(folder: Path, **changes: Any) -> dict[str, Any]:
    plain = {"kind": PICTURE, "hint": str(folder / "photo.png"), "network": str(folder / "net")}
    return {**plain, **changes}


def latents(pipe: PixArtSigmaPipeline, *controls: dict[str, Any], **settings: Any) -> Tensor:
    plain = {"num_inference_steps": 3, "width": 32, "height": 32, "seed": 7}
    *_, done = pipe.stream("a cat", control=list(controls), **plain | settings)
    assert done.latents is not None
    return done.latents


def test_pictures_keep_their_shape_within_the_sizes_of_the_model(folder: Path) -> None:
    choice = ControlChoice(kind=PICTURE, hint=str(folder / "photo.png"))
    assert prompt_of(choice, 64, 16).shape == (1, 3, 48, 80)
    narrow = ControlChoice(kind=PICTURE, hint=str(folder / "narrow.png"))
    with pytest.raises(SizeError, match="1:4"):
        prompt_of(narrow, 64, 16)


def test_a_picture_changes_the_drawing(pipe: PixArtSigmaPipeline, folder: Path) -> None:
    plain, shown = latents(pipe), latents(pipe, control(folder))
    assert not torch.allclose(plain, shown)
    assert torch.equal(latents(pipe, control(folder, weight=0.0)), plain)
    assert not torch.allclose(latents(pipe, control(folder, start=0.5)), shown)
    pipe.load_control(folder / "net")
    torch.testing.assert_close(latents(pipe, control(folder, network=None)), shown)


def test_guidance_leads_to_the_picture_and_not_away(
    pipe: PixArtSigmaPipeline, folder: Path
) -> None:
    """At scale s the answer is null + s (text and picture - null): a straight line in s."""
    one = {"num_inference_steps": 1, "sampler": "euler", "negative_prompt": "a cat"}
    at = [latents(pipe, control(folder), guidance_scale=s, **one) for s in (2.0, 3.0, 4.0)]
    torch.testing.assert_close(at[1] - at[0], at[2] - at[1], rtol=1e-3, atol=1e-4)
    # text and negative are the same: without the picture nothing would move
    assert not torch.allclose(at[0], at[2])


TOGETHER: dict[str, dict[str, Any]] = {
    "guidance 1": {"guidance_scale": 1.0},
    "pag": {"guidance": {"pag": 3.0, "layers": (1,)}},
    "regions": {"regions": [{"prompt": "a dog", "box": (0, 0, 0.5, 1)}]},
    "several": {"num_images": 2, "sampler": "heun"},
    "null": {"null_caption": "prompt"},
    "fast": {"num_inference_steps": 6, "fast": {"cache": 0.1, "gate": 0.5}},
    "tiled": {"width": 160, "height": 160, "two_pass": True, "tiled": True},
}


@pytest.mark.parametrize("case", TOGETHER)
def test_it_goes_with_everything(pipe: PixArtSigmaPipeline, folder: Path, case: str) -> None:
    settings = TOGETHER[case]
    plain, shown = latents(pipe, **settings), latents(pipe, control(folder), **settings)
    assert torch.isfinite(shown).all() and not torch.allclose(plain, shown)


def test_it_is_the_same_in_company(pipe: PixArtSigmaPipeline, folder: Path) -> None:
    plain = {"prompt": "a cat", "num_inference_steps": 3, "width": 32, "height": 32, "seed": 7}
    asked = [
        GenerationRequest.model_validate(plain | {"control": [control(folder)]}),
        GenerationRequest.model_validate(plain | {"num_inference_steps": 2}),
    ]
    first, _ = pipe.draw_many(asked)
    assert first.latents is not None
    torch.testing.assert_close(first.latents, latents(pipe, control(folder)))


# Training

RECIPE = """
features = "{folder}/features.safetensors"
[model]
init_from = "{folder}/base/transformer"
[control]
kind = "picture"
num_tokens = 4
[optimizer]
name = "muon"
learning_rate = 1e-2
warmup_steps = 0
[run]
steps = 80
batch_size = 4
checkpoint_every = 40
log_every = 5
ema_decay = 0.5
caption_dropout = 0.5
device = "cpu"
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pictures of four kinds, which their prompts tell and their captions do not."""
    folder = tmp_path_factory.mktemp("training")
    torch.manual_seed(0)
    hint = torch.randn(4, 4, 4, 4).repeat(2, 1, 1, 1)
    tensors = {
        "mean": hint.clone(),
        "std": torch.zeros_like(hint),
        "hint": hint,
        "text": torch.randn(1, 6, LAYERS.caption_channels),
        "text_mask": torch.ones(1, 6, dtype=torch.bool),
        "captions": torch.zeros(8, 1, dtype=torch.int64),
        "null_text": torch.zeros(1, 6, LAYERS.caption_channels),
        "null_mask": torch.tensor([[True] + [False] * 5]),
    }
    save_file(tensors, folder / "features.safetensors", metadata={"hint": PICTURE})
    save_transformer(small_transformer(LAYERS), folder / "base" / "transformer")
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
    reports = list(train(read_recipe(folder / "recipe.toml"), folder / "run"))
    losses = [report.loss for report in reports]
    (folder / "losses.txt").write_text(" ".join(map(str, losses)))
    return folder


def test_it_learns_what_only_the_picture_tells(trained: Path) -> None:
    losses = [float(loss) for loss in (trained / "losses.txt").read_text().split()]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_the_run_leaves_a_file_that_draws(trained: Path, folder: Path) -> None:
    tensors = load_file(trained / "run" / "control" / "controlnet.safetensors")
    assert tensors["image_prompt.queries"].shape == (4, LAYERS.width)
    pipe = small_pipeline(transformer=small_transformer(LAYERS))
    shown = latents(pipe, control(folder, network=str(trained / "run")))
    assert not torch.allclose(shown, latents(pipe))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "edges", "num_tokens": 3}, "leave num_tokens out"),
        ({"kind": "picture", "num_copied": 3}, "leave num_copied out"),
    ],
)
def test_numbers_of_the_other_kind_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ControlSection(**change)


def test_prepare_takes_the_picture_itself_or_another_view(tmp_path: Path) -> None:
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{name}.png")
    Image.new("RGB", (40, 40), "green").save(tmp_path / "b.picture.png")
    (tmp_path / "data.jsonl").write_text(
        "".join(f'{{"path": "{n}.png", "caption": "{n}"}}\n' for n in "ab")
    )
    pipe = small_pipeline(transformer=small_transformer(LAYERS))
    pipe.save_pretrained(tmp_path / "model")
    settings = Settings(
        data=str(tmp_path / "data.jsonl"),
        model=str(tmp_path / "model"),
        resolution=32,
        square=True,
        hints=PICTURE,
    )
    list(prepare(settings, tmp_path / "out", Work(device=torch.device("cpu"))))
    data = open_features(tmp_path / "out")
    batch = data.batch(torch.arange(2), 0.0, torch.Generator().manual_seed(0))
    assert data.hint_kind == PICTURE and batch.hint is not None
    mean = [
        pipe.encode_pictures(torch.tensor(rgb).view(1, 3, 1, 1).expand(1, 3, 32, 32))
        for rgb in ((1.0, -1.0, -1.0), (-1.0, 0.0039, -1.0))
    ]
    found = {min(range(2), key=lambda k: float((row - mean[k][0]).norm())) for row in batch.hint}
    assert found == {0, 1}


def test_tiles_go_with_pictures_and_not_with_hints(folder: Path) -> None:
    tiled = {"prompt": "a", "two_pass": True, "tiled": True}
    GenerationRequest.model_validate(tiled | {"control": [control(folder)]})
    with pytest.raises(InputError, match="leave out control"):
        request_from(**tiled, control=[control(folder, kind="edges")])
