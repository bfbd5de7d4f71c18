"""Memory of one step kept for the next: on processors fresh pages cost a tenth of a step."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1


def keep_pages() -> bool:
    """Tell glibc's allocator not to give freed memory back to the system; whether it heard.

    A step frees what it computed and asks for as much again, tensor by tensor. As delivered, large
    ones come from the system each time, page by page and filled with zeros. The peak of the process
    stays; what it holds between two steps grows to it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        tell = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return False
    return bool(tell(_MMAP_THRESHOLD, 2**30)) and bool(tell(_TRIM_THRESHOLD, _LARGEST))
