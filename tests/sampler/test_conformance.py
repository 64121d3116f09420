"""Optuna's own conformance tests for samplers, where the installed Optuna ships them (4.9 and later)."""

from __future__ import annotations

import pytest

from optuna_aznas import AZNASSampler

cases = pytest.importorskip(
    "optuna.testing.pytest_samplers", reason="this Optuna does not ship its conformance tests for samplers"
)


@pytest.mark.filterwarnings("ignore:No finished trial of study")  # these studies have no proxy scores
class _AZNAS:
    @pytest.fixture
    def sampler(self):
        return lambda: AZNASSampler(seed=0, n_startup_trials=1, population_size=3)


class TestBasic(_AZNAS, cases.BasicSamplerTestCase): ...


class TestRelative(_AZNAS, cases.RelativeSamplerTestCase): ...


class TestMultiObjective(_AZNAS, cases.MultiObjectiveSamplerTestCase): ...
