"""aggregate's floor against the formula."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optuna_aznas.aggregation import aggregate


@given(st.permutations(range(12)), st.permutations(range(12)), st.floats(0.0, 0.99))
def test_no_proxy_contributes_less_than_the_floors_logarithm(first, second, floor):
    """Without ties the rank of the value k is k + 1."""
    expected = [sum(math.log(max((k + 1) / 12, floor)) for k in pair) for pair in zip(first, second, strict=True)]
    table = [[float(a), float(b)] for a, b in zip(first, second, strict=True)]
    assert aggregate(table, floor=floor) == pytest.approx(expected, abs=1e-9)
