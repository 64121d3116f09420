"""What several test files share."""

from __future__ import annotations

import signal
from pathlib import Path

import hypothesis
import optuna
import pytest
import torch

# The same examples in every run, so that what passes once passes again; --hypothesis-profile=explore draws new ones.
# No deadlines: how long an example takes depends on how busy the machine is.
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.load_profile("same")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def quiet_optuna():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(autouse=True, scope="session")
def two_threads():
    # Runs beside each other (pytest-xdist) otherwise starve on a small machine.
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True, scope="session")
def interrupts_raise():
    """Ctrl-C raises, here and in processes that tests start, also where a shell started the tests with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.exists():
        pytest.skip(f"the reference data is not there ({SHARED_DATA.name} folder beside the checkout)")
    return SHARED_DATA


def pytest_addoption(parser):
    parser.addoption(
        "--require-services",
        action="store_true",
        help="fail, instead of skipping, where a marked test lacks PostgreSQL, Redis, Chromium or a package",
    )


MARKS = ("postgres", "redis", "browser", "crash")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    # What this Optuna cannot do at all is said by a condition on the test itself, and stays skipped.
    conditional = item.get_closest_marker("skipif") is not None
    marked = any(item.get_closest_marker(mark) for mark in MARKS)
    if report.skipped and marked and not conditional and item.config.getoption("--require-services"):
        report.outcome = "failed"
        report.longrepr = f"skipped, where nothing may be (--require-services): {call.excinfo.value}"
    return report


@pytest.fixture(scope="session")
def missing():
    """Skip a marked test for a reason; with ``--require-services`` that is a failure."""
    return pytest.skip
