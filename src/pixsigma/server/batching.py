"""Step-level batching: drawings join and leave a running batch between two steps.

Each drawing is a greenlet that runs the pipeline as it is. Where the pipeline asks the network, the
greenlet stands still until its question has been asked together with those of others. Rows of a
batch do not see one another, so every picture is the one that it would be alone.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor

from pixsigma.adapters import put_on
from pixsigma.models.transformer import Caption, Times
from pixsigma.pipeline import PixArtSigmaPipeline

MOST_TOKENS = 16384
"""Image tokens of one batch: two pictures of 1024 pixels with guidance; beyond that a batch is no
quicker a picture, and the small ones in it wait longer."""


class Strand(greenlet):  # type: ignore[misc]  # it has no types
    """One drawing; it stands still whenever it asks the network."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(work)
        self.heard: list[str] = []
        """What it was warned of."""

    call: "Call | None" = None
    spent: float = 0.0
    """Image tokens that the network has worked through for it, in its own steps and so shared."""


@dataclass
class Call:
    """One question to the network: the arguments of its `forward`."""

    pipe: PixArtSigmaPipeline
    network: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    loras: Any
    """The adapters that the weights must hold."""

    @property
    def tokens(self) -> int:
        """Image tokens, guidance and all pictures included."""
        num, _, height, width = self.args[0].shape
        return int(num * height * width) // self.pipe.transformer_config.patch_size**2

    @property
    def mergeable(self) -> bool:
        """Whether it has the form of `denoising.Reading.answer`: rows that stand alone."""
        if len(self.args) != 3 or set(self.kwargs) != {"variance"}:
            return False
        texts = self.args[2]
        single = isinstance(texts, tuple) and all(len(caption[0].keys) == 1 for caption in texts)
        return single and isinstance(self.args[1], Times)

    def goes_with(self, other: "Call") -> bool:
        """Whether both can be asked at once."""
        x, y = self.args[0], other.args[0]
        return self is other or (
            (self.mergeable and other.mergeable)
            and self.pipe is other.pipe
            and (x.shape[1:], x.dtype) == (y.shape[1:], y.dtype)
            and self.kwargs == other.kwargs
            and same_adapters(self.loras, other.loras)
        )


def same_adapters(one: Any, other: Any) -> bool:
    """Whether two stacks are the same objects at the same weights."""
    return [(id(a), w) for a, w in one] == [(id(a), w) for a, w in other]


class SharedNetwork:
    """The transformer of a pipeline, asked by several drawings in turn.

    It stands where `torch.compile` would put its own, so adapters find the network beneath.
    """

    def __init__(self, pipe: PixArtSigmaPipeline) -> None:
        self._pipe = pipe
        self._orig_mod = pipe.transformer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._orig_mod, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The network's answer, after as many other steps as fairness asks for."""
        here = getcurrent()
        if not isinstance(here, Strand):
            return self._orig_mod(*args, **kwargs)
        loras = self._pipe.loras.in_effect
        assert here.parent is not None
        return here.parent.switch(Call(self._pipe, self._orig_mod, args, kwargs, loras))


def hear() -> None:
    """From now on the warnings of a drawing go to the drawing; those of others where they went."""
    before = warnings.showwarning

    def show(message: Any, *rest: Any) -> None:
        here = getcurrent()
        if isinstance(here, Strand):
            here.heard.append(str(message))
        else:
            before(message, *rest)

    # not catch_warnings, which several threads cannot use at once
    warnings.simplefilter("always", UserWarning)
    warnings.showwarning = show  # type: ignore[assignment]


def heard() -> list[str]:
    """The warnings of this drawing so far."""
    here = getcurrent()
    return here.heard if isinstance(here, Strand) else []


def share(pipe: PixArtSigmaPipeline) -> bool:
    """Let drawings of this pipeline share its steps; False where its parts travel."""
    if pipe.placement.mode != "resident":
        return False
    if not isinstance(pipe.transformer, SharedNetwork):
        pipe.transformer = SharedNetwork(pipe)
    return True


@dataclass
class Turns:
    """The drawings under way, in one thread."""

    most_tokens: int = MOST_TOKENS
    strands: list[Strand] = field(default_factory=list)

    def begin(self, work: Callable[[], None]) -> Strand:
        """Run `work` until it first asks the network; it may be over then.

        `work` must not raise: it tells its errors itself.
        """
        strand = Strand(work)
        strand.spent = min((other.spent for other in self.strands), default=0.0)
        self.strands.append(strand)
        self._go_on(strand.switch)
        self._drop_dead()
        return strand

    def step(self) -> int:
        """Ask the network once, for the drawing that had least and all that fit; their number."""
        if not self.strands:
            return 0
        group = self.chosen()
        calls = [_waiting(strand) for strand in group]
        for strand, call, answer in zip(group, calls, answered(calls), strict=True):
            strand.spent += call.tokens / len(group)
            if isinstance(answer, Exception):
                self._go_on(strand.throw, answer)
            else:
                self._go_on(strand.switch, answer)
        self._drop_dead()
        return len(group)

    def chosen(self) -> list[Strand]:
        """Who is asked next: a drawing of few tokens gets its steps as often as a large one gets
        its share, so it is soon over.
        """
        order = sorted(self.strands, key=lambda strand: strand.spent)
        first = _waiting(order[0])
        group, tokens = [order[0]], first.tokens
        for strand in order[1:]:
            call = _waiting(strand)
            if call.goes_with(first) and tokens + call.tokens <= self.most_tokens:
                group.append(strand)
                tokens += call.tokens
        return group

    def stop(self, error: Exception) -> None:
        """Raise `error` in every drawing."""
        for strand in self.strands:
            self._go_on(strand.throw, error)
        self._drop_dead()

    def _go_on(self, resume: Callable[..., Any], *values: Any) -> None:
        strand = resume.__self__  # type: ignore[attr-defined]
        strand.call = None
        call = resume(*values)
        strand.call = call if isinstance(call, Call) else None

    def _drop_dead(self) -> None:
        self.strands = [strand for strand in self.strands if not strand.dead]


def answered(calls: Sequence[Call]) -> list[Tensor | Exception]:
    """The answer to each; where they fail together, each is asked alone and fails by itself."""
    if len(calls) > 1:
        try:
            put_on(calls[0].pipe, calls[0].loras)
            return [*together(calls)]
        except (RuntimeError, MemoryError):
            pass
    return [alone(call) for call in calls]


def alone(call: Call) -> Tensor | Exception:
    """One answer, or why there is none."""
    try:
        put_on(call.pipe, call.loras)
        return call.network(*call.args, **call.kwargs)
    except Exception as error:
        return error


@torch.no_grad()
def together(calls: Sequence[Call]) -> tuple[Tensor, ...]:
    """The answers of one batch; every call is mergeable and goes with the others."""
    counts = [len(call.args[0]) // len(call.args[2]) for call in calls]
    rows = math.gcd(*counts)  # the network gives every text equally many rows
    captions: list[Caption] = []
    for call, count in zip(calls, counts, strict=True):
        captions += [caption for caption in call.args[2] for _ in range(count // rows)]
    x = torch.cat([call.args[0] for call in calls])
    times = [_spread(call.args[1], len(call.args[0])) for call in calls]
    joined = Times(torch.cat([each.t for each in times]), torch.cat([each.t0 for each in times]))
    answer = calls[0].network(x, joined, captions, **calls[0].kwargs)
    return answer.split([len(call.args[0]) for call in calls])


def _spread(times: Times, num: int) -> Times:
    return Times(times.t.expand(num, -1), times.t0.expand(num, -1, -1))


def _waiting(strand: Strand) -> Call:
    assert strand.call is not None, "a drawing that lives has asked the network"
    return strand.call
