"""Drawings in one batch are the drawings that they would be alone."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.serving import small_pipeline
from tests.test_adapters_pipeline import adapter
from tests.test_adapters_pipeline import pipeline as adaptable
from torch import Tensor

from pixsigma import NotFiniteError, OutOfMemoryError, PixArtSigmaPipeline
from pixsigma.denoising import Step
from pixsigma.many import SWITCH, Ask, Company, elsewhere, stages_in_company
from pixsigma.requests import GenerationRequest, request_from

SIZE = {"width": 32, "height": 48}
REQUESTS: list[dict[str, Any]] = [
    {"prompt": "a red apple", "seed": 1, "num_inference_steps": 4, **SIZE},
    {"prompt": "a cat", "seed": 2, "num_inference_steps": 6, "num_images": 2, **SIZE},
    {"prompt": "a tree", "seed": 3, "num_inference_steps": 3, "guidance_scale": 1.0, **SIZE},
    {"prompt": "a fish", "seed": 4, "num_inference_steps": 5, "sampler": "heun", **SIZE},
    {"prompt": "a fish", "seed": 5, "num_inference_steps": 4, "sampler": "sa", **SIZE},
    {"prompt": "a dog", "seed": 6, "num_inference_steps": 4, "num_images": 3, **SIZE},
    {"prompt": "a hut", "seed": 7, "num_inference_steps": 4, "width": 64, "height": 64},
    {"prompt": "a jar", "seed": 8, "num_inference_steps": 4, "guidance": {"pag": 2.0}, **SIZE},
    {"prompt": "a sea", "seed": 9, "num_inference_steps": 8, "fast": True, **SIZE},
]


def asked(k: int, **more: Any) -> GenerationRequest:
    return request_from(**REQUESTS[k] | more)


def alone(pipe: PixArtSigmaPipeline, request: GenerationRequest) -> Tensor:
    *_, last = pipe.stream(request)
    assert last.latents is not None
    return last.latents


def join(
    company: Company, key: Any, pipe: PixArtSigmaPipeline, request: GenerationRequest
) -> list[tuple[Any, Step]]:
    return company.join(key, partial(stages_in_company, pipe, request))


def finish(company: Company) -> dict[Any, Tensor]:
    found = {}
    while company.members:
        for key, step in company.step():
            if step.stage == "done":
                found[key] = step.latents
    return found


def same(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-4 * expected.norm())


@pytest.mark.parametrize("threaded", [False, True])
def test_pictures_are_the_same_alone_and_together_as_they_join_and_leave(threaded: bool) -> None:
    pipe = small_pipeline()
    requests = [asked(k) for k in range(len(REQUESTS))]
    expected = [alone(pipe, request) for request in requests]
    rows: list[int] = []
    pipe.transformer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with ThreadPoolExecutor(1) as pool:
        company, found = Company(pool if threaded else None), {}
        for k, request in enumerate(requests):
            join(company, k, pipe, request)
            for _ in range(2):
                found |= {key: s.latents for key, s in company.step() if s.stage == "done"}
        found |= finish(company)
    assert max(rows) >= 6, "no batch had more than one drawing"
    for k, solo in enumerate(expected):
        assert same(found[k], solo), REQUESTS[k]


def test_each_has_its_adapters_and_those_with_the_same_share(tmp_path: Path) -> None:
    pipe = adaptable()
    files = [str(adapter(tmp_path, seed)) for seed in (1, 2)]
    chosen = [[{"path": files[0]}], [], [{"path": files[1]}], [{"path": files[0]}]]
    requests = [asked(k, loras=loras) for k, loras in enumerate(chosen)]
    expected = [alone(pipe, request) for request in requests]
    plain = alone(pipe, asked(0))
    assert not same(expected[0], plain)
    rows: list[int] = []
    pipe.transformer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    company = Company()
    for k, request in enumerate(requests):
        join(company, k, pipe, request)
    found = finish(company)
    assert all(same(found[k], solo) for k, solo in enumerate(expected))
    assert max(rows) >= 4, "the two with one adapter had no batch in common"
    assert torch.equal(alone(pipe, asked(0)), plain)


def test_changing_adapters_waits_until_it_pays() -> None:
    pipe, company = small_pipeline(), Company()
    for k in range(2):
        join(company, k, pipe, asked(k))
    first, second = company.members.values()
    company._network = first.waits.network  # type: ignore[union-attr]
    second.waits = replace(second.waits, network="another")  # type: ignore[type-var]
    first.spent = SWITCH / 2
    assert company.chosen() == [0]
    first.spent = SWITCH * 2
    assert company.chosen() == [1]


def test_a_failure_is_that_of_its_own_drawing() -> None:
    pipe = small_pipeline()
    expected = alone(pipe, asked(0))
    heard = []

    def bad(ask: Ask) -> Iterator[Step]:
        try:
            for step in stages_in_company(pipe, asked(1), ask):
                if step.index == 2 and step.latents is not None:
                    step.latents.fill_(torch.nan)
                yield step
        except NotFiniteError as error:
            heard.append(error)

    company = Company()
    join(company, "good", pipe, asked(0))
    company.join("bad", bad)
    found = finish(company)
    assert len(heard) == 1 and same(found["good"], expected)


def test_one_that_raises_has_left_and_the_others_go_on() -> None:
    pipe = small_pipeline()
    expected = alone(pipe, asked(0))

    def bad(ask: Ask) -> Iterator[Step]:
        steps = stages_in_company(pipe, asked(1), ask)
        yield next(steps)
        elsewhere(ask, int, "no number")

    company = Company()
    join(company, "good", pipe, asked(0))
    with pytest.raises(ValueError, match="no number"):
        company.join("bad", bad)
    assert same(finish(company)["good"], expected)


def test_where_a_batch_fails_each_is_asked_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = small_pipeline()
    expected = [alone(pipe, asked(k)) for k in (0, 4)]
    forward = pipe.transformer.forward

    def cramped(x: Tensor, *rest: Any, **extra: Any) -> Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("no room for so many")
        return forward(x, *rest, **extra)

    monkeypatch.setattr(pipe.transformer, "forward", cramped)
    company = Company()
    for k in (0, 4):
        join(company, k, pipe, asked(k))
    found = finish(company)
    assert all(same(found[k], solo) for k, solo in zip((0, 4), expected, strict=True))
    with pytest.raises(OutOfMemoryError, match="smaller size"):
        join(company, "three", pipe, asked(5))
        finish(company)
    assert not company.members


def test_a_small_drawing_does_not_wait_for_a_large_one() -> None:
    pipe, company = small_pipeline(), Company()
    shapes = {"large": (256, 10), "small": (32, 20)}
    for name, (side, steps) in shapes.items():
        settings = {"num_inference_steps": steps, "width": side, "height": side}
        join(company, name, pipe, request_from(prompt="a city", seed=1, **settings))
    steps, ended = 0, []
    while company.members:
        ended += [key for key, step in company.step() if step.stage == "done"]
        steps += not ended
    # 20 steps of the small one are less than one of the large: that had a step, or two
    assert ended == ["small", "large"] and steps <= 23


def test_batches_are_bounded_and_large_drawings_are_asked_alone() -> None:
    pipe, company = small_pipeline(), Company()
    for k in range(4):
        join(company, k, pipe, asked(0, seed=k))
    company.most = 2 * company.members[0].waits.cost  # type: ignore[union-attr]
    join(company, "large", pipe, asked(5))
    assert len(company.chosen()) == 2
    while len(company.members) == 5:
        group = company.chosen()
        assert group == ["large"] or (len(group) == 2 and "large" not in group)
        company.step()
    company.stop()


def test_the_network_goes_on_while_an_errand_is_run() -> None:
    pipe, go = small_pipeline(), threading.Event()
    seen: list[int] = []

    def waits(ask: Ask) -> Iterator[Step]:
        elsewhere(ask, go.wait, 60)
        seen.append(1)
        yield from ()

    with ThreadPoolExecutor(2) as pool:
        woken = threading.Event()
        company = Company(pool, woken.set)
        company.join("waits", waits)
        join(company, "draws", pipe, asked(0))
        drawn = {}
        while not drawn:
            drawn = {key: s for key, s in company.step() if s.stage == "done"}
        assert [*drawn] == ["draws"] and not seen and company.idle
        woken.clear()
        go.set()
        assert woken.wait(60)
        company.step()
    assert seen and not company.members


def test_stopping_ends_every_drawing_where_it_stands() -> None:
    pipe, company, ended = small_pipeline(), Company(), []

    def work(ask: Ask) -> Iterator[Step]:
        try:
            yield from stages_in_company(pipe, asked(0), ask)
        finally:
            ended.append(1)

    company.join(1, work)
    company.join(2, work)
    company.step()
    company.stop()
    assert ended == [1, 1] and not company.members and torch.is_grad_enabled()
