"""Numbers and paths as people and programs give them."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pixsigma.given import expanded, is_number, is_whole


@pytest.mark.parametrize("value", [1, 20, np.int64(3), np.uint8(1)])
def test_whole_numbers_are_pythons_and_numpys(value: object) -> None:
    assert is_whole(value)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, np.True_, "3", None, np.int64(0), math.nan])
def test_what_is_no_whole_number_above_0(value: object) -> None:
    assert not is_whole(value)


@pytest.mark.parametrize("value", [0, -1.5, np.float32(2), np.int8(-3), Fraction(1, 3)])
def test_numbers_are_finite(value: object) -> None:
    assert is_number(value)


@pytest.mark.parametrize(
    "value", [math.nan, -math.inf, np.float64("inf"), True, np.False_, "1", 1j]
)
def test_what_is_no_number(value: object) -> None:
    assert not is_number(value)


def test_the_home_of_nobody_is_a_name_like_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert expanded("~/here") == Path("/somewhere/here")
    assert expanded("~no-such-person/here") == Path("~no-such-person/here")
