"""What several test files share."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
import torch

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def quiet_optuna():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(autouse=True, scope="session")
def two_threads():
    # Runs beside each other (pytest-xdist) otherwise starve on a small machine.
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.exists():
        pytest.skip(f"the reference data is not there ({SHARED_DATA.name} folder beside the checkout)")
    return SHARED_DATA


def pytest_addoption(parser):
    parser.addoption(
        "--require-services",
        action="store_true",
        help="fail, instead of skipping, where PostgreSQL, Redis or Chromium is missing",
    )


@pytest.fixture(scope="session")
def missing(request):
    """Skip for a reason, or fail where everything is required (in CI)."""

    def skip_or_fail(reason: str):
        if request.config.getoption("--require-services"):
            pytest.fail(reason)
        pytest.skip(reason)

    return skip_or_fail
