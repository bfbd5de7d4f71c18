"""Requests that are not alike, drawn side by side: whatever can share a batch does."""

import contextvars
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from pixsigma import adapters
from pixsigma.controls import working
from pixsigma.denoising import Drawing, Step, denoise
from pixsigma.diffusion.samplers.base import Sampler
from pixsigma.errors import InputError
from pixsigma.gathering import Asking, Call, Question, answered
from pixsigma.given import is_whole
from pixsigma.turns import Answer, Ended, Told, Turn

if TYPE_CHECKING:
    from pixsigma.pipeline import PixArtSigmaPipeline
    from pixsigma.requests import GenerationRequest

Denoised: TypeAlias = Callable[[Sampler, Drawing, adapters.Weighted], Iterator[Step]]
"""Runs the loop of a drawing."""

Ask: TypeAlias = Callable[[Any], Any]
"""Asks the owner of all drawings a Question or a Call of the network, or an Errand."""

AT_ONCE = 8
"""Pictures that are in the making together; guidance makes two or three rows of each."""

MOST_PLACES = 2**16
"""Latents of one batch: two pictures of 1024 pixels with guidance; beyond that a batch is no
quicker a picture, and the small ones in it wait longer."""

SWITCH = 2**12
"""Latents that cost about as much as changing adapters: others' have their turn after so many."""


@dataclass(frozen=True)
class Errand:
    """Work that needs neither the transformer nor its turn: texts, pictures, files."""

    call: Answer


def elsewhere(ask: Ask, call: Callable[..., Any], *arguments: Any) -> Any:
    """What `call` returns, while other drawings may go on; it sees the context of this one."""
    return ask(Errand(partial(contextvars.copy_context().run, call, *arguments)))


def stages_in_company(
    pipe: "PixArtSigmaPipeline", request: "GenerationRequest", ask: Ask
) -> Iterator[Step]:
    """The stages of a request whose owner has other drawings too."""
    away = partial(elsewhere, ask)
    loras = away(adapters.read_choices, pipe, request.loras)
    return pipe.stages(request, loras, partial(asking, pipe, ask), away)


@torch.no_grad()
def asking(
    pipe: "PixArtSigmaPipeline", ask: Ask, sampler: Sampler, drawing: Drawing, loras: Any
) -> Iterator[Step]:
    """The loop of one drawing, its network asked for."""
    network = Asking(adapters.Adapted(pipe, loras), ask)
    with working(pipe, drawing.controls):
        for step in denoise(network, sampler, pipe.schedule, drawing):
            yield replace(step, preview=partial(pipe.preview, step.latents))


def stream_many(
    self: "PixArtSigmaPipeline",
    requests: "Sequence[GenerationRequest | str]",
    *,
    at_once: int = AT_ONCE,
) -> Iterator[tuple[int, Step]]:
    """Yield (place in `requests`, step) of requests that may differ in everything.

    Each has its own loop; those that wait for the network are asked together, whatever their
    prompts, steps, samplers and guidance, of several sizes where that is quicker, and a finished
    one makes room for the next. Pictures are those of `stream`, up to rounding. Requests with the
    same adapters are drawn one after the other. `at_once` bounds the pictures in the making.

    Raises InputError, and what `stream` raises for the first request that fails.
    """
    from pixsigma.editing.plan import as_request

    if not is_whole(at_once):
        raise InputError(f"at_once is how many pictures are in the making, got {at_once!r}")
    if isinstance(requests, str):
        raise InputError("several requests are a list, got one prompt: put it in brackets")
    checked = [as_request(request, {}) for request in requests]
    return _drawn(self, checked, deque(by_adapters(checked)), at_once)


def _drawn(
    pipe: "PixArtSigmaPipeline",
    requests: "Sequence[GenerationRequest]",
    todo: deque[int],
    at_once: int,
) -> Iterator[tuple[int, Step]]:
    company = Company()

    def has_room(num_images: int) -> bool:  # one request always has
        making = sum(requests[k].num_images for k in company.members)
        return not making or making + num_images <= at_once

    try:
        while todo or company.members:
            while todo and has_room(requests[todo[0]].num_images):
                k = todo.popleft()
                yield from company.join(k, partial(stages_in_company, pipe, requests[k]))
            yield from company.step()
    finally:
        company.stop()
        adapters.put_on(pipe, pipe.loras.wanted())


def draw_many(
    self: "PixArtSigmaPipeline",
    requests: "Sequence[GenerationRequest | str]",
    *,
    at_once: int = AT_ONCE,
) -> list[Step]:
    """The last step of each request, with its images and seeds; see `stream_many`."""
    last: dict[int, Step] = dict(stream_many(self, requests, at_once=at_once))
    return [last[k] for k in range(len(requests))]


def by_adapters(requests: "Sequence[GenerationRequest]") -> list[int]:
    """The places of the requests, those with the same adapters beside each other."""
    found: dict[Any, list[int]] = {}
    for k, request in enumerate(requests):
        found.setdefault(request.loras, []).append(k)
    return [k for places in found.values() for k in places]


@dataclass(eq=False)
class Member:
    """A drawing in the making."""

    turn: Turn[Any]
    spent: float
    """What the network has worked through for it; it began with what the least had."""
    waits: Question | Call | Future[Any] | None = None


@dataclass
class Company:
    """Drawings in the making, and the network that serves them by turns, all in one thread.

    They join and leave between two steps. With a `pool` errands are run there while the network
    goes on, and `on_errand` is called when one is done, in whatever thread.
    """

    pool: Executor | None = None
    on_errand: Callable[[], None] = lambda: None
    members: dict[Any, Member] = field(default_factory=dict)
    most: int = MOST_PLACES
    _placed: ExitStack = field(default_factory=ExitStack)
    _network: Any = None
    """What was asked last, on its device."""

    @torch.no_grad()
    def join(self, key: Any, work: Callable[[Ask], Iterator[Any]]) -> list[tuple[Any, Any]]:
        """Begin with `work`, up to where it waits; returns pairs of `key` and what it yields."""
        spent = min((member.spent for member in self.members.values()), default=0.0)
        self.members[key] = Member(Turn(work), spent)
        return self._advance(key)

    @torch.no_grad()
    def step(self) -> list[tuple[Any, Any]]:
        """Hand out what has come back and one batch of answers; what was yielded on them.

        Raises what the work raises; then it has left.
        """
        told = []
        waiting = [(key, member.waits) for key, member in self.members.items()]
        for key, errand in waiting:
            if isinstance(errand, Future) and errand.done():
                told += self._advance(key, errand.result)
        keys = self.chosen()
        for key, answer in zip(keys, self._answers(keys), strict=True):
            told += self._advance(key, answer)
        return told

    @property
    def idle(self) -> bool:
        """Whether no one waits for the network."""
        return not any(isinstance(m.waits, Question | Call) for m in self.members.values())

    def chosen(self) -> list[Any]:
        """Who is asked next: whoever had least, and all that a batch with it holds.

        A drawing of few latents gets its steps as often as a large one its share, so it is soon
        over.
        """

        def behind(key: Any) -> float:
            network = self.members[key].waits.network  # type: ignore[union-attr]
            return self.members[key].spent + (SWITCH if network != self._network else 0)

        asking = [k for k, m in self.members.items() if isinstance(m.waits, Question | Call)]
        group: list[Any] = []
        cost, kind = 0, None
        for key in sorted(asking, key=behind):
            question: Any = self.members[key].waits
            if not group or (question.kind == kind and cost + question.cost <= self.most):
                group.append(key)
                cost, kind = cost + question.cost, question.kind
        return group

    @torch.no_grad()
    def stop(self) -> None:
        """Unwind every drawing where it stands."""
        for member in self.members.values():
            member.turn.stop()
        self.members.clear()
        self._leave()

    # Going on

    def _advance(self, key: Any, answer: Answer | None = None) -> list[tuple[Any, Any]]:
        member, told = self.members[key], []
        member.waits = None
        try:
            while not isinstance(report := member.turn.resume(answer), Ended):
                answer = None
                if isinstance(report, Told):
                    told.append((key, report.value))
                elif (answer := self._at_once(member, report.question)) is None:
                    return told
        except BaseException:
            del self.members[key]
            raise
        del self.members[key]
        return told

    def _at_once(self, member: Member, question: Any) -> Answer | None:
        """The answer where there is one already; else the member waits for it."""
        if not isinstance(question, Errand):
            if question.cost == 0:
                return partial(self._alone, question)
            member.waits = question
        elif self.pool is None:
            self._leave()
            return question.call
        else:
            member.waits = self.pool.submit(question.call)
            member.waits.add_done_callback(lambda _: self.on_errand())
        return None

    # The network

    def _answers(self, keys: Sequence[Any]) -> list[Answer]:
        """An answer to each, asked together; where that fails each is asked alone, and fails by
        itself.
        """
        questions: list[Any] = [self.members[key].waits for key in keys]
        for key, question in zip(keys, questions, strict=True):
            self.members[key].spent += question.cost
        if len(questions) > 1:
            try:
                self._enter(questions[0].network)
                return [partial(_given, found) for found in answered(questions)]
            except (RuntimeError, MemoryError):
                pass
        return [partial(self._alone, question) for question in questions]

    def _alone(self, question: Question | Call) -> Any:
        self._enter(question.network)
        with question.network.pipe.placement.running():  # which tells of memory that is short
            return question.answer()

    def _enter(self, network: Any) -> None:
        """Bring the transformer to its device with these adapters, unless it is there."""
        if network != self._network:
            self._leave()
            network.settle()  # before the weights travel: at rest it takes no room on the device
            placement = network.pipe.placement
            self._placed.enter_context(placement.running(network.pipe.transformer))
            self._network = network

    def _leave(self) -> None:
        """Make room for the text encoder and the autoencoder, where parts take turns."""
        self._placed.close()
        self._network = None


def _given(value: Any) -> Any:
    return value
