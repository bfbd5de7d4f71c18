"""What a prompt says: a tree, and the way back to text."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias


@dataclass(frozen=True)
class Text:
    """Words, escapes resolved."""

    value: str


@dataclass(frozen=True)
class Weighted:
    """`(parts:1.3)`: the features of these words are scaled; nested weights multiply."""

    parts: "Parts"
    weight: float


@dataclass(frozen=True)
class Scheduled:
    """`[before:after:0.4]`: the one until 40 % of the steps, then the other."""

    before: "Parts"
    after: "Parts"
    at: float


@dataclass(frozen=True)
class Alternating:
    """`[a|b|c]`: one after the other, a step each."""

    options: tuple["Parts", ...]


Part: TypeAlias = Text | Weighted | Scheduled | Alternating
Parts: TypeAlias = tuple[Part, ...]


@dataclass(frozen=True)
class Clause:
    """One of the texts that `AND` joins; its weight stands behind the word, `AND:0.5`."""

    parts: Parts
    weight: float = 1.0


Prompt: TypeAlias = tuple[Clause, ...]
"""One clause or more."""


def escape(text: str) -> str:
    """Text that the parser reads as exactly this text."""
    marked = re.sub(r"[\\()\[\]|:]", r"\\\g<0>", text)
    return re.sub(r"(?<!\S)AND(?=[\s\\]|$)", r"\\AND", marked)


def unparse(prompt: Prompt) -> str:
    """The text of a tree; parsed again it gives the same tree."""
    first, *others = prompt
    joined = [f" AND:{number(clause.weight)} {written(clause.parts)}" for clause in others]
    return written(first.parts) + "".join(joined)


def written(parts: Parts) -> str:
    """The text of a row of parts."""
    return "".join(map(_written, parts))


def _written(part: Part) -> str:
    match part:
        case Text(value):
            return escape(value)
        case Weighted(parts, weight):
            return f"({written(parts)}:{number(weight)})"
        case Scheduled(before, after, at):
            return f"[{written(before)}:{written(after)}:{number(at)}]"
        case Alternating(options):
            return f"[{'|'.join(map(written, options))}]"


def number(value: float) -> str:
    """The shortest decimal that reads back as this value; no exponent."""
    return format(Decimal(repr(value)), "f")
