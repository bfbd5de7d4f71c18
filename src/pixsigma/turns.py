"""Work that waits in the middle: a function that asks, stands still, and goes on when answered."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

T = TypeVar("T")

Answer: TypeAlias = Callable[[], Any]
"""Called by the work that asked: it returns the answer, or raises why there is none."""


@dataclass(frozen=True, eq=False)
class Asked:
    """The work stands still until it is resumed with an answer to this."""

    question: Any


@dataclass(frozen=True, eq=False)
class Told(Generic[T]):
    """The work yielded this."""

    value: T


@dataclass(frozen=True)
class Ended:
    """The work is done."""


class Turn(Generic[T]):
    """A generator that may ask its owner from any depth of calls, where `yield` cannot reach.

    A greenlet: all turns run in the thread of their owner, one at a time and in the owner's order,
    so nothing that they share needs a lock, and networks keep their one team of threads.
    """

    def __init__(self, work: "Callable[[Callable[[Any], Any]], Iterator[T]]") -> None:
        self._work = work
        self._greenlet = greenlet(self._run)

    # For the owner

    def resume(self, answer: Answer | None = None) -> "Asked | Told[T] | Ended":
        """Run until the next question, value or end; raises what the work raises."""
        self._greenlet.parent = getcurrent()
        report: Asked | Told[T] | Ended = self._greenlet.switch(answer)
        return report

    def stop(self) -> None:
        """Unwind the work where it stands."""
        if self._greenlet:
            self._greenlet.parent = getcurrent()
            self._greenlet.throw(GreenletExit)

    # For the work, which is given `ask`

    def ask(self, question: Any) -> Any:
        """The owner's answer, or the error that it has for one."""
        return self._greenlet.parent.switch(Asked(question))()

    def _run(self, _: Any) -> Ended:
        for value in self._work(self.ask):
            self._greenlet.parent.switch(Told(value))
        return Ended()
