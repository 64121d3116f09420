"""Scores that cannot be compared do not pass in silence: fingerprints of evaluators, and how blocks were found."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings

import optuna
import pytest
import torch
from torch import nn

import optuna_aznas as az
from optuna_aznas.proxies.settings import SCORING
from optuna_aznas.study.attributes import SCORES_KEY
from optuna_aznas.study.history import StudyHistory
from optuna_aznas.study.scoring import EVALUATOR_KEY, SCORING_KEY, Scoring

PROXIES = ("expressivity", "complexity")


def unit(c_in, c_out):
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())


def network(width=4):
    return nn.Sequential(unit(3, width), unit(width, width))


def evaluator(**arguments):
    return az.ProxyEvaluator(
        **{"input_shape": (3, 8, 8), "batch_size": 2, "proxies": PROXIES, "device": "cpu"} | arguments
    )


def scores_by(of, value, source="found in the tree of modules"):
    """Proxy scores as an evaluator would have made them, without a network."""
    return az.ProxyScores([value, value], names=of.proxies, block_source=source, settings=of.settings)


def blocks_by_hand(name, module):
    return name in ("0", "1")


CHANGES = {
    "input_shape": (3, 16, 16),
    "batch_size": 4,
    "seed": 1,
    "init": "kaiming",
    "jacobian": "moment",
    "repeats": 2,
    "blocks": "*.0",
    "proxies": PROXIES[::-1],
}


def test_every_setting_that_changes_scores_is_in_the_fingerprint():
    fingerprints = [evaluator(**{name: value}).fingerprint for name, value in CHANGES.items()]
    assert len({evaluator().fingerprint, *fingerprints}) == 1 + len(CHANGES)
    assert evaluator(blocks=blocks_by_hand).fingerprint not in {evaluator().fingerprint, *fingerprints}
    arguments = set(evaluator().replace().__dict__) - {"device"}
    assert set(evaluator().settings) == arguments | {"scoring"}


def test_inputs_count_by_shape_and_type():
    def of(*tensors):
        return evaluator(input_shape=None, inputs=tensors).fingerprint

    assert of(torch.zeros(2, 3, 8, 8)) == of(torch.ones(2, 3, 8, 8))
    others = [
        of(torch.zeros(4, 3, 8, 8)),
        of(torch.zeros(2, 3, 8, 8).double()),
        of(torch.zeros(2, 3, 8, 8), torch.zeros(2, 1)),
        evaluator().fingerprint,
    ]
    assert len({of(torch.zeros(2, 3, 8, 8)), *others}) == 5


def test_a_fingerprint_is_the_same_in_every_process():
    code = (
        "import optuna_aznas as az; print(az.ProxyEvaluator((3, 8, 8), batch_size=2, "
        f"proxies={PROXIES!r}, device='cpu', blocks=['0', '1']).fingerprint)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert printed == evaluator(blocks=["0", "1"]).fingerprint
    assert len(printed) == 12


def test_scores_carry_it():
    of = evaluator()
    for scores in (of(network()), pickle.loads(pickle.dumps(of(network()))), az.diagnose(network(), of).scores):
        assert scores.fingerprint == of.fingerprint
        assert scores.settings == of.settings
        assert scores.settings["scoring"] == SCORING
    assert az.ProxyScores([1.0], names=["own"]).fingerprint == ""


def test_record_stores_how_scores_were_made():
    study = optuna.create_study()
    trial = study.ask()
    scores = evaluator()(network())
    az.record(trial, scores)
    study.tell(trial, 1.0)
    stored = Scoring.read(study.trials[0].user_attrs[SCORING_KEY])
    assert stored == Scoring(scores.fingerprint, scores.settings, scores.block_source, 2)
    trial = study.ask()
    az.record(trial, {"expressivity": 1.0, "complexity": 1.0})
    study.tell(trial, 1.0)
    assert SCORING_KEY not in study.trials[1].user_attrs
    assert list(az.rank_scores(study)) == [0, 1]  # scores that do not say how they were made are taken to compare


def recorded(*evaluators):
    study = optuna.create_study(direction="maximize")
    for number, of in enumerate(evaluators):
        trial = study.ask()
        trial.suggest_int("width", 1, 9)
        az.record(trial, scores_by(of, float(number)))
        study.tell(trial, float(number))
    return study


@pytest.mark.parametrize("name", CHANGES)
def test_trials_of_other_settings_are_left_out_with_one_warning(name):
    one, other = evaluator(), evaluator(**{name: CHANGES[name]})
    study = recorded(one, other, one, other)
    with pytest.warns(UserWarning, match=rf"Trial 1 was scored otherwise .*{name}=.* instead of ") as caught:
        assert sorted(az.rank_scores(study)) == [0, 2]
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="left out of the ranking"):
        assert [trial.number for trial in az.best_trials(study)] == [2, 0]


def test_a_history_takes_the_settings_of_the_first_trial_whichever_is_read_first():
    one, other = evaluator(), evaluator(seed=1)
    study = optuna.create_study(direction="maximize")
    trials = [study.ask() for _ in range(3)]
    for trial, of in zip(trials, (one, other, one), strict=True):
        az.record(trial, scores_by(of, 1.0))
    history = StudyHistory()
    for trial, ranked in ((trials[1], [1]), (trials[0], [0]), (trials[2], [0, 2])):
        study.tell(trial, 1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            history.update(study)
            assert [t.number for t in history.trials] == ranked
            fresh = StudyHistory.of(study)
            assert [t.number for t in fresh.trials] == ranked
            assert (fresh.proxy_scores == history.proxy_scores).all()
        assert fresh.unscored == history.unscored


def test_the_sampler_warns_once_and_goes_on():
    study = recorded(evaluator(), *[evaluator(seed=1)] * 3)
    study.sampler = az.AZNASSampler(seed=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            trial = study.ask()
            trial.suggest_int("width", 1, 9)
            az.record(trial, scores_by(evaluator(seed=1), 1.0))
            study.tell(trial, 1.0)
    assert len([w for w in caught if "otherwise" in str(w.message)]) == 1


def test_the_pruner_keeps_what_it_cannot_compare():
    study = recorded(*[evaluator()] * 30)
    study.pruner = az.AZNASPruner(n_startup_trials=10)
    for of, pruned in ((evaluator(), True), (evaluator(seed=1), False)):
        trial = study.ask()
        az.record(trial, scores_by(of, -1.0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert trial.should_prune() is pruned


@pytest.mark.parametrize("broken", [7, {}, {"fingerprint": "ab", "settings": 3}, {"fingerprint": 3, "settings": {}}])
def test_what_cannot_be_read_is_taken_to_compare(broken):
    study = recorded(evaluator())
    trial = study.ask()
    trial.set_user_attr(SCORING_KEY, broken)
    trial.set_user_attr(SCORES_KEY, {"expressivity": 1.0, "complexity": 2.0})
    study.tell(trial, 0.0)
    study.set_user_attr(EVALUATOR_KEY, broken)
    assert sorted(az.rank_scores(study)) == [0, 1]


def test_a_study_of_returned_scores_knows_its_evaluator(tmp_path):
    of, url = evaluator(), f"sqlite:///{tmp_path}/study.db"
    study = az.create_study(study_name="s", storage=url, evaluator=of)
    assert study.metric_names == list(PROXIES)
    study.optimize(lambda trial: of(network(trial.suggest_int("width", 2, 8))), n_trials=2)
    assert az.create_study(study_name="s", storage=url, evaluator=evaluator(), load_if_exists=True).trials[1].values
    for name, value in CHANGES.items():
        message = "metric names" if name == "proxies" else rf"scored otherwise.*{name}=.*instead of"
        with pytest.raises(ValueError, match=message):
            az.create_study(study_name="s", storage=url, evaluator=evaluator(**{name: value}), load_if_exists=True)
    assert study.user_attrs[EVALUATOR_KEY]["fingerprint"] == of.fingerprint


def test_another_evaluator_is_refused_where_only_trials_say_how_they_were_scored():
    storage = optuna.storages.InMemoryStorage()
    study = az.create_study(study_name="s", storage=storage, proxies=PROXIES)
    trial = study.ask()
    az.record(trial, scores_by(evaluator(), 1.0))
    study.tell(trial, [1.0, 1.0])
    with pytest.raises(ValueError, match="seed=1 instead of 0"):
        az.create_study(study_name="s", storage=storage, evaluator=evaluator(seed=1), load_if_exists=True)
    assert EVALUATOR_KEY not in study.user_attrs


def test_a_study_that_was_filled_later_knows_its_evaluator():
    def build(trial):
        return network(trial.suggest_int("width", 2, 4))

    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(study_name="s", storage=storage)
    study.optimize(lambda trial: float(trial.suggest_int("width", 2, 4)), n_trials=2)
    arguments = {"n_workers": 1, "show_progress_bar": False}
    assert az.backfill(study, build, evaluator(), **arguments) == 2
    study.optimize(lambda trial: float(trial.suggest_int("width", 2, 4)), n_trials=1)
    with pytest.raises(ValueError, match="seed=1 instead of 0"):
        az.backfill(study, build, evaluator(seed=1), **arguments)
    trial = study.ask()
    az.record(trial, scores_by(evaluator(seed=1), 1.0))
    study.tell(trial, 1.0)
    with pytest.warns(UserWarning, match="Trial 3 was scored otherwise"):
        assert sorted(az.rank_scores(study)) == [0, 1]


def test_proxies_beside_an_evaluator():
    assert az.create_study(evaluator=evaluator(), proxies=PROXIES).metric_names == list(PROXIES)
    with pytest.raises(ValueError, match="proxies must be those of evaluator"):
        az.create_study(evaluator=evaluator(), proxies=PROXIES[::-1])


TREE, RUN = "found in the tree of modules", "found by running the model"


def test_a_study_that_mixes_ways_of_finding_blocks_warns_once():
    of = evaluator()
    study = optuna.create_study(direction="maximize")
    history = StudyHistory()
    for number, source in enumerate([TREE, TREE, RUN, TREE, RUN]):
        trial = study.ask()
        az.record(trial, scores_by(of, float(number), source))
        study.tell(trial, 1.0)
        if number == 2:
            with pytest.warns(UserWarning, match=rf"{TREE} \(trials 0, 1\); {RUN} \(trial 2\).*blocks=") as caught:
                history.update(study)
            assert len(caught) == 1
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                history.update(study)
    assert len(history) == 5  # they are ranked all the same


def test_one_way_of_finding_blocks_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(az.rank_scores(recorded(*[evaluator()] * 20))) == 20
