"""Functions on many items at once, in processes of their own, answers in the order of the items."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from pixsigma.errors import OutOfMemoryError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_AHEAD = 8  # items in flight for each worker: enough to hide a slow picture, bounded in memory


class Workers:
    """A pool of processes; with none the work is done here."""

    def __init__(self, num: int) -> None:
        self.num = num
        # A forked child inherits the locks of torch's threads as they are, so it may hang.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(num, context, _begin) if num else None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
        """Answers in order, a bounded number of items ahead.

        Raises what `function` raises, and OutOfMemoryError where a worker was killed.
        """
        if self._pool is None:
            yield from map(function, items)
            return
        flying: deque[Future[Any]] = deque()
        try:
            for item in items:
                flying.append(self._pool.submit(function, item))
                if len(flying) >= _AHEAD * self.num:
                    yield flying.popleft().result()
            while flying:
                yield flying.popleft().result()
        except BrokenProcessPool as error:
            raise OutOfMemoryError(
                f"one of {self.num} worker processes was killed, for lack of memory most likely; "
                "run again with fewer --workers: it goes on where it stopped"
            ) from error


def _begin() -> None:
    # Ctrl-C reaches the whole group of processes; only the first one says that it stops
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this a worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
