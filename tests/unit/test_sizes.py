"""Bytes as text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from legacy_cuda import sizes

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": sizes.MIB, "GiB": sizes.GIB}


@given(st.integers(0, 1 << 50))
def test_a_readable_size_is_right_to_half_of_its_last_digit(size: int) -> None:
    number, unit = sizes.readable(size).split()
    step = 0.1 if unit == "GiB" else 1.0
    assert abs(float(number) * UNITS[unit] - size) <= 0.5001 * step * UNITS[unit]
    assert unit == "GiB" or float(number) <= 1024


def test_columns_have_numbers_alone() -> None:
    assert sizes.mib(5 * sizes.MIB + sizes.MIB // 4) == "5"
