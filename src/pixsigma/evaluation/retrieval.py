"""Concept retrieval: does a drawing look most like the thing that it was asked to show?

A thing's likeness is that of its nearest real picture, over all styles.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pixsigma.errors import InputError
from pixsigma.evaluation.features import Array


@dataclass(frozen=True, kw_only=True)
class References:
    """Real pictures: unit features (n, D), with the thing and the style of each."""

    features: Array
    things: tuple[str, ...]
    styles: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Every thing once, sorted."""
        return sorted(set(self.things))

    def must_show(self, things: Iterable[str]) -> None:
        """Raise InputError for a thing that no picture shows."""
        if strange := sorted(set(things) - set(self.things)):
            raise InputError(f"the pictures to compare with show no {', '.join(strange)}")

    def where(self, kept: Sequence[bool]) -> "References":
        """The references that are kept."""
        rows = [i for i, keep in enumerate(kept) if keep]
        return References(
            features=self.features[rows],
            things=tuple(self.things[i] for i in rows),
            styles=tuple(self.styles[i] for i in rows),
        )

    def of_styles(self, styles: Sequence[str]) -> "References":
        """The references drawn in `styles`."""
        return self.where([style in styles for style in self.styles])


def likeness(queries: Array, references: References) -> Array:
    """Cosine of each query (n, D) and the nearest picture of each thing, (n, things)."""
    cosines = queries @ references.features.T
    things = np.array(references.things)
    columns = [cosines[:, things == name].max(axis=1) for name in references.names]
    return np.stack(columns, axis=1)


def rank(queries: Array, asked: Sequence[str], references: References) -> Array:
    """Place of the asked thing among all things for each query, 0 being the first.

    Raises InputError for a thing that has no reference.
    """
    references.must_show(asked)
    names = references.names
    nearest = likeness(queries, references)
    own = nearest[np.arange(len(asked)), [names.index(thing) for thing in asked]]
    better: Array = (nearest > own[:, None]).sum(axis=1)
    return better


def shares(ranks: Array) -> dict[str, float]:
    """Share of queries whose thing comes first, and in the first five."""
    return {"top1": float((ranks < 1).mean()), "top5": float((ranks < 5).mean())}
