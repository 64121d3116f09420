"""A study opened in a real optuna-dashboard, in a real browser."""

from __future__ import annotations

import importlib.util
import math
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import optuna
import pytest

import optuna_aznas as az
from optuna_aznas.spaces.nas_bench_201 import OPERATIONS, PARAMETERS

pytestmark = pytest.mark.browser


@pytest.fixture
def page(missing):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        missing("Chromium is not installed")
    if importlib.util.find_spec("playwright") is None:
        missing("the package playwright is not installed (extra 'browser')")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.errors = []
        page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        yield page
        browser.close()


@pytest.fixture
def dashboard(missing):
    """Start optuna-dashboard on a storage URL; returns its address."""
    if importlib.util.find_spec("optuna_dashboard") is None:
        missing("optuna-dashboard is not installed (extra 'dashboard')")
    servers = []

    def start(storage):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        code = "from optuna_dashboard._cli import main; main()"
        command = [sys.executable, "-W", "ignore", "-c", code, storage, "--host", "127.0.0.1", "--port", str(port)]
        servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        address = f"http://127.0.0.1:{port}"
        for _ in range(150):
            try:
                urllib.request.urlopen(address, timeout=1).close()
                return address
            except OSError:
                time.sleep(0.2)
        raise TimeoutError("optuna-dashboard did not start")

    yield start
    for server in servers:
        server.terminate()
        server.wait(10)


def objective(trial):
    operations = [trial.suggest_categorical(name, OPERATIONS) for name in PARAMETERS]
    digits = [OPERATIONS.index(op) for op in operations]
    if trial.number % 10 == 3:
        raise optuna.TrialPruned
    if trial.number % 10 == 5:
        raise ArithmeticError
    dead = operations[-1] == "none"
    return -math.inf if dead else sum(digits), min(digits), -math.inf if dead else -abs(digits[0] - 2), max(digits)


def test_every_page_of_a_search_opens(page, dashboard, tmp_path):
    storage = f"sqlite:///{tmp_path}/nas.db"
    study = az.create_study(study_name="search", storage=storage, seed=0)
    study.optimize(objective, n_trials=60, catch=ArithmeticError)
    assert any(-math.inf in trial.values for trial in study.trials if trial.values)
    address = dashboard(storage)
    page.goto(f"{address}/dashboard")
    page.get_by_text("search").first.wait_for()
    for part in ("", "/analytics", "/trials", "/note"):
        page.goto(f"{address}/dashboard/studies/1{part}")
        page.get_by_text("search (id=1)").first.wait_for()
        page.wait_for_load_state("networkidle")
        assert page.errors == [], part
    page.goto(f"{address}/dashboard/studies/1")
    page.locator(".js-plotly-plot").nth(1).wait_for()  # Pareto front and history
    page.get_by_text("expressivity").first.wait_for()  # the objectives carry the proxies' names
    dead = next(trial.number for trial in study.trials if trial.values and -math.inf in trial.values)
    page.goto(f"{address}/dashboard/studies/1/trials?numbers={dead}")
    page.get_by_role("heading", name=f"Trial {dead} ").wait_for()
    page.get_by_text("-inf").first.wait_for()
    page.get_by_text("Pruned").first.wait_for()
    page.get_by_text("Fail").first.wait_for()
    assert page.errors == []
