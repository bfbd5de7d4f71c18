"""What a request says, and what its steps read: through the whole pipeline, on small parts."""

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.small import KINDS, small_text_encoder, small_transformer
from tests.test_pipeline import FAST, latents_of, pipeline
from torch import Tensor

from pixsigma import InputError, PixArtSigmaPipeline, T5TextEncoder
from pixsigma.prompting import rows, steering_of
from pixsigma.requests import request_from


@pytest.fixture(scope="module")
def pipe() -> PixArtSigmaPipeline:
    return pipeline()


def drawn(pipe: PixArtSigmaPipeline, prompt: str = "a red cat", **request: Any) -> Tensor:
    return latents_of(pipe, request=prompt, seed=1, **request)


def weighted(pipe: PixArtSigmaPipeline, prompt: str, **request: Any) -> Tensor:
    return drawn(pipe, prompt, prompt_syntax="weighted", **request)


def test_plain_prompts_are_the_same_in_the_language(pipe: PixArtSigmaPipeline) -> None:
    plain = drawn(pipe, negative_prompt="fog")
    for prompt in ("a red cat", "a (red:1.0) cat", "a [red:blue:1] cat", "a [red|red] cat"):
        assert torch.equal(weighted(pipe, prompt, negative_prompt="(fog:1)"), plain)


def test_brackets_are_words_where_the_language_is_off(pipe: PixArtSigmaPipeline) -> None:
    literal = drawn(pipe, "a (red:1.5) [cat|dog] AND")
    escaped = weighted(pipe, r"a \(red:1.5\) \[cat\|dog\] \AND")
    assert torch.equal(literal, escaped)
    assert not torch.allclose(literal, weighted(pipe, "a (red:1.5) [cat|dog]"))


@settings(deadline=None)
@given(st.text(max_size=30), st.text(alphabet="()[]|:\\\\ AND.5", max_size=30))
def test_any_text_is_literal_where_the_language_is_off(some: str, signs: str) -> None:
    request = request_from(prompt=some + signs, negative_prompt=signs + some)
    for negative, text in ((False, some + signs), (True, signs + some)):
        assert [line.spans for line in rows(request, 1, negative)[0]] == [((text, 1.0),)]


def test_weights_change_the_picture(pipe: PixArtSigmaPipeline) -> None:
    plain = drawn(pipe)
    assert not torch.allclose(weighted(pipe, "a (red:1.5) cat"), plain)
    assert not torch.allclose(
        weighted(pipe, "a red cat", negative_prompt="(fog:0.5)"),
        weighted(pipe, "a red cat", negative_prompt="fog"),
    )


def test_a_schedule_is_the_one_and_then_the_other(pipe: PixArtSigmaPipeline) -> None:
    request = request_from(prompt="[a cat:a dog:0.5]", prompt_syntax="weighted")
    steps = steering_of(pipe, request, 4, (32, 32)).texts
    cat, dog = (pipe.encode([word]).trimmed().embeddings for word in ("a cat", "a dog"))
    for i, (clause,) in enumerate(steps):
        assert torch.equal(clause.features.embeddings, cat if i < 2 else dog)
    assert steps[0][0].features is steps[1][0].features, "encoded once"


def test_a_schedule_begins_with_its_first_text(pipe: PixArtSigmaPipeline) -> None:
    first = [
        next(
            step.latents
            for step in pipe.stream(prompt, seed=1, prompt_syntax="weighted", **FAST)
            if step.stage == "denoising" and step.index == 1
        )
        for prompt in ("[cat:dog:0.5]", "cat", "dog")
    ]
    assert torch.equal(first[0], first[1])  # type: ignore[arg-type]
    assert not torch.allclose(first[0], first[2])  # type: ignore[arg-type]


def test_and_joins_texts(pipe: PixArtSigmaPipeline) -> None:
    both = weighted(pipe, "a cat AND a dog")
    assert not torch.allclose(both, weighted(pipe, "a cat"))
    turned = weighted(pipe, "a dog AND a cat")
    assert (both - turned).norm() <= 1e-4 * both.norm()
    silent = weighted(pipe, "a cat AND:0 a dog")
    alone = weighted(pipe, "a cat")
    assert (silent - alone).norm() <= 1e-4 * alone.norm()
    weighted(pipe, "a cat AND a dog", guidance_scale=1.0)


@pytest.mark.parametrize(
    "guidance",
    [
        {"start": 0.3, "stop": 0.7},
        {"schedule": "cosine"},
        {"rescale": 0.7},
        {"apg": True},
        {"pag": 3.0},
        {"pag": 3.0, "layers": [0, 1]},
        {"seg": 3.0},
        {"seg": 3.0, "seg_blur": 1.0, "apg": True, "start": 0.3},
        {"cfgpp": 0.6},
    ],
)
def test_guidance_reaches_the_picture_of_every_seed(
    pipe: PixArtSigmaPipeline, guidance: dict[str, Any]
) -> None:
    sampler = "ddim" if "cfgpp" in guidance else "dpm++2m"
    plain = drawn(pipe, sampler=sampler)
    changed = drawn(pipe, sampler=sampler, guidance=guidance)
    assert torch.isfinite(changed).all() and not torch.allclose(plain, changed)
    batch = drawn(pipe, sampler=sampler, guidance=guidance, num_images=3)
    assert (batch[:1] - changed).norm() <= 1e-4 * changed.norm()


def test_guidance_of_disturbed_rows_in_a_model_with_micro_conditions() -> None:
    alpha = pipeline(transformer=small_transformer(KINDS["alpha"]), variant="alpha")
    assert torch.isfinite(drawn(alpha, guidance={"pag": 2.0}, num_images=2)).all()
    with pytest.raises(InputError, match="set clean_caption to false"):
        weighted(alpha, "a (red:1.2) cat")
    weighted(alpha, "a (red:1.2) cat", clean_caption=False)


def test_long_prompts(pipe: PixArtSigmaPipeline) -> None:
    long = "a very long prompt " * 12
    with pytest.warns(UserWarning, match="may have 30 tokens"):
        cut = drawn(pipe, long)
    assert not torch.allclose(cut, drawn(pipe, long, long_prompts="chunk"))
    with pytest.raises(InputError, match="may have 30 tokens, got"):
        drawn(pipe, long, long_prompts="refuse")


def test_styles_are_put_around(pipe: PixArtSigmaPipeline) -> None:
    style = {"prompt": "ink of {prompt}", "negative_prompt": "fog"}
    by_hand = drawn(pipe, "ink of a red cat", negative_prompt="fog")
    assert torch.equal(drawn(pipe, style=style), by_hand)
    assert not torch.allclose(drawn(pipe, style=style), drawn(pipe))


@pytest.mark.parametrize(
    ("guidance", "words"),
    [
        ({"pag": 1.0, "layers": [2]}, "layers 0 to 1, got 2"),
        ({"pag": 1.0}, "layer 1 of this model compresses"),
        ({"cfgpp": 0.5}, "take ddim"),
    ],
)
def test_what_the_model_cannot_do_is_refused(guidance: dict[str, Any], words: str) -> None:
    compressed = pipeline(transformer=small_transformer(KINDS["compressed"]))
    with pytest.raises(InputError, match=words):
        drawn(compressed, guidance=guidance)
    drawn(compressed, guidance={"seg": 1.0})


def test_other_text_encoders_read_plain_prompts_only() -> None:
    class Foreign:
        def __init__(self, ours: T5TextEncoder) -> None:
            self.encoder, self.encode = ours.encoder, ours.encode

    foreign = pipeline(text_encoder=Foreign(small_text_encoder()))
    assert torch.equal(drawn(foreign), drawn(pipeline()))
    with pytest.raises(InputError, match="need a T5TextEncoder"):
        weighted(foreign, "a (red:1.2) cat")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"negative_prompt": "fog"}, "the negative prompt does nothing"),
        ({"guidance": {"apg": True}}, "apg does nothing"),
        ({"guidance": {"rescale": 0.7, "start": 0.1}}, "the interval and rescale do nothing"),
        ({"guidance": {"schedule": "linear"}}, "the schedule does nothing"),
    ],
)
def test_what_does_nothing_without_guidance_is_told(
    pipe: PixArtSigmaPipeline, settings: dict[str, Any], named: str
) -> None:
    with pytest.warns(UserWarning, match=f"guidance_scale 1, so {named}"):
        idle = drawn(pipe, guidance_scale=1.0, **settings)
    assert torch.equal(idle, drawn(pipe, guidance_scale=1.0))


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance": {"pag": 3.0, "start": 0.4, "rescale": 0.7}},
        {"guidance": {"schedule": "linear", "end_scale": 4.0}, "negative_prompt": "fog"},
    ],
)
def test_what_works_without_a_scale_is_not_warned_of(
    pipe: PixArtSigmaPipeline, settings: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = drawn(pipe, guidance_scale=1.0, **settings)
    assert not torch.allclose(found, drawn(pipe, guidance_scale=1.0))


def test_an_interval_without_a_step_and_an_empty_region_are_told(pipe: PixArtSigmaPipeline) -> None:
    guidance = {"start": 0.4, "stop": 0.6}
    with pytest.warns(UserWarning, match="no step of 3 begins in the interval 0.4 to 0.6"):
        found = drawn(pipe, guidance=guidance)
    assert torch.equal(found, drawn(pipe, guidance_scale=1.0))
    region = {"prompt": "a dog", "box": (0.5, 0.5, 0.501, 0.501), "soft": 0.0}
    with pytest.warns(UserWarning, match="region 1 covers nothing"):
        assert torch.equal(drawn(pipe, regions=[region]), drawn(pipe))


def test_fast_ends_cfgpp_too(pipe: PixArtSigmaPipeline) -> None:
    own: dict[str, Any] = {"sampler": "ddim", "guidance": {"cfgpp": 0.6}}
    stopped = drawn(pipe, sampler="ddim", guidance={"cfgpp": 0.6, "stop": 0.3})
    assert torch.equal(drawn(pipe, **own, fast={"guided": 0.3}), stopped)
    assert not torch.equal(drawn(pipe, **own), stopped)


@pytest.mark.parametrize("text", ["[cat|AND]", r"\AND: x", "[AND|cat]", "[a|b AND]", "(AND:1.2)"])
def test_a_style_goes_around_prompts_with_the_word_and(text: str) -> None:
    request = request_from(prompt=text, prompt_syntax="weighted", style="ink")
    plain = rows(request_from(prompt=text, prompt_syntax="weighted"), 2)
    for styled, own in zip(rows(request, 2), plain, strict=True):
        words = "".join(word for word, _ in own[0].spans)
        assert words in "".join(word for word, _ in styled[0].spans)
