"""Requests that are not alike, drawn side by side: the pictures of each alone."""

from typing import Any

import pytest
import torch
from tests.small import small_pipeline, small_transformer
from tests.test_pipeline import last, pipeline

from pixsigma import GenerationRequest, InputError, PixArtSigmaPipeline
from pixsigma.adapters import Adapted
from pixsigma.models.quantized import supported
from pixsigma.quantize import quantized
from pixsigma.turns import Asked, Ended, Told, Turn

CLOSE = 1e-4
"""Relative L2 between a picture's latents drawn with others and alone."""

VARIED: list[dict[str, Any]] = [
    {"prompt": "a cat"},
    {"prompt": "a much longer prompt about a dog", "num_inference_steps": 5, "sampler": "unipc"},
    {"prompt": "a cat", "negative_prompt": "a dog and a bird", "guidance_scale": 2.0},
    {"prompt": "a house", "width": 48, "sampler": "heun"},
    {"prompt": "a tree", "guidance_scale": 1.0, "sampler": "iddpm"},
    {"prompt": "two trees", "num_images": 3, "sampler": "euler-a"},
    {"prompt": "a red fish", "guidance": {"pag": 3.0, "layers": (1,)}},
    {"prompt": "a blue fish", "guidance": {"pag": 1.5, "layers": (1,)}, "sampler": "ddim"},
    {"prompt": "a sun", "guidance": {"seg": 2.0, "layers": (0,)}},
    {"prompt": "a cat AND:0.5 a dog", "prompt_syntax": "weighted", "sampler": "dpm++2s"},
    {"prompt": "[a car:a bus:0.5]", "prompt_syntax": "weighted", "guidance": {"apg": True}},
    {"prompt": "a sea", "width": 256, "height": 256, "two_pass": True},
    {"prompt": "a moon", "num_inference_steps": 6, "fast": True},
]


def requests() -> list[GenerationRequest]:
    plain = {"num_inference_steps": 3, "width": 32, "height": 32}
    return [
        GenerationRequest.model_validate(plain | {"seed": 10 * k} | each)
        for k, each in enumerate(VARIED)
    ]


def check_same(pipe: PixArtSigmaPipeline, asked: list[GenerationRequest], at_once: int) -> None:
    together = pipe.draw_many(asked, at_once=at_once)
    for request, found in zip(asked, together, strict=True):
        alone = last(pipe.stream(request))
        assert found.seeds == alone.seeds and len(found.images) == request.num_images
        assert found.latents is not None and alone.latents is not None
        assert (found.latents - alone.latents).norm() <= CLOSE * alone.latents.norm(), request


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_each_is_as_if_it_were_alone(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixsigma.gathering.SMALL", 2**14)  # so that sizes share batches too
    pipe = pipeline()
    check_same(pipe, requests(), at_once)


@pytest.mark.parametrize("mode", ["model", "sequential"])
def test_parts_take_turns_on_the_device(mode: str) -> None:
    pipe = pipeline()
    getattr(pipe, f"enable_{mode}_cpu_offload")("cpu")
    check_same(pipe, requests()[:4], 8)


def test_a_picture_does_not_depend_on_the_number_of_threads() -> None:
    pipe, asked, before = pipeline(), requests()[:6], torch.get_num_threads()
    found = []
    try:
        for num in (1, 2, 3):
            torch.set_num_threads(num)
            found.append([last(pipe.stream(request)).latents for request in asked])
    finally:
        torch.set_num_threads(before)
    for one, *others in zip(*found, strict=True):
        for other in others:
            assert one is not None and other is not None
            assert (other - one).norm() <= CLOSE * one.norm()


def test_what_has_one_shape_is_asked_in_one_batch() -> None:
    pipe, rows = pipeline(), []
    pipe.transformer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    pipe.draw_many(requests()[:3])
    # three pairs, until two of them have had their three steps
    assert rows == [6, 6, 6, 2, 2]


def counted(pipe: PixArtSigmaPipeline) -> list[int]:
    """Tokens of every call of the first block."""
    tokens: list[int] = []
    layer = pipe.transformer.blocks[0].attn.qkv
    layer.register_forward_pre_hook(lambda _, args: tokens.append(args[0][..., 0].numel()))
    return tokens


def test_small_pictures_of_different_sizes_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline()
    monkeypatch.setattr("pixsigma.gathering.SMALL", 2 * 16 * 24)
    tokens = counted(pipe)
    asked = [request.model_copy(update={"sampler": "euler"}) for request in requests()[:4:3]]
    pipe.draw_many(asked)
    assert tokens == [2 * 64 + 2 * 96] * 3
    tokens.clear()
    monkeypatch.setattr("pixsigma.gathering.SMALL", 2 * 16 * 16)
    pipe.draw_many(asked)
    assert sorted(tokens) == [2 * 64] * 3 + [2 * 96] * 3


def test_sizes_take_turns_where_the_parts_of_blocks_are_not_to_be_called() -> None:
    pipe = small_pipeline()
    whole = pipe.transformer
    assert Adapted(pipe, ()).packs
    pipe.transformer = torch.compile(whole, backend="eager")
    assert not Adapted(pipe, ()).packs
    pipe.transformer = whole
    pipe.enable_sequential_cpu_offload("cpu")
    assert not Adapted(pipe, ()).packs


@pytest.mark.skipif(not supported(), reason="this torch is without oneDNN")
def test_in_8_bits_a_picture_does_not_depend_on_others_of_other_sizes() -> None:
    pipe = small_pipeline(transformer=quantized(small_transformer(), "int8-fast"))
    check_same(pipe, requests()[:4], 8)


def test_steps_tell_whose_they_are_and_a_finished_one_makes_room() -> None:
    pipe = pipeline()
    steps = list(pipe.stream_many(requests()[:3], at_once=2))
    stages = [[step.stage for place, step in steps if place == k] for k in range(3)]
    assert stages[0] == ["text", *["denoising"] * 4, "decoding", "done"]
    assert all(each[-1] == "done" for each in stages)
    began = [place for place, step in steps if step.stage == "text"]
    third = steps.index(next(each for each in steps if each[0] == 2))
    assert began == [0, 1, 2]
    assert [place for place, step in steps[:third] if step.stage == "done"] == [0]


def test_a_caller_may_leave_in_the_middle() -> None:
    pipe = pipeline()
    stream = pipe.stream_many(requests())
    for _ in range(20):
        next(stream)
    stream.close()
    assert torch.is_grad_enabled()
    check_same(pipe, requests()[:1], 1)


def test_one_that_fails_fails_all() -> None:
    broken = requests()[0].model_copy(update={"sampler": "heum"})
    with pytest.raises(InputError, match="did you mean heun"):
        pipeline().draw_many([*requests()[1:4], broken])
    assert torch.is_grad_enabled()


def test_prompts_alone_are_requests_and_at_once_is_checked() -> None:
    pipe = pipeline()
    with pytest.raises(InputError, match="got 0"):
        pipe.draw_many(["a cat"], at_once=0)
    assert pipe.draw_many([]) == []


def test_a_turn_asks_from_below_and_goes_on_when_answered() -> None:
    def work(ask: Any) -> Any:
        yield 1
        yield ask("how many?") + 1

    turn: Turn[int] = Turn(work)
    first, asked, second, end = (turn.resume(a) for a in (None, None, lambda: 6, None))
    assert isinstance(first, Told) and first.value == 1
    assert isinstance(asked, Asked) and asked.question == "how many?"
    assert isinstance(second, Told) and second.value == 7
    assert isinstance(end, Ended)


def test_a_turn_that_is_stopped_runs_its_finally() -> None:
    seen = []

    def work(ask: Any) -> Any:
        try:
            yield ask(1)
        finally:
            seen.append("unwound")

    turn: Turn[int] = Turn(work)
    turn.resume()
    turn.stop()
    turn.stop()
    assert seen == ["unwound"]
