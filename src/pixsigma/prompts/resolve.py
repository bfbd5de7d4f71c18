"""What a tree says in one step: a few texts with weights, brackets gone."""

from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

from pixsigma.prompts.tree import Alternating, Parts, Prompt, Scheduled, Text, Weighted

Spans: TypeAlias = tuple[tuple[str, float], ...]
"""Stretches of one text in order, each with the weight of its words."""


@dataclass(frozen=True)
class Line:
    """One text that a step reads."""

    spans: Spans
    weight: float = 1.0
    """Among the texts that AND joins."""

    @property
    def text(self) -> str:
        """The words alone."""
        return "".join(words for words, _ in self.spans)


def lines_at(prompt: Prompt, i: int, num_steps: int) -> tuple[Line, ...]:
    """The texts of step i of `num_steps`; spaces at their ends are gone."""
    return tuple(
        Line(_stripped(_merged(_spans(clause.parts, i, num_steps, 1.0))), clause.weight)
        for clause in prompt
    )


def plain(text: str) -> tuple[Line, ...]:
    """The text itself, for prompts that are not in the language."""
    return (Line(((text, 1.0),)),)


def _spans(parts: Parts, i: int, num_steps: int, weight: float) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for part in parts:
        match part:
            case Text(value):
                found.append((value, weight))
            case Weighted(inner, factor):
                found += _spans(inner, i, num_steps, weight * factor)
            case Scheduled(before, after, at):
                chosen = before if i / num_steps < at else after
                found += _spans(chosen, i, num_steps, weight)
            case Alternating(options):
                found += _spans(options[i % len(options)], i, num_steps, weight)
    return found


def _merged(spans: list[tuple[str, float]]) -> list[tuple[str, float]]:
    groups = groupby((span for span in spans if span[0]), key=lambda span: span[1])
    return [("".join(words for words, _ in group), weight) for weight, group in groups]


def _stripped(spans: list[tuple[str, float]]) -> Spans:
    while spans and not spans[0][0].strip():
        spans = spans[1:]
    while spans and not spans[-1][0].strip():
        spans = spans[:-1]
    if spans:
        spans[0] = spans[0][0].lstrip(), spans[0][1]
        spans[-1] = spans[-1][0].rstrip(), spans[-1][1]
    return tuple(spans) or (("", 1.0),)
