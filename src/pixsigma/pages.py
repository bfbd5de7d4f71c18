"""What glibc's allocator does with memory that was freed: kept for the next step, or given back."""

import ctypes
import sys
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1


def keep_pages() -> bool:
    """Tell it not to give freed memory back to the system; whether it heard.

    A step frees what it computed and asks for as much again, tensor by tensor. As delivered, large
    ones come from the system each time, page by page and filled with zeros. The peak of the process
    stays; what it holds between two steps grows to it.
    """
    tell = _glibc("mallopt")
    return (
        tell is not None
        and bool(tell(_MMAP_THRESHOLD, 2**30))
        and bool(tell(_TRIM_THRESHOLD, _LARGEST))
    )


def give_back_pages() -> bool:
    """Give freed memory back to the system, also from between what is in use; whether any was.

    By itself only the end of the heap goes back: a process that lives long and asks for tensors of
    ever other sizes would hold more and more.
    """
    trim = _glibc("malloc_trim")
    return trim is not None and bool(trim(0))


def _glibc(name: str) -> Any:
    """A function of glibc, None where the C library is another."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None
