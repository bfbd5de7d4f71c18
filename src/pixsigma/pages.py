"""What glibc's allocator does with memory that was freed: kept for the next step, or given back."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1
_AS_FOUND = 2**25
"""The largest threshold that glibc takes by itself, as soon as so large a tensor was freed."""

_lock = Lock()
_keepers = 0


def keep_pages() -> bool:
    """Tell it not to give freed memory back to the system; whether it heard.

    A step frees what it computed and asks for as much again, tensor by tensor. As delivered, large
    ones come from the system each time, page by page and filled with zeros. The peak of the process
    stays; what it holds between two steps grows to it.
    """
    global _keepers  # it is the process whose allocator is told
    with _lock:
        _keepers += 1
        return _tell(2**30, _LARGEST)


@contextmanager
def kept_pages() -> Iterator[None]:
    """The same for a while, then as before; what is free by then stays until `give_back_pages`."""
    global _keepers
    keep_pages()
    try:
        yield
    finally:
        with _lock:
            _keepers -= 1
            if not _keepers:
                _tell(_AS_FOUND, 2 * _AS_FOUND)


def give_back_pages() -> bool:
    """Give freed memory back to the system, also from between what is in use; whether any was.

    By itself only the end of the heap goes back: a process that lives long and asks for tensors of
    ever other sizes would hold more and more.
    """
    trim = _glibc("malloc_trim")
    return trim is not None and bool(trim(0))


def _tell(from_system: int, trimmed: int) -> bool:
    """From how many bytes on a tensor gets pages of its own, and the heap's free end goes back."""
    tell = _glibc("mallopt")
    return (
        tell is not None
        and bool(tell(_MMAP_THRESHOLD, from_system))
        and bool(tell(_TRIM_THRESHOLD, trimmed))
    )


def _glibc(name: str) -> Any:
    """A function of glibc, None where the C library is another."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None
