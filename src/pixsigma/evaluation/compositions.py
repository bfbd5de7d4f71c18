"""Do drawings show what a prompt composes? The six tasks of GenEval (Ghosh et al. 2023).

GenEval finds things with a detector of photographs. Drawings on plain grounds need none: colour
segmentation and connected components find them, and a thing is what it looks most like among the
pictures of a small vocabulary.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from pixsigma.errors import InputError
from pixsigma.evaluation.features import Array, extract
from pixsigma.evaluation.retrieval import References, likeness
from pixsigma.evaluation.segments import COLOURS, SIDE, Segment, has_colour, segments
from pixsigma.given import is_whole

TASKS = ("single", "two", "counting", "colours", "position", "binding")
"""One thing; two; so many; one of a colour; two beside each other; two of a colour each."""

CUTS = (0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7)
"""Where things that touch are cut apart, as parts of their common box."""

TOUCH = 0.07
"""Gap, or overlap, of things that stand on each other, as a part of the picture's side."""

MOST = 12
"""More segments than this are no composition of ours."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A thing that a prompt asks for; raises InputError for what no drawing could be."""

    name: str
    """Of the vocabulary."""
    colour: str | None = None
    """None where the prompt names none."""
    count: int = 1

    def __post_init__(self) -> None:
        if self.colour is not None and self.colour not in COLOURS:
            raise InputError(f"a colour is one of {', '.join(COLOURS)}, got {self.colour!r}")
        if not is_whole(self.count):
            raise InputError(f"a count is a whole number above 0, got {self.count!r}")


@dataclass(frozen=True, kw_only=True)
class Composition:
    """What a prompt asks for; raises InputError for what no task asks."""

    task: str
    prompt: str
    things: tuple[Wanted, ...]
    relation: str | None = None
    """How the first thing lies to the second; a key of RELATIONS."""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise InputError(f"a composition's task is one of {', '.join(TASKS)}, got {self.task}")
        if (self.relation is not None) != (self.task == "position"):
            raise InputError(f"a relation belongs to the task position: {self.prompt!r}")
        if self.relation is not None and self.relation not in RELATIONS:
            known = ", ".join(RELATIONS)
            raise InputError(f"a relation is one of {known}, got {self.relation!r}")
        if len(self.things) != (2 if self.task in ("two", "position", "binding") else 1):
            raise InputError(f"the task {self.task} asks for other things: {self.prompt!r}")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A segment and what it looks like."""

    segment: Segment
    name: str


class Checker:
    """Tells whether drawings are what compositions ask for."""

    def __init__(self, vocabulary: References) -> None:
        """`vocabulary` holds features of crops, as `crop_features` gives them."""
        self.vocabulary = vocabulary
        self.names = vocabulary.names

    def check(self, drawing: Image.Image, asked: Composition) -> bool:
        """Whether the drawing shows the composition.

        As in GenEval, things beside those asked for are no fault, but a count is exact. Raises
        InputError for a name outside the vocabulary.
        """
        self.vocabulary.must_show(thing.name for thing in asked.things)
        parts = segments(drawing)
        if not parts or len(parts) > MOST:
            return False
        found = self.name(parts)
        if asked.task == "counting":
            return count(found, asked.things[0]) == asked.things[0].count
        if len(asked.things) == 1:
            return count(found, asked.things[0]) >= 1
        if _holds(found, asked):
            return True
        # Only a drawing of one segment can be of two things that touch.
        cut = _apart(parts[0], asked) if len(parts) == 1 else ()
        return any(_holds(self.name(pair), asked) for pair in cut)

    def name(self, parts: Sequence[Segment]) -> list[Found]:
        """Each segment with the name of its nearest picture."""
        places = likeness(crop_features([part.crop() for part in parts]), self.vocabulary)
        best = places.argmax(axis=1)
        return [
            Found(segment=part, name=self.names[int(i)])
            for part, i in zip(parts, best, strict=True)
        ]


def crop_features(crops: Sequence[Image.Image]) -> Array:
    """Features of crops, (n, 1280)."""
    return extract(crops)


def reference_features(pictures: Sequence[Image.Image]) -> Array:
    """Features of whole pictures of one thing each, cut out as the checker does it.

    Raises InputError for a picture in which nothing stands out.
    """
    found = [segments(picture)[:1] for picture in pictures]
    if not all(found):
        raise InputError("a picture of the vocabulary shows nothing on its ground")
    return crop_features([parts[0].crop() for parts in found])


def count(found: Sequence[Found], wanted: Wanted) -> int:
    """How many are what is wanted, in name and colour."""
    return sum(_is(each, wanted) for each in found)


def _is(found: Found, wanted: Wanted) -> bool:
    if found.name != wanted.name:
        return False
    return wanted.colour is None or has_colour(found.segment, wanted.colour)


def _holds(found: Sequence[Found], asked: Composition) -> bool:
    """Whether two different segments are what is asked for, and lie so."""
    lies = RELATIONS[asked.relation] if asked.relation else _anyhow
    first, second = asked.things
    return any(
        _is(a, first) and _is(b, second) and lies(a.segment, b.segment)
        for a, b in itertools.permutations(found, 2)
    )


def _apart(whole: Segment, asked: Composition) -> Iterator[list[Segment]]:
    """A segment cut in two in many places, for things that touch each other."""
    upright = asked.relation in ("above", "below", "on top of")
    axes = (0, 1) if asked.relation is None else ((0,) if upright else (1,))
    for axis, at in itertools.product(axes, CUTS):
        pair = whole.cut(at, axis)
        if pair is not None:
            yield list(pair)


# How the first thing lies to the second


def _anyhow(a: Segment, b: Segment) -> bool:
    return True


def _offset(a: Segment, b: Segment) -> tuple[float, float]:
    """How far a's middle lies right of and below b's, as parts of the distance."""
    dx, dy = (p - q for p, q in zip(a.middle, b.middle, strict=True))
    length = max((dx**2 + dy**2) ** 0.5, 1e-6)
    return dx / length, dy / length


def _left(a: Segment, b: Segment) -> bool:
    return _offset(a, b)[0] < -0.7


def _above(a: Segment, b: Segment) -> bool:
    return _offset(a, b)[1] < -0.7


def _on_top(a: Segment, b: Segment) -> bool:
    """Above, touching, and with the middle over the other's width."""
    gap = abs(b.box[1] - a.box[3]) / SIDE
    left, _, right, _ = b.box
    return _above(a, b) and gap <= TOUCH and left <= a.middle[0] * SIDE <= right


RELATIONS: dict[str, Callable[[Segment, Segment], bool]] = {
    "left of": _left,
    "right of": lambda a, b: _left(b, a),
    "above": _above,
    "below": lambda a, b: _above(b, a),
    "on top of": _on_top,
}
