"""Questions of several drawings to one network, answered in one batch.

Rows of a batch do not see one another, so an answer is what it would be alone, up to rounding.
Texts keep their own lengths: cross-attention runs once for each length that occurs, and none is
padded. Pictures keep their sizes: attention runs once for each size, where sizes share a batch.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from pixsigma.interfaces import Perturbation
from pixsigma.models.blocks import Words
from pixsigma.models.packed import Batch, forward_packed
from pixsigma.models.transformer import Caption, Times
from pixsigma.shapes import Latents

SMALL = 2**9
"""Latents of a question that leave a CPU idle: up to so many, sizes share a batch there."""


@dataclass(frozen=True, eq=False)
class Question:
    """What one drawing asks at one time; as `PixArtTransformer.forward` has it."""

    network: Any
    x: Latents
    times: Times
    texts: Sequence[Caption]
    variance: bool
    perturbation: Perturbation | None = None
    packs: bool = False
    """Whether pictures of other sizes may be in the same batch."""

    @property
    def kind(self) -> Hashable:
        """Equal for questions that one batch can hold."""
        if any(words.memo for caption in self.texts for words in caption):
            return id(self)  # what the texts remember, they remember of these rows
        how = self.perturbation
        disturbed = how and (how.kind, how.layers, how.blur)
        size = None if self.packs else self.x.shape[1:]
        return self.network, size, self.x.dtype, self.x.device, disturbed

    @property
    def cost(self) -> int:
        """Places of all latents: what the network has to work through."""
        return self.x[:, 0].numel()

    def answer(self) -> Tensor:
        """The network's answer to this question alone."""
        return _asked(self, Batch(self.x, self.times, self.texts, self.perturbation), self.variance)


@dataclass(frozen=True)
class Call:
    """Work with the network that no batch can hold; equal to no other."""

    network: Any
    answer: Callable[[], Any]
    cost: int = 0
    """As a question's; what costs 0 does not wait for its turn."""

    @property
    def kind(self) -> Hashable:
        """Its own."""
        return id(self)


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one question that read one text."""

    question: int
    place: int
    """Which of its question's parts."""
    x: Latents
    times: Times
    text: Caption
    disturbed: bool

    @property
    def length(self) -> int:
        """Tokens of the text; a masked text is joined with no other."""
        return 0 if self.text[0].mask is not None else self.text[0].keys.shape[2]


class Asking:
    """The network as one drawing sees it: whoever owns all drawings does the work.

    `ask` takes a Question or a Call; `network` compares equal where weights and adapters are.
    """

    def __init__(self, network: Any, ask: Callable[[Any], Any]) -> None:
        self.network = network
        self.ask = ask

    def __getattr__(self, name: str) -> Any:
        # `read` and `embed`, where the network has them, and the parts of its forward pass
        found = getattr(self.network, name)
        if not callable(found):
            return found

        def asked(*arguments: Any, **named: Any) -> Any:
            cost = arguments[0][..., 0].numel() * 4 if name == "through" else 0
            return self.ask(Call(self.network, partial(found, *arguments, **named), cost))

        return asked

    def __call__(self, x: Latents, t: Any, text: Any, *rest: Any, **extra: Any) -> Tensor:
        """The network's answer."""
        if isinstance(t, Tensor):  # a network that reads nothing beforehand
            found = partial(self.network, x, t, text, *rest, **extra)
            return self.ask(Call(self.network, found, x[:, 0].numel()))
        return self.ask(Question(self.network, x, t, text, packs=pays(self.network, x), **extra))


def pays(network: Any, x: Latents) -> bool:
    """Whether pictures like these are asked sooner in one batch with others of other sizes."""
    small = x.device.type != "cpu" or x[:, 0].numel() <= SMALL
    return small and bool(getattr(network, "packs", False))


def answered(questions: Sequence[Question]) -> list[Tensor]:
    """One forward pass for questions of one kind."""
    first = questions[0]
    if len(questions) == 1:
        return [first.answer()]
    variance = any(question.variance for question in questions)
    sizes: dict[Any, list[int]] = {}
    for k, question in enumerate(questions):
        sizes.setdefault(question.x.shape[1:], []).append(k)
    gathered = [gather([questions[k] for k in places]) for places in sizes.values()]
    if len(gathered) == 1:
        outputs = [_asked(first, gathered[0][0], variance)]
    else:
        outputs = forward_packed(first.network, [batch for batch, _ in gathered], variance)
    found: dict[int, Tensor] = {}
    for output, (_, parts), places in zip(outputs, gathered, sizes.values(), strict=True):
        found |= zip(places, handed_out(output, parts, len(places)), strict=True)
    return [found[k] for k in range(len(questions))]


def gather(questions: Sequence[Question]) -> tuple[Batch, list[Part]]:
    """Questions of one size as one batch, and whose its rows are, in their order."""
    parts = sorted(
        (part for k, question in enumerate(questions) for part in parts_of(k, question)),
        key=lambda part: (part.disturbed, part.length),
    )
    how = questions[0].perturbation
    if how is not None:  # its rows are the last, as the sorting has it
        how = replace(how, num_rows=sum(len(part.x) for part in parts if part.disturbed))
    x = torch.cat([part.x for part in parts])
    return Batch(x, joined_times(parts), joined_texts(parts), how), parts


def parts_of(k: int, question: Question) -> list[Part]:
    """The rows of question `k`, text by text."""
    x, texts, how = question.x, question.texts, question.perturbation
    num = len(x) // len(texts)
    calm = len(x) - (how.num_rows if how else 0)
    return [
        Part(
            k,
            i,
            x[i * num : (i + 1) * num],
            Times(*(_rows(each, i, num) for each in question.times)),
            text,
            i * num >= calm,
        )
        for i, text in enumerate(texts)
    ]


def joined_times(parts: Sequence[Part]) -> Times:
    """A row for each picture, or a single one where all parts are at the same time."""
    first = parts[0].times
    if all(len(part.times.t) == 1 for part in parts) and all(
        torch.equal(part.times.t, first.t) for part in parts
    ):
        return first
    t = torch.cat([part.times.t.expand(len(part.x), -1) for part in parts])
    return Times(t, torch.cat([part.times.t0.expand(len(part.x), -1, -1) for part in parts]))


def joined_texts(parts: Iterable[Part]) -> list[Caption]:
    """Neighbours of one length as one text of several rows."""
    found: list[Caption] = []
    for length, group in groupby(parts, key=lambda part: part.length):
        rows = [[spread(words, len(part.x)) for words in part.text] for part in group]
        if length == 0:
            found += [tuple(row) for row in rows]
        else:
            found.append(tuple(map(_stacked, zip(*rows, strict=True))))
    return found


def spread(words: Words, num: int) -> Words:
    """A row for each of `num` pictures."""
    repeats = num // len(words.keys)
    if repeats == 1:
        return words
    tensors = words.keys, words.values, words.mask
    keys, values, mask = (t if t is None else t.repeat_interleave(repeats, dim=0) for t in tensors)
    assert keys is not None and values is not None
    return Words(keys, values, mask)


def handed_out(output: Tensor, parts: Sequence[Part], num_questions: int) -> list[Tensor]:
    """The rows of an output back to their questions, in each one's own order."""
    pieces = zip(parts, output.split([len(part.x) for part in parts]), strict=True)
    ordered = sorted(pieces, key=lambda pair: (pair[0].question, pair[0].place))
    return [
        torch.cat([piece for part, piece in ordered if part.question == k])
        for k in range(num_questions)
    ]


def _asked(question: Question, batch: Batch, variance: bool) -> Tensor:
    how = batch.perturbation
    extra: dict[str, Any] = {"perturbation": how} if how else {}
    output: Tensor = question.network(batch.x, batch.times, batch.texts, variance=variance, **extra)
    return output


def _stacked(words: Sequence[Words]) -> Words:
    return Words(torch.cat([w.keys for w in words]), torch.cat([w.values for w in words]))


def _rows(times: Tensor, i: int, num: int) -> Tensor:
    return times if len(times) == 1 else times[i * num : (i + 1) * num]
