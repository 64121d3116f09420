"""A detector of a YOLO-like specification is scored, diagnosed and searched."""

from __future__ import annotations

import math

import pytest

import optuna_aznas as az
from tests.integrations.detector import SPECIFICATION, Detector
from tests.proxies.test_contracts import assert_same, snapshot

evaluator = az.ProxyEvaluator(input_shape=(3, 64, 64), batch_size=4)


@pytest.mark.parametrize("training", [True, False])
def test_a_detector_is_scored_and_left_as_it_was(training):
    """In training it returns a list of maps, otherwise a tuple of a tensor and a list."""
    detector = Detector().train(training)
    before = snapshot(detector)
    scores = evaluator(detector)
    assert all(math.isfinite(value) for value in scores.to_dict().values())
    assert_same(snapshot(detector), before)


def test_its_backbone_and_neck_are_among_the_blocks():
    blocks = [block.name for block in az.diagnose(Detector(), evaluator).blocks]
    rows = {int(name.split(".")[1]) for name in blocks}
    assert {row for row, (*_, kind, _) in enumerate(SPECIFICATION) if kind == "residuals"} <= rows


def test_more_channels_and_layers_are_more_operations():
    small, wide, deep = (evaluator(Detector(**factors)).complexity for factors in ({}, {"width": 2}, {"depth": 2}))
    assert small < deep < wide


def test_a_search_over_depth_width_and_the_stages():
    def objective(trial):
        rows = list(SPECIFICATION)
        for number, (source, _, kind, size) in enumerate(SPECIFICATION):
            if kind == "residuals":
                rows[number] = (source, trial.suggest_int(f"repeats{number}", 1, 3), kind, size)
        return evaluator(Detector(rows, width=trial.suggest_float("width", 0.25, 1.0, step=0.25)))

    study = az.create_study(sampler=az.AZNASSampler(n_startup_trials=4, seed=0))
    study.optimize(objective, n_trials=8)
    assert az.rank_scores(study).keys() == set(range(8))
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 8
    best = az.best_trials(study)[0]
    assert best.number == max(az.rank_scores(study), key=az.rank_scores(study).get)
