"""Tiled refinement: what the whole gets of its windows."""

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.doubles import MEAN, gaussian
from tests.small import KINDS, small_pipeline, small_transformer
from torch import Tensor

from pixsigma import GenerationRequest, InputError, NoiseSchedule, PixArtSigmaPipeline, get_sampler
from pixsigma.denoising import Drawing, denoise
from pixsigma.editing.known import Known, shortened
from pixsigma.interfaces import TextFeatures
from pixsigma.models import windows
from pixsigma.models.windows import Windowed, layout, starts
from pixsigma.requests import request_from

FAST: dict[str, Any] = {"num_inference_steps": 4, "seed": 3}
TEXT = TextFeatures(torch.zeros(1, 1, 4), torch.ones(1, 1, dtype=torch.bool))


@pytest.fixture(scope="module")
def pipe() -> PixArtSigmaPipeline:
    return small_pipeline()


def photo(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def latents(pipe: PixArtSigmaPipeline, **asked: Any) -> Tensor:
    *_, last = pipe.stream("a cat", **(FAST | asked))
    assert last.latents is not None
    return last.latents


def closed_form(x: Tensor, t: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
    """The noise prediction of data N(MEAN, STD²), of any size."""
    level = NoiseSchedule().level(int(t[0]))
    return gaussian(x, level).eps


# The windows themselves


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(4, 20), st.integers(4, 20))
def test_weights_sum_to_one_and_windows_cover_everything(
    height: int, width: int, tall: int, wide: int
) -> None:
    size, side = (2 * height, 2 * width), (2 * tall, 2 * wide)
    total = torch.zeros(size)
    for rows, columns, weights in layout(size, side):
        assert weights.shape == total[rows, columns].shape and (weights > 0).all()
        total[rows, columns] += weights
    torch.testing.assert_close(total, torch.ones(size), rtol=0, atol=1e-5)


@given(st.integers(1, 500), st.integers(4, 64))
def test_neighbours_overlap_by_a_quarter_and_begin_at_whole_tokens(length: int, side: int) -> None:
    length, side = 2 * length, 2 * side
    begin = starts(length, side)
    assert begin[0] == 0 and begin[-1] + min(side, length) == length
    assert all(start % 2 == 0 for start in begin)
    gaps = [b - a for a, b in itertools.pairwise(begin)]
    # rounding to whole tokens moves a start by at most one latent
    assert all(0 < gap <= max(2, side * (1 - windows.OVERLAP)) + 2 for gap in gaps)


def test_one_window_is_the_network_itself() -> None:
    network = small_transformer()
    x = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    given = torch.full((2,), 500.0), torch.zeros(2, 3, 16)
    with torch.no_grad():
        assert torch.equal(Windowed(network, (8, 12))(x, *given), network(x, *given))
        assert torch.equal(Windowed(network, (64, 64))(x, *given), network(x, *given))


def test_the_order_of_the_windows_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_transformer()
    x = torch.randn(1, 4, 20, 24, generator=torch.Generator().manual_seed(0))
    given = torch.full((1,), 500.0), torch.zeros(1, 3, 16)
    with torch.no_grad():
        found = Windowed(network, (8, 12))(x, *given)
        assert found.shape == (1, 8, 20, 24)
        monkeypatch.setattr(windows, "layout", lambda *a: layout(*a)[::-1])
        torch.testing.assert_close(Windowed(network, (8, 12))(x, *given), found)


def test_what_is_tied_to_places_is_refused() -> None:
    with pytest.raises(InputError, match="tiles do not go with control"):
        Windowed(closed_form, (8, 8))(torch.zeros(1, 4, 16, 16), None, None, control=1)


# Seams


def jump(x: Tensor) -> float:
    """The largest difference of neighbours."""
    return max(float(x.diff(dim=dim).abs().max()) for dim in (-1, -2))


def test_windows_that_disagree_fade_into_each_other() -> None:
    """A network that answers with its window's mean: the worst case, where none agree."""

    def own_mean(x: Tensor, *_: Any) -> Tensor:
        return x.mean(dim=(2, 3), keepdim=True).expand_as(x)

    side, length = 16, 40
    x = torch.linspace(0, 1, length).expand(1, 1, 16, length)
    found = Windowed(own_mean, (side, side))(x, None, None)
    begin = starts(length, side)
    steps = [(b - a) / (length - 1) for a, b in itertools.pairwise(begin)]
    overlaps = [side - (b - a) for a, b in itertools.pairwise(begin)]
    fade = max(step / overlap for step, overlap in zip(steps, overlaps, strict=True))
    assert jump(found) <= 1.01 * fade
    # side by side, without an overlap, the seam would be as high as they differ
    assert jump(found) < 0.3 * max(steps)


@pytest.mark.parametrize("sampler", ["dpm++2m", "ddim", "sa", "unipc"])
def test_a_denoiser_that_knows_no_places_draws_the_same_in_windows(sampler: str) -> None:
    schedule, how = NoiseSchedule(), get_sampler(sampler)
    levels = shortened(how.levels(schedule, 10), 0.5)
    noise = torch.randn(1, 4, 40, 28, generator=torch.Generator().manual_seed(1))
    fresh = torch.randn(10, 1, 4, 40, 28, generator=torch.Generator().manual_seed(2))
    source = torch.full_like(noise, MEAN)

    def drawn(window: tuple[int, int] | None) -> Tensor:
        turns = iter(fresh)
        drawing = Drawing(
            noise, TEXT, None, 1.0, levels, lambda: next(turns), given=Known(source), window=window
        )
        *_, last = denoise(closed_form, how, schedule, drawing)
        assert last.latents is not None
        return last.latents

    whole, tiled = drawn(None), drawn((16, 12))
    assert (tiled - whole).norm() <= 1e-5 * whole.norm()
    # and so no seam: neighbours differ as much as without windows
    assert jump(tiled) == pytest.approx(jump(whole), rel=1e-4)


# Requests


def test_a_picture_of_one_tile_is_refined_as_a_whole(pipe: PixArtSigmaPipeline) -> None:
    asked: dict[str, Any] = {"image": photo(96, 128), "strength": 0.5}
    assert torch.equal(latents(pipe, **asked), latents(pipe, **asked, tiled=True))


def test_tiles_see_the_trained_size_and_steps_are_those_of_two_passes(
    pipe: PixArtSigmaPipeline,
) -> None:
    seen = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _, given: seen.append(tuple(given[0].shape))
    )
    asked: dict[str, Any] = {"width": 256, "height": 208, "two_pass": True, "strength": 0.5}
    tiled = latents(pipe, **asked, tiled=True)
    hook.remove()
    native = pipe.default_size[0] // pipe.factor
    assert tiled.shape[-2:] == (208 // pipe.factor, 256 // pipe.factor)
    assert {shape[-2:] for shape in seen[4:]} == {(native, native)}
    tiles = len(layout(tuple(tiled.shape[-2:]), (native, native)))  # type: ignore[arg-type]
    assert tiles > 1 and len(seen) == 4 + 2 * tiles
    whole = latents(pipe, **asked)
    assert not torch.equal(tiled, whole) and torch.isfinite(tiled).all()


@pytest.mark.parametrize(
    "more",
    [
        {"guidance": {"pag": 2.0}},
        {"guidance": {"apg": True}, "sampler": "unipc"},
        {"regions": [{"prompt": "a dog", "box": (0.0, 0.0, 0.5, 1.0)}]},
        {"num_images": 2, "guidance_scale": 1.0, "sampler": "iddpm"},
    ],
)
def test_tiles_go_with_the_rest_alone_and_beside_others(
    pipe: PixArtSigmaPipeline, more: dict[str, Any]
) -> None:
    from pixsigma.editing.opening import as_data

    asked = FAST | more | {"image": as_data(photo(160, 144)), "strength": 0.5, "tiled": True}
    alone = latents(pipe, **asked)
    request = GenerationRequest(prompt="a cat", **asked)
    other = GenerationRequest(prompt="a bird", **FAST)
    found = pipe.draw_many([request, other])[0].latents
    assert found is not None and (found - alone).norm() <= 1e-4 * alone.norm()


def test_what_a_mask_keeps_is_kept_in_tiles_too(pipe: PixArtSigmaPipeline) -> None:
    picture, mask = photo(176, 144), Image.new("L", (176, 144))
    mask.paste(255, (60, 40, 140, 100))
    *_, last = pipe.stream("a cat", **FAST, image=picture, mask=mask, tiled=True)
    kept = np.asarray(mask) == 0
    np.testing.assert_array_equal(np.asarray(last.images[0])[kept], np.asarray(picture)[kept])
    assert not np.array_equal(np.asarray(last.images[0]), np.asarray(picture))


def test_micro_conditions_tell_the_size_of_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    config = KINDS["alpha"]
    pipe = small_pipeline(transformer=small_transformer(config), variant="sigma")
    told: list[Any] = []
    embed = pipe.transformer.embed

    def spy(t: Any, conditions: Any) -> Any:
        told.append(conditions.resolution[0].tolist())
        return embed(t, conditions)

    monkeypatch.setattr(pipe.transformer, "embed", spy)
    side = pipe.default_size[0]
    latents(pipe, image=photo(side + 32, 64), strength=0.3, tiled=True, num_inference_steps=3)
    assert told and all(each == [64, side] for each in told)


@pytest.mark.parametrize(
    ("asked", "words"),
    [({}, "give image or two_pass"), ({"two_pass": True, "fast": True}, "leave out fast")],
)
def test_what_does_not_go_is_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        request_from(prompt="a", tiled=True, width=512, height=512, **asked)


def test_a_size_beyond_the_model_is_said_aloud_and_tiles_are_the_answer(
    pipe: PixArtSigmaPipeline,
) -> None:
    big: dict[str, Any] = {"width": 288, "height": 288, "num_inference_steps": 1}
    with pytest.warns(UserWarning, match=r"288x288 is far above the 128x128 .* two_pass"):
        latents(pipe, **big)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        latents(pipe, **big, two_pass=True, tiled=True)
