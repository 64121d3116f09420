"""CandidateScorer, and how the sampler calls whatever scores its candidates."""

from __future__ import annotations

import pickle

import optuna
import pytest

import optuna_aznas as az
from optuna_aznas.sampler.candidates import CandidateScores, CheckedScorer

NAMES = ("size", "evenness")


class Evaluator:
    """Scores a list of widths; what ``map`` was called with is kept."""

    def __init__(self):
        self.maps = []

    def __call__(self, widths):
        if sum(widths) % 7 == 0:
            raise az.ProxyEvaluationError("no blocks found")
        return {"size": float(sum(widths)), "evenness": float(-max(widths))}

    def map(self, builders, *, n_workers=None):
        builders = list(builders)
        self.maps.append((len(builders), n_workers))
        for builder in builders:
            try:
                yield self(builder())
            except Exception as error:
                yield error


def build(trial):
    return [trial.suggest_int(name, 1, 30) for name in "abc"]


def objective(trial):
    widths = build(trial)
    az.record(trial, {"size": float(sum(widths)), "evenness": float(-max(widths))})
    return float(sum(widths))


def run(scorer, n_trials, **arguments):
    sampler = az.AZNASSampler(seed=0, candidate_scorer=scorer, n_candidates=20, **arguments)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=n_trials)
    return study


def test_one_and_many():
    evaluator = Evaluator()
    scorer = az.CandidateScorer(build, evaluator, n_workers=3)
    assert scorer({"a": 1, "b": 2, "c": 3}) == {"size": 6.0, "evenness": -3.0}
    with pytest.raises(az.ProxyEvaluationError):
        scorer({"a": 10, "b": 2, "c": 2})
    with pytest.raises(ValueError, match="'c'"):
        scorer({"a": 10, "b": 2})
    many = scorer.score_many([{"a": 1, "b": 2, "c": 3}, {"a": 10, "b": 2, "c": 2}, {"a": 10}, {"a": 1, "b": 1, "c": 1}])
    assert (many[0], many[3]) == ({"size": 6.0, "evenness": -3.0}, {"size": 3.0, "evenness": -1.0})
    assert [type(error) for error in many[1:3]] == [az.ProxyEvaluationError, ValueError]
    assert evaluator.maps == [(4, 3)]


def test_the_study_is_the_same_one_by_one_and_all_at_once():
    class OneByOne:
        def __init__(self):
            self._scorer = az.CandidateScorer(build, Evaluator())
            self.search_space = self._scorer.search_space

        def __call__(self, params):
            return self._scorer(params)

    with pytest.warns(UserWarning, match="candidate_scorer failed for .*ProxyEvaluationError: no blocks found"):
        one_by_one = run(OneByOne(), 30)
    evaluator = Evaluator()
    with pytest.warns(
        UserWarning, match="candidate_scorer failed for .*ProxyEvaluationError: no blocks found"
    ) as warned:
        at_once = run(az.CandidateScorer(build, evaluator), 30)
    assert len(warned) == 1
    assert [trial.params for trial in at_once.trials] == [trial.params for trial in one_by_one.trials]
    sizes = [size for size, _ in evaluator.maps]
    assert max(sizes) == 20
    assert len(sizes) < 29 * 5  # one call for all, and a few for those in place of what failed


def test_a_bulk_call_that_fails_leaves_the_candidates_out():
    class Broken:
        def __call__(self, params):
            raise AssertionError("not called")

        def score_many(self, params):
            raise RuntimeError("a worker process could not start")

    with pytest.warns(UserWarning, match="RuntimeError: a worker process could not start") as warned:
        study = run(Broken(), 10)
    assert len(study.trials) == 10
    assert len(warned) == 1


def test_each_outcome_is_checked():
    class Odd:
        def score_many(self, params):
            return [{"size": 1, "evenness": 2}, {"size": 1}, "text", KeyError("x"), {"size": "many", "evenness": 0}]

    with pytest.warns(UserWarning, match="candidate_scorer (failed|returned)") as warned:
        scores = CheckedScorer(Odd())([{"a": i} for i in range(5)], NAMES)
    assert scores == [CandidateScores({"size": 1.0, "evenness": 2.0}, {}), None, None, None, None]
    assert len(warned) == 4


def test_it_pickles():
    scorer = pickle.loads(pickle.dumps(az.CandidateScorer(build, Evaluator())))
    assert scorer({"a": 1, "b": 2, "c": 3}) == {"size": 6.0, "evenness": -3.0}
    sampler = az.AZNASSampler(candidate_scorer=scorer)
    assert isinstance(pickle.loads(pickle.dumps(sampler)), az.AZNASSampler)


def test_arguments():
    with pytest.raises(ValueError, match="build must be callable; got None"):
        az.CandidateScorer(None, Evaluator())
    with pytest.raises(ValueError, match="evaluator must be a ProxyEvaluator; got 3"):
        az.CandidateScorer(build, 3)
    with pytest.raises(ValueError, match="evaluator must be a ProxyEvaluator"):
        az.CandidateScorer(build, Evaluator().__call__)
    with pytest.raises(ValueError, match="n_workers must be an integer of at least 0"):
        az.CandidateScorer(build, Evaluator(), n_workers=1.5)


def test_the_first_trials_of_a_study_are_chosen_by_their_scores(recwarn):
    """No trial has recorded: what a network has is found by building some."""
    evaluator = Evaluator()
    study = optuna.create_study(direction="maximize")
    chosen = []
    for _ in range(4):  # workers with one seed, none of which has recorded
        scorer = az.CandidateScorer(build, evaluator)
        sampler = az.AZNASSampler(seed=0, candidate_scorer=scorer, n_candidates=200)
        worker = optuna.load_study(study_name=study.study_name, storage=study._storage, sampler=sampler)
        trial = worker.ask()
        assert trial.relative_params.keys() == set("abc")
        chosen.append(build(trial))
    assert sum(n for n, _ in evaluator.maps) >= 4 * 200
    assert len(set(map(tuple, chosen))) == 4
    assert all(sum(widths) > 46 for widths in chosen)  # the mean of random ones
    assert all("candidate_scorer failed" in str(warning.message) for warning in recwarn)


def test_a_scorer_whose_networks_cannot_be_built_leaves_the_first_trial_to_chance():
    built = []

    def broken(trial):
        built.append(trial.suggest_int("a", 1, 30))
        raise RuntimeError("no such layer")

    sampler = az.AZNASSampler(seed=0, candidate_scorer=az.CandidateScorer(broken, Evaluator()))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    counts = []
    for _ in range(2):
        trial = study.ask()
        assert trial.relative_params == {}
        assert len(build(trial)) == 3
        counts.append(len(built))
    assert counts[0] == counts[1] > 0  # tried once, not for each trial


def test_where_nothing_is_trained_the_scorer_is_not_asked():
    evaluator = Evaluator()
    sampler = az.AZNASSampler(seed=0, candidate_scorer=az.CandidateScorer(build, evaluator))
    trial = optuna.create_study(directions=["maximize"] * 2, sampler=sampler).ask()
    assert trial.relative_params == {}
    assert not evaluator.maps
