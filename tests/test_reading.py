"""What a drawing's steps share is computed once, and the answer is the same."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from pixsigma.denoising import Reading
from pixsigma.diffusion.guidance import asked, guided
from pixsigma.diffusion.samplers import SAMPLERS
from pixsigma.diffusion.schedule import NoiseSchedule
from pixsigma.diffusion.steering import Clause, Steering, steered
from pixsigma.errors import InputError
from pixsigma.guidance_options import GuidanceOptions
from pixsigma.interfaces import Conditions, TextFeatures
from pixsigma.models.transformer import PixArtTransformer
from small import KINDS, SIGMA, small_transformer

LEVEL = NoiseSchedule().level(600)


def features(*lengths: int, seed: int = 0) -> TextFeatures:
    """Rows of these lengths, padded with numbers that must not be looked at."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths) + 2) < torch.tensor(lengths)[:, None]
    return TextFeatures(torch.randn(len(lengths), max(lengths) + 2, 16, generator=g), mask)


def latents(num: int = 2) -> torch.Tensor:
    return torch.randn(num, 4, 8, 12, generator=torch.Generator().manual_seed(9))


def plain(model: PixArtTransformer) -> Any:
    """The network as a function, which has nothing to remember with."""
    return lambda *args, **extra: model(*args, **extra)


@pytest.mark.parametrize(
    "texts",
    [
        [features(1), features(7, seed=1)],
        [features(1, 1), features(7, 4, seed=1)],
        [features(1), features(7, 7, seed=1), features(5, seed=2)],
        [features(3, 3)],
    ],
    ids=["empty prompt", "rows of unlike length", "three texts", "one text"],
)
@pytest.mark.parametrize("kind", ["sigma", "compressed", "normed"])
@torch.no_grad()
def test_texts_that_were_read_answer_as_texts_that_come_whole(
    kind: str, texts: list[TextFeatures]
) -> None:
    model = small_transformer(KINDS[kind])
    x = latents()
    expected = asked(plain(model), x, LEVEL, texts)
    found = asked(Reading(model, None, variance=True), x, LEVEL, texts)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    short = asked(Reading(model, None, variance=False), x, LEVEL, texts)
    torch.testing.assert_close(short, expected[:, :4], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_gradients_or_not_the_forward_is_the_same() -> None:
    model = small_transformer()
    given = latents(), torch.tensor([600.0, 600.0]), features(5, 3).embeddings
    found = model(*given)
    with torch.enable_grad():
        torch.testing.assert_close(model(*given), found, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            model(given[0], given[1][:1], given[2]), found, rtol=1e-5, atol=1e-5
        )


@torch.no_grad()
def test_an_mlp_in_strips_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_transformer()
    whole = model(latents(), torch.tensor([5.0]), features(5, 3).embeddings)
    monkeypatch.setattr("pixsigma.models.embeddings.STRIP_BYTES", 7 * 4 * 72 * 4)
    strips = model(latents(), torch.tensor([5.0]), features(5, 3).embeddings)
    torch.testing.assert_close(strips, whole, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_text_is_projected_once_and_a_time_embedded_once() -> None:
    model = small_transformer()
    seen = {"text": 0, "time": 0, "query": 0}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            seen[name] += 1

        return hook

    model.blocks[0].cross_attn.kv_linear.register_forward_hook(count("text"))
    model.blocks[0].cross_attn.q_linear.register_forward_hook(count("query"))
    model.t_block.register_forward_hook(count("time"))
    predict = guided(Reading(model, None, False), features(6), features(1), 4.5)  # type: ignore[arg-type]
    for _ in range(3):
        predict(latents(), LEVEL)
    # the empty prompt's only token asks for no query
    assert seen == {"text": 2, "time": 1, "query": 3}


@torch.no_grad()
def test_micro_conditions_go_with_every_text() -> None:
    model = small_transformer(KINDS["alpha"])
    sizes = torch.tensor([[64.0, 96.0], [128.0, 64.0]])
    conditions = Conditions(sizes, sizes[:, :1] / sizes[:, 1:])
    reading = Reading(model, conditions, variance=True)
    texts = [features(1), features(4)]
    both = Conditions(sizes.repeat(2, 1), conditions.aspect_ratio.repeat(2, 1))
    expected = asked(
        lambda x, t, text, mask: model(x, t, text, mask, both), latents(), LEVEL, texts
    )
    found = asked(reading, latents(), LEVEL, texts)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_disturbed_rows_and_clauses_answer_the_same() -> None:
    model = small_transformer()
    text, other, null = features(6), features(3, seed=2), features(1, seed=3)
    for clauses, options in (
        ((Clause(text),), GuidanceOptions(pag=2.0)),
        ((Clause(text), Clause(other, 0.5)), GuidanceOptions()),
    ):
        plan = Steering(options=options, scale=4.0, texts=(clauses,), nulls=(null,), layers=(1,))
        expected = steered(plain(model), plan)(0)(latents(), LEVEL)
        found = steered(Reading(model, None, True), plan)(0)(latents(), LEVEL)
        torch.testing.assert_close(found.eps, expected.eps, rtol=1e-4, atol=1e-4)


def test_only_the_learned_variance_is_read() -> None:
    readers = [name for name, sampler in SAMPLERS.items() if sampler.reads_variance]
    assert readers == ["iddpm"]
    assert not replace(SAMPLERS["iddpm"], variance="fixed_small").reads_variance  # type: ignore


def test_rows_must_fit_the_pictures() -> None:
    reading = Reading(small_transformer(), None, variance=False)
    with pytest.raises(InputError, match="got 3 rows for 2 pictures"):
        reading.answer(latents(), 600.0, [features(2, 2, 2)])


@torch.no_grad()
def test_it_compiles_whole_with_texts_that_were_read() -> None:
    model = small_transformer(SIGMA)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    reading = Reading(model, None, False)
    times = reading.at(600.0, 2, torch.device("cpu"))
    graphs = torch._dynamo.utils.counters["stats"]
    before = None
    for h, w, length in ((10, 14, 5), (8, 8, 9), (6, 6, 3), (12, 18, 7)):
        x = torch.randn(2, 4, h, w)
        texts = tuple(reading.read(features(n, seed=n)) for n in (1, length))
        expected = model(x, times, texts, variance=False)
        found = compiled(x, times, texts, variance=False)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert before in (None, graphs["unique_graphs"]), "another size or prompt compiles again"
        before = graphs["unique_graphs"]
