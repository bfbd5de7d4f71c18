"""Requests that are not alike, drawn side by side: whatever can share a batch does."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from pixsigma import adapters
from pixsigma.controls import working
from pixsigma.denoising import Drawing, Step, denoise
from pixsigma.diffusion.samplers.base import Sampler
from pixsigma.errors import InputError
from pixsigma.gathering import Asking, Question, answered, grouped
from pixsigma.models.controlnet import Controlled
from pixsigma.turns import Asked, Ended, Turn

if TYPE_CHECKING:
    from pixsigma.pipeline import PixArtSigmaPipeline
    from pixsigma.requests import GenerationRequest

Denoised: TypeAlias = Callable[[Sampler, Drawing, adapters.Weighted], Iterator[Step]]
"""Runs the loop of a drawing."""

AT_ONCE = 8
"""Pictures that are in the making together; guidance makes two or three rows of each."""


def stream_many(
    self: "PixArtSigmaPipeline",
    requests: "Sequence[GenerationRequest | str]",
    *,
    at_once: int = AT_ONCE,
) -> Iterator[tuple[int, Step]]:
    """Yield (place in `requests`, step) of requests that may differ in everything.

    Each has its own loop; those that wait for the network are asked together where their latents
    have one shape, whatever their prompts, steps, samplers and guidance, and a finished one makes
    room for the next. Pictures are those of `stream`, up to rounding. Requests with the same
    adapters are drawn together. `at_once` bounds the pictures in the making.

    Raises InputError, and what `stream` raises for the first request that fails.
    """
    from pixsigma.editing.plan import as_request

    if at_once < 1:
        raise InputError(f"at_once is how many pictures are in the making, got {at_once}")
    checked = [as_request(request, {}) for request in requests]
    for places in by_adapters(checked):
        loras = adapters.read_choices(self, checked[places[0]].loras)
        yield from Company(self, loras, at_once).drawn({k: checked[k] for k in places})


def draw_many(
    self: "PixArtSigmaPipeline",
    requests: "Sequence[GenerationRequest | str]",
    *,
    at_once: int = AT_ONCE,
) -> list[Step]:
    """The last step of each request, with its images and seeds; see `stream_many`."""
    last: dict[int, Step] = dict(stream_many(self, requests, at_once=at_once))
    return [last[k] for k in range(len(requests))]


def by_adapters(requests: "Sequence[GenerationRequest]") -> list[list[int]]:
    """The places of requests with the same adapters, as weights change only between them."""
    found: dict[Any, list[int]] = {}
    for k, request in enumerate(requests):
        found.setdefault(request.loras, []).append(k)
    return list(found.values())


class Company:
    """Drawings under the same adapters, and the network that serves them by turns."""

    def __init__(self, pipe: "PixArtSigmaPipeline", loras: adapters.Weighted, at_once: int) -> None:
        self.pipe = pipe
        self.loras = loras
        self.at_once = at_once
        self.turns: dict[int, Turn[Step]] = {}
        self.sizes: dict[int, int] = {}
        self.waiting: dict[int, Any] = {}
        self.placed = ExitStack()
        self.is_placed = False

    @torch.no_grad()
    def drawn(self, requests: "dict[int, GenerationRequest]") -> Iterator[tuple[int, Step]]:
        """All steps of all requests."""
        todo = deque(requests.items())
        try:
            with adapters.adapted(self.pipe, self.loras) as network:
                while todo or self.waiting:
                    while todo and self.has_room(todo[0][1].num_images):
                        yield from self.begin(network, *todo.popleft())
                    for k, answer in self.answers():
                        yield from self.advance(k, answer)
        finally:
            for turn in self.turns.values():
                turn.stop()
            self.leave()

    def has_room(self, num_images: int) -> bool:
        """Whether so many more may be begun; one request always may."""
        return not self.sizes or sum(self.sizes.values()) + num_images <= self.at_once

    def begin(
        self, network: Any, k: int, request: "GenerationRequest"
    ) -> Iterator[tuple[int, Step]]:
        """The first stages of a request, up to its first question."""
        self.leave()

        def work(turn: Turn[Step]) -> Iterator[Step]:
            return self.pipe.stages(
                request, self.loras, partial(asking, self.pipe, network, turn.ask)
            )

        self.turns[k], self.sizes[k] = Turn(work), request.num_images
        yield from self.advance(k, None)

    def advance(self, k: int, answer: Any) -> Iterator[tuple[int, Step]]:
        """Drawing k goes on to its next question, or its end."""
        while not isinstance(report := self.turns[k].resume(answer), Asked | Ended):
            if report.value.stage == "decoding":
                self.leave()
            yield k, report.value
            answer = None
        if isinstance(report, Asked):
            self.waiting[k] = report.question
        else:
            del self.turns[k], self.sizes[k]

    def answers(self) -> list[tuple[int, Any]]:
        """Answers to all that wait."""
        asked, self.waiting = self.waiting, {}
        self.enter()
        alone = [(k, asking()) for k, asking in asked.items() if not isinstance(asking, Question)]
        places = [k for k, asking in asked.items() if isinstance(asking, Question)]
        for group in grouped([asked[k] for k in places], most=3 * self.at_once):
            found = answered([asked[places[i]] for i in group])
            alone += [(places[i], each) for i, each in zip(group, found, strict=True)]
        return alone

    def enter(self) -> None:
        """Bring the transformer to the device, where it is not yet."""
        if not self.is_placed:
            self.placed.enter_context(self.pipe.placement.running(self.pipe.transformer))
            self.is_placed = True

    def leave(self) -> None:
        """Make room for the text encoder and the autoencoder, where parts take turns."""
        self.placed.close()
        self.is_placed = False


@torch.no_grad()
def asking(
    pipe: "PixArtSigmaPipeline",
    network: Any,
    ask: Callable[[Any], Any],
    sampler: Sampler,
    drawing: Drawing,
    _: adapters.Weighted,
) -> Iterator[Step]:
    """The loop of one drawing, its network asked for."""
    if drawing.controls:  # asked alone: its texts have more layers, its rows hints
        network = Controlled(network, drawing.controls)
    with working(pipe, drawing.controls):
        drawing = replace(drawing, controls=())
        for step in denoise(Asking(network, ask), sampler, pipe.schedule, drawing):
            yield replace(step, preview=partial(pipe.preview, step.latents))
