"""ControlNets in a pipeline: files that fit or are refused, hints, pictures that follow them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from pixsigma import (
    CorruptWeightsError,
    GenerationRequest,
    InputError,
    MismatchError,
    MissingExtraError,
    MissingWeightsError,
    NoiseSchedule,
    PixArtSigmaPipeline,
    SizeError,
    UnknownNameError,
    UnsafeWeightsError,
)
from pixsigma.controls import hint_of, when
from pixsigma.diffusion.samplers import get_sampler
from pixsigma.editing.plan import as_request, planned
from pixsigma.hints import edges
from pixsigma.models.controlnet import ControlNet
from pixsigma.requests import ControlChoice
from pixsigma.weights.controls import EMBEDDER, read_control, save_control
from small import SIGMA, small_pipeline, small_transformer

LAYERS = replace(SIGMA, num_layers=4)
CLOSE = 1e-4


def woken(seed: int = 5) -> ControlNet:
    """A copy whose links are no longer zero."""
    net = ControlNet.copy_of(small_transformer(LAYERS))
    torch.manual_seed(seed)
    for name, weight in net.named_parameters():
        if "_proj." in name and "copied" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    return net.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ControlNets and some hints."""
    folder = tmp_path_factory.mktemp("controls")
    base = small_transformer(LAYERS)
    for name, kind, seed in (("edges", "edges", 5), ("depth", "depth", 6)):
        state = woken(seed).state_dict()
        save_control(state, base, folder / name, kind=kind, variant="sigma")
    photo = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(photo).ellipse((6, 6, 26, 26), fill="red")
    photo.save(folder / "photo.png")
    edges(photo).save(folder / "map.png")
    Image.linear_gradient("L").resize((64, 64)).save(folder / "depth.png")
    Image.new("RGB", (48, 32)).save(folder / "wide.png")
    return folder


@pytest.fixture
def pipe() -> PixArtSigmaPipeline:
    return small_pipeline(transformer=small_transformer(LAYERS))


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.copy()


def control(folder: Path, **changes: Any) -> dict[str, Any]:
    plain = {"kind": "edges", "hint": str(folder / "photo.png"), "network": str(folder / "edges")}
    return {**plain, **changes}


def latents(pipe: PixArtSigmaPipeline, *controls: dict[str, Any], **settings: Any) -> torch.Tensor:
    plain = {"num_inference_steps": 3, "width": 32, "height": 32, "seed": 7}
    *_, done = pipe.stream("a cat", control=list(controls), **plain | settings)
    assert done.latents is not None
    return done.latents


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Up to rounding: a mapped file is added up in another order."""
    return bool((one - other).norm() <= CLOSE * other.norm())


# Files


def test_what_is_saved_is_what_is_read(folder: Path) -> None:
    base = small_transformer(LAYERS)
    net, report = read_control(folder / "edges", base, "sigma", kind="edges")
    expected = woken().state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in net.state_dict().items())
    assert (report.kind, report.num_copied, report.whose) == ("edges", 2, "pixsigma")
    assert report.num_parameters == sum(p.numel() for p in net.parameters())
    assert not any(p.requires_grad for p in net.parameters())


def authors(path: Path, **beside: torch.Tensor) -> Path:
    """A file as the authors' training script saves it: base and copy in one `state_dict`."""
    base = small_transformer(LAYERS)
    state = {f"base_model.{key}": value for key, value in base.state_dict().items()}
    state |= {f"base_model.{key}": value for key, value in beside.items()}
    torch.save({"state_dict": state | woken().state_dict()}, path)
    return path


def test_the_authors_file_loads(tmp_path: Path) -> None:
    table = torch.zeros(300, LAYERS.caption_channels)
    file = authors(tmp_path / "hed.pth", **{"y_embedder.y_embedding": table})
    net, report = read_control(file, small_transformer(LAYERS), "sigma")
    expected = woken().state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in net.state_dict().items())
    assert (report.kind, report.whose) == (None, "the authors'")


def test_a_file_with_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("run",)

    torch.save({"state_dict": {"controlnet.0.after_proj.bias": Evil()}}, tmp_path / "evil.pth")
    with pytest.raises(UnsafeWeightsError):
        read_control(tmp_path / "evil.pth", small_transformer(LAYERS), "sigma")


def other_base() -> Any:
    base = small_transformer(LAYERS)
    torch.nn.init.normal_(base.x_embedder.proj.weight)
    return base


MISFITS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "width": (lambda: small_transformer(replace(LAYERS, num_attention_heads=2)), "sigma", "width"),
    "shallow": (lambda: small_transformer(SIGMA), "sigma", "copies 2 blocks"),
    "normed": (lambda: small_transformer(replace(LAYERS, qk_norm=True)), "sigma", "q_norm"),
    "channels": (
        lambda: small_transformer(replace(LAYERS, in_channels=16)),
        "sigma",
        "latents of 4 channels",
    ),
    "alpha": (lambda: small_transformer(LAYERS), "alpha", "trained for PixArt-Σ"),
    "base": (other_base, "sigma", "beside other weights"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_another_model_is_refused_with_the_reason(folder: Path, case: str) -> None:
    base, variant, words = MISFITS[case]
    with pytest.raises(MismatchError, match=words):
        read_control(folder / "edges", base(), variant)  # type: ignore[arg-type]


def test_a_fine_tuned_base_is_no_other_model(folder: Path) -> None:
    base = small_transformer(LAYERS)
    base.x_embedder.proj.weight.data *= 1.1
    assert read_control(folder / "edges", base, "sigma")


def test_the_authors_model_is_told_by_its_captions(tmp_path: Path) -> None:
    table = torch.zeros(120, LAYERS.caption_channels)
    file = authors(tmp_path / "hed.pth", **{"y_embedder.y_embedding": table})
    with pytest.raises(MismatchError, match="trained for PixArt-α, this model is PixArt-Σ"):
        read_control(file, small_transformer(LAYERS), "sigma")


def test_what_is_no_controlnet_is_refused(folder: Path, tmp_path: Path) -> None:
    base = small_transformer(LAYERS)
    with pytest.raises(MissingWeightsError, match=r"a folder with controlnet\.safetensors"):
        read_control(tmp_path, base, "sigma")
    save_file({"down_blocks.0.weight": torch.zeros(2)}, tmp_path / "sd.safetensors")
    with pytest.raises(MismatchError, match=r"down_blocks\.0\.weight"):
        read_control(tmp_path / "sd.safetensors", base, "sigma")
    save_file({"base_model.x": torch.zeros(2)}, tmp_path / "base.safetensors")
    with pytest.raises(MismatchError, match="none but the base's"):
        read_control(tmp_path / "base.safetensors", base, "sigma")
    state = woken().state_dict()
    del state["controlnet.1.after_proj.bias"]
    save_control(state, base, tmp_path / "holed", kind="edges", variant="sigma")
    with pytest.raises(MismatchError, match=r"controlnet\.1\.after_proj\.bias"):
        read_control(tmp_path / "holed", base, "sigma")
    told = {"pixsigma.control": "no JSON"}
    save_file(woken().state_dict(), tmp_path / "told.safetensors", metadata=told)
    with pytest.raises(CorruptWeightsError, match="metadata"):
        read_control(tmp_path / "told.safetensors", base, "sigma")
    with pytest.raises(MismatchError, match="follows edges, it was asked to follow depth"):
        read_control(folder / "edges", base, "sigma", kind="depth")


def test_a_file_without_a_trace_of_its_base_is_read(tmp_path: Path) -> None:
    save_file(woken().state_dict(), tmp_path / "bare.safetensors")
    net, report = read_control(tmp_path / "bare.safetensors", small_transformer(LAYERS), "sigma")
    assert len(net.copies) == 2 and report.kind is None
    assert EMBEDDER not in net.state_dict()


# Hints


def test_edges_are_the_outline_of_a_disc(folder: Path) -> None:
    lines = np.asarray(edges(opened(folder / "photo.png")))[..., 0]
    assert set(np.unique(lines)) == {0, 255}
    far = np.hypot(*(np.indices(lines.shape) - 16)) - 10
    assert np.abs(far[lines > 0]).max() < 2 and lines[16, 16] == 0
    assert 40 < (lines > 0).sum() < 90


def test_edges_need_opencv_and_say_so(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MissingExtraError, match="ready map"):
        edges(opened(folder / "photo.png"))


def test_a_hint_is_made_or_taken_as_it_is(folder: Path) -> None:
    made = hint_of(ControlChoice(**control(folder)), (32, 32), (32, 32))
    given = control(folder, hint=str(folder / "map.png"), ready=True)
    torch.testing.assert_close(hint_of(ControlChoice(**given), (32, 32), (32, 32)), made)
    depth = ControlChoice(kind="depth", hint=str(folder / "depth.png"))
    scaled = hint_of(depth, (32, 32), (32, 32))
    assert scaled.shape == (1, 3, 32, 32) and scaled.max() > 0.9 and scaled.min() < -0.9
    assert torch.equal(scaled[0, 0], scaled[0, 1])


def test_a_hint_of_another_shape_is_refused(folder: Path) -> None:
    wide = ControlChoice(kind="depth", hint=str(folder / "wide.png"))
    with pytest.raises(SizeError, match=r"picture, 32x32, .*wide.png has 48x32"):
        hint_of(wide, (32, 32), (32, 32))
    # rounding of a small hint is none: 33 of 48 columns are 1.5 of its 22 rows
    almost = Image.new("L", (33, 22))
    almost.save(folder / "almost.png")
    choice = ControlChoice(kind="depth", hint=str(folder / "almost.png"))
    assert hint_of(choice, (64, 96), (64, 98)).shape == (1, 3, 64, 96)


def test_a_hint_shows_what_the_canvas_shows(folder: Path) -> None:
    request = GenerationRequest.model_validate(
        {
            "prompt": "a",
            "image": str(folder / "photo.png"),
            "extend": {"left": 8, "bottom": 24},
            "control": [{"kind": "depth", "hint": str(folder / "depth.png")}],
        }
    )
    with pytest.warns(UserWarning, match="40x56 is no multiple"):
        plan = planned(request, (32, 32), 16)
    assert plan.whole == (56, 40)
    with pytest.raises(SizeError, match="40x56"):
        hint_of(request.control[0], plan.rounds[0].size, plan.whole, plan.canvas)
    Image.linear_gradient("L").resize((40, 56)).save(folder / "tall.png")
    tall = ControlChoice(kind="depth", hint=str(folder / "tall.png"))
    seen = hint_of(tall, plan.rounds[0].size, plan.whole, plan.canvas)
    assert seen.shape[-2:] == plan.rounds[0].size == (64, 48)
    assert torch.equal(seen[..., 55, :], seen[..., 63, :])


@pytest.mark.parametrize(
    ("start", "end", "steps"),
    [
        (0.0, 1.0, [0, 1, 2, 3]),
        (0.0, 0.5, [0, 1]),
        (0.5, 1.0, [2, 3]),
        (0.3, 0.6, [2]),
        (0.9, 1, []),
    ],
)
def test_ranges_are_shares_of_the_steps(start: float, end: float, steps: list[int]) -> None:
    levels = get_sampler("euler").levels(NoiseSchedule(), 4)
    begins, ends = when(levels, start, end)
    times = [torch.tensor(level.timestep).item() for level in levels[:-1]]
    assert [i for i, t in enumerate(times) if ends < t <= begins] == steps


# Drawing


def test_a_hint_changes_the_picture_and_weight_0_does_not(
    pipe: PixArtSigmaPipeline, folder: Path
) -> None:
    plain, followed = latents(pipe), latents(pipe, control(folder))
    assert not torch.allclose(plain, followed)
    assert torch.equal(latents(pipe, control(folder, weight=0.0)), plain)
    other = control(folder, hint=str(folder / "depth.png"), ready=True)
    assert not torch.allclose(latents(pipe, other), followed)
    halves = control(folder, weight=0.5), control(folder, weight=0.5)
    assert same(latents(pipe, *halves), followed)
    late = latents(pipe, control(folder, start=0.5))
    assert not torch.allclose(late, plain) and not torch.allclose(late, followed)
    assert torch.equal(latents(pipe), plain)


def test_a_fresh_copy_changes_no_bit(pipe: PixArtSigmaPipeline, folder: Path) -> None:
    state = ControlNet.copy_of(small_transformer(LAYERS)).state_dict()
    base = small_transformer(LAYERS)
    save_control(state, base, folder / "fresh", kind="edges", variant="sigma")
    fresh = control(folder, network=str(folder / "fresh"))
    assert torch.equal(latents(pipe, fresh), latents(pipe))


def test_loaded_by_kind_is_as_named_by_file(pipe: PixArtSigmaPipeline, folder: Path) -> None:
    expected = latents(pipe, control(folder))
    with pytest.raises(UnknownNameError, match="loaded: none"):
        latents(pipe, control(folder, network=None))
    assert pipe.load_control(folder / "edges").num_copied == 2
    assert same(latents(pipe, control(folder, network=None)), expected)
    with pytest.raises(InputError, match="unload_controls"):
        pipe.load_control(folder / "edges")
    pipe.load_control(folder / "depth")
    pipe.unload_controls()
    with pytest.raises(UnknownNameError, match="'edges'"):
        latents(pipe, control(folder, network=None))


def test_a_file_that_does_not_tell_needs_a_kind(
    pipe: PixArtSigmaPipeline, tmp_path: Path, folder: Path
) -> None:
    save_file(woken().state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match='kind="edges"'):
        pipe.load_control(tmp_path / "bare.safetensors")
    pipe.load_control(tmp_path / "bare.safetensors", kind="edges")
    named = latents(pipe, control(folder))
    assert same(latents(pipe, control(folder, network=None)), named)


TOGETHER: dict[str, dict[str, Any]] = {
    "guidance 1": {"guidance_scale": 1.0},
    "pag": {"guidance": {"pag": 3.0, "layers": (1,)}},
    "apg": {"guidance": {"apg": True, "start": 0.4}},
    "regions": {"regions": [{"prompt": "a dog", "box": (0, 0, 0.5, 1)}]},
    "AND": {"prompt_syntax": "weighted", "negative_prompt": "(red:1.3)"},
    "several": {"num_images": 2, "sampler": "heun"},
    "null": {"null_caption": "prompt"},
    "fast": {"num_inference_steps": 6, "fast": True},
    "two passes": {"width": 160, "height": 160, "two_pass": True},
}


@pytest.mark.parametrize("case", TOGETHER)
def test_it_goes_with_everything(pipe: PixArtSigmaPipeline, folder: Path, case: str) -> None:
    settings = TOGETHER[case]
    plain, followed = latents(pipe, **settings), latents(pipe, control(folder), **settings)
    assert torch.isfinite(followed).all() and not torch.allclose(plain, followed)


def test_it_goes_with_pictures(pipe: PixArtSigmaPipeline, folder: Path) -> None:
    sizes = {"width": None, "height": None, "image": str(folder / "photo.png")}  # 32x32
    assert not torch.allclose(latents(pipe, **sizes), latents(pipe, control(folder), **sizes))
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 24, 24))
    request = as_request(
        GenerationRequest(prompt="a", image=str(folder / "photo.png"), num_inference_steps=2),
        {"mask": mask, "control": [control(folder)], "seed": 1},
    )
    *_, done = pipe.stream(request)
    kept = np.asarray(mask) == 0
    source = np.asarray(opened(folder / "photo.png"))
    assert np.array_equal(np.asarray(done.images[0])[kept], source[kept])


@pytest.mark.parametrize("mode", ["model", "sequential"])
def test_every_placement_follows_alike(pipe: PixArtSigmaPipeline, folder: Path, mode: str) -> None:
    expected = latents(pipe, control(folder))
    pipe.load_control(folder / "edges")
    getattr(pipe, f"enable_{mode}_cpu_offload")("cpu")
    assert same(latents(pipe, control(folder)), expected)
    assert same(latents(pipe, control(folder, network=None)), expected)
    pipe.to("cpu")
    assert same(latents(pipe, control(folder, network=None)), expected)


def test_beside_others_each_is_as_if_it_were_alone(pipe: PixArtSigmaPipeline, folder: Path) -> None:
    plain = {"num_inference_steps": 3, "width": 32, "height": 32}
    asked = [
        {"prompt": "a cat", "seed": 1},
        {"prompt": "a cat", "seed": 1, "control": [control(folder)]},
        {"prompt": "two dogs", "seed": 3, "control": [control(folder)], "sampler": "unipc"},
        {
            "prompt": "a fish",
            "seed": 4,
            "num_inference_steps": 6,
            "fast": True,
            "control": [
                control(folder, kind="depth", network=str(folder / "depth"), weight=0.7),
                control(folder, end=0.5),
            ],
        },
    ]
    requests = [GenerationRequest.model_validate(plain | each) for each in asked]
    for found, request in zip(pipe.draw_many(requests), requests, strict=True):
        *_, alone = pipe.stream(request)
        assert found.latents is not None and alone.latents is not None
        assert same(found.latents, alone.latents)
    assert not any(pipe.controls.at_work.values())


def test_the_call_of_diffusers_takes_hints_too(pipe: PixArtSigmaPipeline, folder: Path) -> None:
    plain = {"num_inference_steps": 3, "height": 32, "width": 32, "output_type": "latent"}
    plain["use_resolution_binning"] = False

    def drawn(**settings: Any) -> torch.Tensor:
        seeded = torch.Generator().manual_seed(7)
        found = pipe("a cat", clean_caption=False, generator=seeded, **plain | settings)
        return found.images  # type: ignore[union-attr]

    hint = opened(folder / "photo.png")
    followed = drawn(control=[control(folder, hint=hint)])
    assert same(followed, latents(pipe, control(folder)))
    assert not torch.allclose(drawn(), followed)


# Requests


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "Edges"}, "kind"),
        ({"kind": ""}, "kind"),
        ({"start": 0.6, "end": 0.4}, "starts before it ends"),
        ({"end": 1.5}, "end"),
        ({"weight": float("nan")}, "weight"),
        ({"network": ""}, "network"),
        ({"colour": 1}, "colour"),
        ({"hint": "nowhere.png"}, "nowhere.png"),
    ],
)
def test_what_makes_no_sense_is_refused(
    pipe: PixArtSigmaPipeline, folder: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        latents(pipe, control(folder, **change))


def test_a_request_with_hints_is_plain_data(folder: Path) -> None:
    request = as_request("a", {"control": [control(folder, hint=folder / "photo.png")]})
    assert GenerationRequest.model_validate(json.loads(request.model_dump_json())) == request
