"""The pipeline by itself: seeds, steps, cancelling, places and failures."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.small import VAE, small_transformer
from tests.small import small_pipeline as pipeline
from torch import Tensor

from pixsigma import (
    InputError,
    KLAutoencoder,
    MissingWeightsError,
    NotFiniteError,
    OutOfMemoryError,
    PixArtSigmaPipeline,
    SizeError,
    Step,
    UnknownNameError,
)
from pixsigma.placement import choose_device

FAST = {"num_inference_steps": 3, "width": 32, "height": 32}
CALL: dict[str, Any] = {**FAST, "use_resolution_binning": False, "output_type": "latent"}


def last(steps: Iterator[Step]) -> Step:
    *_, final = steps
    return final


def latents_of(pipe: PixArtSigmaPipeline, **request: Any) -> Tensor:
    final = last(pipe.stream(**({"request": "a cat"} | FAST | request)))
    assert final.latents is not None
    return final.latents


def test_stages_come_in_order_with_previews_and_pictures() -> None:
    steps = list(pipeline().stream("a cat", seed=5, num_images=2, **FAST))
    assert [s.stage for s in steps] == ["text", *["denoising"] * 4, "decoding", "done"]
    assert [(s.index, s.total) for s in steps[1:5]] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert steps[1].timestep > steps[2].timestep > steps[3].timestep > steps[4].timestep == 0
    assert steps[1].preview().size == steps[1].latents.shape[:1:-1]  # type: ignore[union-attr]
    assert steps[-1].seeds == (5, 6)
    assert [image.size for image in steps[-1].images] == [(32, 32)] * 2


@pytest.mark.parametrize("sampler", ["dpm++2m", "euler-a", "sa"])
def test_a_picture_depends_on_its_seed_alone(sampler: str) -> None:
    pipe = pipeline()
    together = latents_of(pipe, seed=10, num_images=7, sampler=sampler)
    for k in (6, 0, 3):
        alone = latents_of(pipe, seed=10 + k, sampler=sampler)
        # Relative: the random network's latents are of the order of a hundred.
        assert (together[k : k + 1] - alone).norm() <= 1e-5 * alone.norm()
    assert not torch.allclose(together[0], together[1])


def test_a_request_without_guidance_has_what_suits_the_model(tmp_path: Path) -> None:
    pipe = pipeline()
    usual = latents_of(pipe, seed=1, guidance_scale=4.5)
    assert torch.equal(latents_of(pipe, seed=1), usual)
    pipe.default_guidance = 2.0
    pipe.save_pretrained(tmp_path)
    pipe = PixArtSigmaPipeline.from_pretrained(tmp_path)
    own = latents_of(pipe, seed=1)
    assert torch.equal(own, latents_of(pipe, seed=1, guidance_scale=2.0))
    assert not torch.allclose(own, usual)

    def called(**more: Any) -> Tensor:
        found: Tensor = pipe("a cat", generator=torch.manual_seed(1), **CALL, **more).images
        return found

    assert torch.equal(called(), called(guidance_scale=2.0))
    assert not torch.allclose(called(), called(guidance_scale=4.5))


def test_every_sampler_draws() -> None:
    from pixsigma import SAMPLERS

    pipe = pipeline()
    for name in SAMPLERS:
        latents = latents_of(pipe, sampler=name, num_inference_steps=4, seed=1)
        assert torch.isfinite(latents).all(), name


def test_a_caller_cancels_by_not_asking() -> None:
    pipe, calls = pipeline(), []
    pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    stream = pipe.stream("a cat", **FAST)
    next(stream), next(stream), next(stream)
    stream.close()
    assert len(calls) == 1


def test_guidance_and_null_conventions_change_the_picture() -> None:
    pipe = pipeline()
    own = latents_of(pipe, seed=1)
    assert not torch.allclose(own, latents_of(pipe, seed=1, guidance_scale=1))
    assert not torch.allclose(own, latents_of(pipe, seed=1, negative_prompt="a dog"))
    assert not torch.allclose(own, latents_of(pipe, seed=1, null_caption="prompt"))


def test_the_authors_null_caption_is_padded_t5_under_the_prompts_mask() -> None:
    pipe = pipeline()
    text = pipe.encode(["a cat", "a much longer prompt about a cat"])
    null = pipe.encode_null(text)
    padded = pipe.text_encoder.encode([""], pad_to_max_length=True)
    assert torch.equal(null.mask, text.mask)
    for row in null.embeddings:
        assert torch.equal(row, padded.embeddings[0, : text.mask.shape[1]])


@pytest.mark.parametrize("mode", ["resident", "model", "sequential"])
def test_every_placement_draws_the_same(mode: str) -> None:
    pipe = pipeline()
    expected = latents_of(pipe, seed=3)
    if mode == "model":
        pipe.enable_model_cpu_offload("cpu")
    if mode == "sequential":
        pipe.enable_sequential_cpu_offload("cpu")
        assert next(pipe.transformer.parameters()).device.type == "meta"
    torch.testing.assert_close(latents_of(pipe, seed=3), expected)
    pipe.to("cpu")
    assert next(pipe.transformer.parameters()).device.type == "cpu"
    torch.testing.assert_close(latents_of(pipe, seed=3), expected)


@pytest.mark.parametrize("mode", ["model", "sequential"])
@pytest.mark.parametrize("decoding", ["whole", "strips", "strips-half", "strips-spill"])
def test_every_placement_decodes_in_every_way(mode: Any, decoding: Any) -> None:
    pipe = pipeline()
    latents = torch.randn(1, 4, 8, 8)
    expected = pipe.decode(latents)
    getattr(pipe, f"enable_{mode}_cpu_offload")("cpu")
    pipe.decoding = decoding
    torch.testing.assert_close(pipe.decode(latents), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["cpu:x", "cpu:1", "cuda:99", "tpu", ""])
def test_devices_that_are_not_here_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="no device"):
        choose_device(name)


def test_tiles_decode_large_pictures_nearly_as_the_whole() -> None:
    pipe = pipeline(autoencoder=KLAutoencoder(replace(VAE, sample_size=32)).eval())
    latents = torch.randn(1, 4, 24, 24)
    whole = pipe.decode(latents)
    pipe.decoding = "tiles"
    tiled = pipe.decode(latents)
    assert tiled.shape == whole.shape
    assert 0 < (tiled - whole).abs().max() < 0.5 * whole.abs().max()


def test_strips_decode_as_the_whole() -> None:
    pipe = pipeline()
    latents, images = torch.randn(2, 4, 9, 14), torch.randn(2, 3, 18, 28)
    decoded, encoded = pipe.decode(latents), pipe.encode_pictures(images)
    for way in ("strips", "strips-spill"):
        pipe.decoding = way
        torch.testing.assert_close(pipe.decode(latents), decoded, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(pipe.encode_pictures(images), encoded, rtol=1e-4, atol=1e-4)
    pipe.decoding = "stripes"
    with pytest.raises(UnknownNameError, match="strips-half"):
        pipe.decode(latents)


def test_a_compiled_transformer_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    # compiled steps multiply by MKL: so do the others here, and the bound stays narrow
    monkeypatch.setattr("pixsigma.models.products.onednn_is_quicker", lambda: False)
    pipe = pipeline()
    expected = latents_of(pipe, seed=3)
    pipe.transformer = torch.compile(pipe.transformer, fullgraph=True, backend="eager")
    torch.testing.assert_close(latents_of(pipe, seed=3), expected)


def test_micro_conditions_reach_a_model_that_has_them() -> None:
    from tests.small import KINDS

    pipe = pipeline(transformer=small_transformer(KINDS["alpha"]), variant="alpha")
    seen = []
    pipe.transformer.csize_embedder.register_forward_pre_hook(lambda _, a: seen.append(a[0]))
    latents_of(pipe, width=32, height=64, num_images=2)
    assert seen[0].tolist() == [64.0, 32.0] * 4  # two pictures, with and without text


def test_overflow_is_told_with_its_remedy() -> None:
    pipe = pipeline()
    with torch.no_grad():
        pipe.transformer.final_layer.linear.bias.fill_(float("inf"))
    with pytest.raises(NotFiniteError, match=r"transformer.*bf16 or fp32"):
        latents_of(pipe)
    pipe = pipeline()
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="autoencoder"):
        latents_of(pipe)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("tried to allocate 20 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 20 GiB"),
    ],
)
def test_no_memory_is_told_with_advice(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    pipe = pipeline()

    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(pipe.vae, "decode", full)
    with pytest.raises(OutOfMemoryError, match=r"20 GiB.*smaller size"):
        latents_of(pipe)


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        ({"width": 30, "height": 32}, SizeError, "multiples of"),
        ({"sampler": "dpm+2m"}, InputError, "dpm\\+\\+2m"),
        ({"steps": 3}, InputError, "num_inference_steps"),
        ({"null_caption": "prompt", "negative_prompt": "x"}, InputError, "empty negative"),
    ],
)
def test_bad_requests(request_: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        latents_of(pipeline(), **request_)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({}, "either prompts or their embeddings"),
        ({"prompt": "a", "output_type": "jpeg"}, "pil, np, pt, latent"),
        ({"prompt": ["a"], "generator": [torch.Generator()] * 2}, "one generator"),
        ({"prompt": ["a"], "negative_prompt": ["b", "c"]}, "one negative prompt"),
        ({"prompt_embeds": torch.zeros(1, 3, 16)}, "attention mask"),
        (
            {"prompt_embeds": torch.zeros(1, 3, 9), "prompt_attention_mask": torch.ones(1, 3)},
            "16 wide, got 9",
        ),
        ({"prompt": "a", "guidance_scale": float("nan")}, "guidance_scale is a finite"),
        ({"prompt": "a", "guidance_scale": "3"}, "guidance_scale is a finite"),
        ({"prompt": "a", "height": 0}, "height is a whole number above 0"),
        ({"prompt": "a", "width": 64.0}, "width is a whole number above 0"),
        ({"prompt": "a", "max_sequence_length": -1}, "max_sequence_length is a whole"),
        ({"prompt": "a", "num_inference_steps": 2.5}, "num_inference_steps is a whole"),
        ({"prompt": "a", "num_images_per_prompt": -1}, "num_images_per_prompt is a whole"),
        ({"prompt": "a", "generator": 3}, "a generator is a torch.Generator"),
        ({"prompt": "a", "negative_prompt": 3}, "a negative prompt is a string"),
        ({"prompt": "\ud800 cat"}, "halves of characters"),
        ({"prompt": "a", "latents": torch.zeros(1, 4, 7, 7)}, r"latents .* are \(1, 4, .*7, 7"),
        ({"prompt": "a", "latents": torch.zeros(3, 4, 8, 8)}, r"latents .* are \(1, 4, .*\(3, 4"),
    ],
)
def test_bad_calls(call: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        pipeline()(**({"height": 32, "width": 32, "num_inference_steps": 1} | call))


def test_parts_that_were_left_out_are_named() -> None:
    pipe = pipeline(text_encoder=None, autoencoder=None)
    with pytest.raises(MissingWeightsError, match="prompt_embeds"):
        pipe("a cat")
    embeds, mask = torch.randn(1, 3, 16), torch.ones(1, 3)
    call = {"prompt_embeds": embeds, "prompt_attention_mask": mask, "guidance_scale": 1.0}
    size = {"height": 64, "width": 64, "num_inference_steps": 1, "use_resolution_binning": False}
    latents = pipe(output_type="latent", **call, **size).images
    assert latents.shape == (1, 4, 8, 8)
    with pytest.raises(MissingWeightsError, match="latent"):
        pipe(**call, **size)


def test_unknown_parts_are_refused() -> None:
    with pytest.raises(InputError, match="safety_checker"):
        PixArtSigmaPipeline.from_pretrained("mini", safety_checker=None)


def test_timesteps_may_be_an_array() -> None:
    pipe = pipeline()
    made = [
        pipe(
            "a",
            timesteps=given,
            height=32,
            width=32,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images
        for given in ([900, 500], np.array([900, 500]))
    ]
    assert np.array_equal(*made)


@pytest.mark.parametrize("wrong", [None, ["a", "b"], {"prompt": "a"}, 3])
def test_what_is_no_request_is_told(wrong: Any) -> None:
    pipe = pipeline()
    with pytest.raises(InputError, match="a request is a prompt or a GenerationRequest"):
        list(pipe.stream(wrong))
    with pytest.raises(InputError, match="a request is a prompt or a GenerationRequest"):
        pipe.draw_many([wrong])


def test_several_requests_are_a_list() -> None:
    pipe = pipeline()
    with pytest.raises(InputError, match="several requests are a list"):
        pipe.draw_many("ab")
    for wrong in ("8", 1.5, 0, True):
        with pytest.raises(InputError, match="at_once is how many"):
            pipe.draw_many(["a"], at_once=wrong)  # type: ignore[arg-type]


def test_a_broken_network_is_noticed_at_once() -> None:
    pipe = pipeline()
    for weight in pipe.transformer.final_layer.parameters():
        weight.data.fill_(float("nan"))
    seen = []
    with pytest.raises(NotFiniteError, match="the transformer"):
        for step in pipe.stream("a", **{**FAST, "num_inference_steps": 6}):
            seen.append((step.stage, step.index))
    assert seen[-1] == ("denoising", 0)
