"""The coming step's batches, read while the present step computes."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """What `read` gives for steps that are asked for in order, each read during the one before.

    `read` must depend on its step alone. An error of it is raised where its step is asked for.
    """

    def __init__(self, read: Callable[[int], T]) -> None:
        self.read = read
        self.waited = 0.0
        """Seconds in which a step was asked for and not there."""
        self._thread = ThreadPoolExecutor(1, "pixsigma-reading")
        self._coming: tuple[int, Future[T]] | None = None

    def at(self, step: int, last: bool) -> T:
        """The batches of a step; after the `last` nothing is read."""
        start = time.perf_counter()
        if self._coming is not None and self._coming[0] == step:
            found = self._coming[1].result()
        else:
            found = self.read(step)
        self._coming = None if last else (step + 1, self._thread.submit(self.read, step + 1))
        self.waited += time.perf_counter() - start
        return found
