"""A study opened in a real optuna-dashboard, in a real browser."""

from __future__ import annotations

import math

import optuna
import pytest

import optuna_aznas as az
from optuna_aznas.spaces.nas_bench_201 import OPERATIONS, PARAMETERS

pytestmark = pytest.mark.browser


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
    proxies = ["expressivity", "progressivity", "trainability", "complexity"]
    study = az.create_study(study_name="search", storage=storage, proxies=proxies, seed=0)
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
