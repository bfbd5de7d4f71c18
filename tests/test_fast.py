"""Shortcuts: none is the exact drawing, a constant network loses nothing, lines are forecast."""

from typing import Any

import pytest
import torch

from pixsigma.errors import InputError
from pixsigma.fast_options import FAST, FastOptions
from pixsigma.measuring import Timing, columns, interleaved, psnr, relative_error
from pixsigma.models.caching import CachingTransformer
from pixsigma.pipeline import PixArtSigmaPipeline
from pixsigma.requests import request_from
from small import small_autoencoder, small_text_encoder, small_transformer

SMALL = {"num_inference_steps": 6, "width": 64, "height": 64, "seed": 3}


@pytest.fixture(scope="module")
def pipe() -> PixArtSigmaPipeline:
    return PixArtSigmaPipeline.from_pretrained(
        "mini",
        transformer=small_transformer(),
        text_encoder=small_text_encoder(),
        vae=small_autoencoder(),
    )


def drawn(pipe: PixArtSigmaPipeline, **settings: Any) -> torch.Tensor:
    *_, last = pipe.stream("a cat", **(SMALL | settings))
    assert last.latents is not None
    return last.latents


def inputs(rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(rows, 4, 8, 8, generator=g), torch.randn(1, 5, 16, generator=g)


def called(network: CachingTransformer, x: torch.Tensor, text: Any, t: float) -> torch.Tensor:
    with torch.no_grad():
        return network(x, network.embed(torch.tensor([t])), [text], variance=False)


def test_without_shortcuts_the_drawing_is_the_same(pipe: PixArtSigmaPipeline) -> None:
    plain = drawn(pipe)
    assert torch.equal(drawn(pipe, fast=FastOptions()), plain)
    assert torch.equal(drawn(pipe, fast=False), plain)


def test_what_is_computed_in_full_is_exact() -> None:
    model, (x, text) = small_transformer(), inputs()
    network = CachingTransformer(model, FastOptions(cache=0.5, begin=1.0), 999)
    with torch.no_grad():
        expected = model(x, torch.full((2,), 700.0), text.expand(2, -1, -1))[:, :4]
    found = called(network, x, network.read(text), 700.0)
    assert relative_error(found, expected) < 1e-5
    assert (network.num_full, network.num_calls) == (1, 1)


def test_steps_that_change_nothing_are_skipped_as_often_as_allowed() -> None:
    model, (x, text) = small_transformer(), inputs()
    options = FastOptions(cache=0.5, begin=0.0, longest=2)
    network = CachingTransformer(model, options, 999)
    words = network.read(text)
    first = called(network, x, words, 500.0)
    again = [called(network, x, words, 500.0) for _ in range(3)]
    assert (network.num_full, network.num_calls) == (2, 4)
    for found in again:
        torch.testing.assert_close(found, first, rtol=0, atol=1e-4)


def test_a_picture_decides_for_itself() -> None:
    model, (x, text) = small_transformer(), inputs()
    options = FastOptions(cache=0.05, begin=0.0, forecast=True)
    moving = torch.stack([x[0], -x[0]])

    def last(rows: slice) -> torch.Tensor:
        network = CachingTransformer(model, options, 999)
        words = network.read(text)
        called(network, x[rows], words, 500.0)
        return called(network, moving[rows], words, 499.0)

    torch.testing.assert_close(last(slice(None))[:1], last(slice(0, 1)), rtol=0, atol=1e-4)


def test_lines_are_forecast_exactly() -> None:
    model = small_transformer()
    network = CachingTransformer(model, FastOptions(cache=0.5, forecast=True), 999)
    slope, none = torch.randn(2, 3, 5), torch.zeros(1, dtype=torch.bool)
    for t in (900.0, 800.0):
        network.remember(torch.ones(2, 3, 5), slope * t, t, none)
    torch.testing.assert_close(network.forecast(750.0), slope * 750)


def test_kept_answers_of_the_text_are_not_computed_again(
    pipe: PixArtSigmaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pixsigma.models.blocks import CrossAttention

    counted: list[int] = []
    answer = CrossAttention.answer
    monkeypatch.setattr(
        CrossAttention, "answer", lambda *args: (counted.append(1), answer(*args))[1]
    )
    plain = drawn(pipe)
    whole, _ = len(counted), counted.clear()
    kept = drawn(pipe, fast=FastOptions(gate=0.5))
    assert len(counted) < 0.7 * whole
    assert 0 < relative_error(kept, plain) < 0.5


def test_guidance_ends_where_the_shortcut_says(pipe: PixArtSigmaPipeline) -> None:
    ended = drawn(pipe, fast=FastOptions(guided=0.5))
    assert torch.equal(ended, drawn(pipe, guidance={"stop": 0.5}))
    assert not torch.equal(ended, drawn(pipe))


def test_the_preset_is_a_shortcut_and_goes_with_many_samplers(pipe: PixArtSigmaPipeline) -> None:
    assert request_from(prompt="a", fast=True).shortcuts == FAST
    assert request_from(prompt="a").shortcuts is None
    for sampler in ("dpm++2m", "heun", "sa"):
        assert drawn(pipe, fast=True, sampler=sampler, num_images=2).isfinite().all()


def test_shortcuts_are_checked() -> None:
    with pytest.raises(InputError):
        request_from(prompt="a", fast={"cache": 2})
    with pytest.raises(InputError):
        request_from(prompt="a", fast={"speed": 1})


def test_rounds_are_taken_in_turns() -> None:
    order: list[str] = []
    variants = {name: lambda name=name: order.append(name) for name in "ab"}
    times = interleaved(variants, rounds=3, warm=1)
    assert len(order) == 8 and {order[0], order[1]} == {"a", "b"} == {order[2], order[3]}
    assert all(len(timing.seconds) == 3 for timing in times.values())


def test_medians_and_their_spread() -> None:
    slow, quick = Timing((2.0, 4.0, 9.0)), Timing((1.0, 2.0, 3.0))
    assert slow.median == 4 and slow.spread == (2, 9)
    assert slow.over(quick).seconds == (2, 2, 3)
    assert Timing((1.0, 2.0, 3.0, 4.0)).spread == (1.25, 3.75)


def test_psnr_is_that_of_the_book() -> None:
    assert psnr(torch.full((4,), 0.1), torch.zeros(4)) == pytest.approx(20)


def test_tables_have_columns() -> None:
    assert columns([{"a": 1.23456, "b": "x"}]).splitlines() == ["a     b", "1.23  x"]
