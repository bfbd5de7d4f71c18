"""Drawings in one batch are the drawings that they would be alone."""

from typing import Any

import pytest
import torch
from tests.serving import small_pipeline
from torch import Tensor

from pixsigma import NotFiniteError, PixArtSigmaPipeline
from pixsigma.server.batching import Turns, share

SIZE = {"width": 32, "height": 48}
REQUESTS: list[dict[str, Any]] = [
    {"request": "a red apple", "seed": 1, "num_inference_steps": 4, **SIZE},
    {"request": "a cat", "seed": 2, "num_inference_steps": 6, "num_images": 2, **SIZE},
    {"request": "a tree", "seed": 3, "num_inference_steps": 3, "guidance_scale": 1.0, **SIZE},
    {"request": "a fish", "seed": 4, "num_inference_steps": 5, "sampler": "heun", **SIZE},
    {"request": "a fish", "seed": 5, "num_inference_steps": 4, "sampler": "sa", **SIZE},
    {"request": "a dog", "seed": 6, "num_inference_steps": 4, "num_images": 3, **SIZE},
    {"request": "a hut", "seed": 7, "num_inference_steps": 4, "width": 64, "height": 64},
    {"request": "a jar", "seed": 8, "num_inference_steps": 4, "guidance": {"pag": 2.0}, **SIZE},
]


def drawn(pipe: PixArtSigmaPipeline, wanted: dict[str, Any]) -> Tensor:
    *_, last = pipe.stream(**wanted)
    assert last.latents is not None
    return last.latents


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def test_pictures_are_the_same_alone_and_together_as_they_join_and_leave() -> None:
    pipe = small_pipeline()
    alone = [drawn(pipe, wanted) for wanted in REQUESTS]
    share(pipe)
    turns, found, sizes = Turns(), {}, []

    def begin(k: int) -> None:
        def work() -> None:
            found[k] = drawn(pipe, REQUESTS[k])

        turns.begin(work)

    begin(0)
    for k in range(1, len(REQUESTS)):
        sizes.append(turns.step())
        begin(k)
    while turns.strands:
        sizes.append(turns.step())
    assert max(sizes) >= 3
    for k, expected in enumerate(alone):
        assert (found[k] - expected).norm() <= 1e-4 * expected.norm(), REQUESTS[k]


def test_a_failure_is_that_of_its_own_drawing() -> None:
    pipe = small_pipeline()
    expected = drawn(pipe, REQUESTS[0])
    share(pipe)
    turns, found = Turns(), {}

    def good() -> None:
        found["good"] = drawn(pipe, REQUESTS[0])

    def bad() -> None:
        try:
            for step in pipe.stream(**REQUESTS[1]):
                if step.index == 2 and step.latents is not None:
                    step.latents.fill_(torch.nan)
        except NotFiniteError as error:
            found["bad"] = error

    turns.begin(good)
    turns.begin(bad)
    while turns.strands:
        turns.step()
    assert isinstance(found["bad"], NotFiniteError)
    assert (found["good"] - expected).norm() <= 1e-4 * expected.norm()


def test_where_a_batch_fails_each_is_asked_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = small_pipeline()
    expected = [drawn(pipe, REQUESTS[k]) for k in (0, 4)]
    share(pipe)
    network = pipe.transformer._orig_mod
    forward = network.forward

    def cramped(x: Tensor, *rest: Any, **extra: Any) -> Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("no room for so many")
        return forward(x, *rest, **extra)

    monkeypatch.setattr(network, "forward", cramped)
    turns, found = Turns(), {}
    for k in (0, 4):
        turns.begin(lambda k=k: found.update({k: drawn(pipe, REQUESTS[k])}))  # type: ignore[misc]
    while turns.strands:
        turns.step()
    for k, solo in zip((0, 4), expected, strict=True):
        assert (found[k] - solo).norm() <= 1e-4 * solo.norm()


def test_a_small_drawing_does_not_wait_for_a_large_one() -> None:
    pipe = small_pipeline()
    share(pipe)
    turns, ended = Turns(), []
    large = {"request": "a city", "num_inference_steps": 10, "width": 256, "height": 256}
    small = {"request": "a cat", "num_inference_steps": 20, "width": 32, "height": 32}
    for name, wanted in (("large", large), ("small", small)):
        turns.begin(lambda n=name, w=wanted: (drawn(pipe, w), ended.append(n)))  # type: ignore[misc]
    steps = 0
    while not ended:
        turns.step()
        steps += 1
    # 20 steps of 4 tokens are less than one of 256: the large one had a step, or two
    assert ended == ["small"] and steps <= 23
    while turns.strands:
        turns.step()


def test_stopping_ends_every_drawing_where_it_stands() -> None:
    pipe = small_pipeline()
    share(pipe)
    turns, heard = Turns(), []

    def work() -> None:
        try:
            drawn(pipe, REQUESTS[0])
        except KeyboardInterrupt:
            heard.append("never")
        except RuntimeError as error:
            heard.append(str(error))

    turns.begin(work)
    turns.begin(work)
    turns.step()
    turns.stop(RuntimeError("enough"))
    assert heard == ["enough"] * 2 and turns.strands == []


def test_outside_of_a_drawing_the_network_is_asked_at_once() -> None:
    pipe = small_pipeline()
    expected = drawn(pipe, REQUESTS[0])
    assert share(pipe) and share(pipe)
    assert torch.equal(drawn(pipe, REQUESTS[0]), expected)
    pipe.enable_model_cpu_offload("cpu")
    assert not share(pipe)
