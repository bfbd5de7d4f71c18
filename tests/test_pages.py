"""Freed memory: kept for the next step, or given back. Each in a process of its own."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
fresh = faults()
"""


def numbers(code: str) -> list[int]:
    """What a program prints."""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return list(map(int, told.stdout.split()))


def test_kept_pages_are_not_asked_for_again() -> None:
    code = f"""{FAULTS}
from pixsigma.pages import keep_pages
print(int(keep_pages()), fresh, faults(), faults())
"""
    heard, fresh, _, kept = numbers(code)
    if not heard:
        pytest.skip("this C library cannot be told")
    assert kept < fresh / 10


def test_pages_are_kept_for_a_while_by_whoever_leaves_last() -> None:
    code = f"""{FAULTS}
from pixsigma.pages import give_back_pages, keep_pages, kept_pages
with kept_pages():
    with kept_pages():
        faults()
    inside = faults()
give_back_pages()
after = faults()
heard = keep_pages()
with kept_pages():
    faults()
print(int(heard), fresh, inside, after, faults())
"""
    heard, fresh, inside, after, still = numbers(code)
    if not heard:
        pytest.skip("this C library cannot be told")
    assert inside < fresh / 40  # a quarter of one of its ten tensors
    assert after > fresh / 10  # fewer than at first where the system takes huge pages
    assert still < fresh / 40


def test_what_lies_between_things_in_use_is_given_back() -> None:
    code = """
from pathlib import Path
from pixsigma.pages import give_back_pages
def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20
blocks = [bytearray(2**16) for _ in range(3200)]
last = blocks[-1]
del blocks
before = held()
print(int(give_back_pages()), before, held())
"""
    given, before, after = numbers(code)
    if not given:
        pytest.skip("this C library keeps what it likes")
    assert after < before - 100
