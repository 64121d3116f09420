"""AZNASSampler in studies that train: candidates, the score callable, what is learned."""

from __future__ import annotations

import math
import pickle
import warnings
from decimal import Decimal, localcontext
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from scipy.integrate import quad
from scipy.stats import norm

import optuna_aznas as az
from optuna_aznas.aggregation import LearnedAggregation
from optuna_aznas.sampler.acquisition import log_augmentation, log_expected_improvement, maximise
from optuna_aznas.sampler.conditional import ConditionalParameters
from optuna_aznas.study.encoding import Encoder, encode_hyperparameters, trained_values

CHOICES = ("a", "b", "c", "d", "e")


def digits_of(params):
    return [CHOICES.index(params[f"x{i}"]) for i in range(6)]


def scores_of(params):
    """Two proxies that like every digit to be high."""
    digits = digits_of(params)
    return {"total": sum(digits), "least": min(digits) + 0.1 * digits[0]}


def accuracy_of(params):
    """The truth agrees with them in all digits but the last, which it likes to be low."""
    digits = digits_of(params)
    return sum(digits[:5]) - 3 * digits[5]


def objective(trial):
    params = {f"x{i}": trial.suggest_categorical(f"x{i}", CHOICES) for i in range(6)}
    az.record(trial, scores_of(params))
    return accuracy_of(params)


def run(sampler, n=40, direction="maximize", function=objective):
    study = optuna.create_study(direction=direction, sampler=sampler)
    study.optimize(function, n_trials=n)
    return study


def test_it_learns_where_the_proxies_are_wrong():
    best = {}
    for name, sampler in (
        ("score", lambda seed: az.AZNASSampler(seed=seed, candidate_scorer=scores_of, n_candidates=100)),
        ("no score", lambda seed: az.AZNASSampler(seed=seed, n_candidates=100)),
        ("random", lambda seed: optuna.samplers.RandomSampler(seed=seed)),
    ):
        best[name] = [run(sampler(seed), 35).best_value for seed in range(2)]
    assert min(best["score"]) >= 14  # of 20; the network that the aggregation likes best has 8
    assert np.mean(best["no score"]) > np.mean(best["random"])


def test_directions_mirror_each_other():
    up = run(az.AZNASSampler(seed=0, n_candidates=30), 20)
    down = run(az.AZNASSampler(seed=0, n_candidates=30), 20, "minimize", lambda trial: -objective(trial))
    assert [t.params for t in up.trials] == [t.params for t in down.trials]


def test_nothing_twice_and_the_same_seed_the_same_search():
    studies = [run(az.AZNASSampler(seed=seed, candidate_scorer=scores_of, n_candidates=20), 30) for seed in (0, 0, 1)]
    searches = [[tuple(sorted(t.params.items())) for t in study.trials] for study in studies]
    assert searches[0] == searches[1] != searches[2]
    assert len(set(searches[0])) == 30


def test_the_first_are_the_best_by_s_of_what_was_looked_at():
    """Before anything is learned, what is trained is already much better than random by the proxies."""
    study = run(az.AZNASSampler(seed=0, candidate_scorer=scores_of, n_startup_trainings=10), 10)
    totals = [scores_of(trial.params)["total"] for trial in study.trials[1:]]  # at random 12
    assert np.mean(totals) > 16


def test_a_killed_worker_goes_on():
    """A pickled sampler, or a new one, reads everything from the study."""
    sampler = az.AZNASSampler(seed=0, candidate_scorer=scores_of, n_candidates=20)
    study = run(sampler, 15)
    for successor in (pickle.loads(pickle.dumps(sampler)), az.AZNASSampler(seed=5, n_candidates=20)):
        study.sampler = successor
        study.optimize(objective, n_trials=10)
    assert len({tuple(t.params.values()) for t in study.trials}) == 35


def test_scores_are_asked_for_once():
    asked = []

    def score(params):
        asked.append(tuple(sorted(params.items())))
        return scores_of(params)

    run(az.AZNASSampler(seed=0, candidate_scorer=score, n_candidates=20), 20)
    assert len(asked) == len(set(asked))
    assert 10 * 20 <= len(asked) <= 19 * 20


def test_a_score_that_fails_now_and_then():
    def moody(params):
        if params["x0"] == "e":
            raise az.ProxyEvaluationError("no blocks found")
        return scores_of(params)

    with pytest.warns(
        UserWarning, match="candidate_scorer failed for .*ProxyEvaluationError: no blocks found"
    ) as warned:
        study = run(az.AZNASSampler(seed=0, candidate_scorer=moody, n_candidates=20), 25)
    assert len(warned) == 1
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert all(trial.params["x0"] != "e" for trial in study.trials[1:])


@pytest.mark.parametrize("score", [lambda params: 1 / 0, lambda params: {"other": 1.0}, lambda params: None])
def test_a_score_that_always_fails(score):
    with pytest.warns(UserWarning, match="candidate_scorer (failed|returned)") as warned:
        study = run(az.AZNASSampler(seed=0, candidate_scorer=score, n_candidates=5), 12)
    assert len(warned) == 1
    assert len({tuple(t.params.values()) for t in study.trials}) == 12


def test_an_interrupt_is_not_swallowed():
    def interrupted(params):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(az.AZNASSampler(seed=0, candidate_scorer=interrupted), 3)


def test_scores_that_are_not_finite_and_results_that_are_not():
    def odd(trial):
        value = objective(trial)
        if trial.number % 5 == 1:
            raise ValueError
        if trial.number % 5 == 2:
            trial.report(value, 3)
            raise optuna.TrialPruned
        return math.inf if trial.number == 8 else value

    def score(params):
        scores = scores_of(params)
        return scores | {"least": math.nan if params["x1"] == "a" else scores["least"]}

    study = optuna.create_study(
        direction="maximize", sampler=az.AZNASSampler(seed=0, candidate_scorer=score, n_candidates=20)
    )
    study.optimize(odd, n_trials=40, catch=ValueError)
    assert len({tuple(t.params.values()) for t in study.trials}) == 40
    importance = az.proxy_importance(study)
    assert sum(share.mean for share in importance.values()) == pytest.approx(1.0)


def test_accept_and_fixed_parameters():
    def accept(params):
        return params["x2"] != "e"

    sampler = az.AZNASSampler(seed=0, candidate_scorer=scores_of, candidate_filter=accept, n_candidates=20)
    study = run(sampler, 15)
    study.sampler = optuna.samplers.PartialFixedSampler({"x0": "b"}, sampler)
    study.optimize(objective, n_trials=10)
    study.enqueue_trial({"x1": "c"})
    study.sampler = sampler
    study.optimize(objective, n_trials=5)
    assert all(trial.params["x2"] != "e" for trial in study.trials[1:])
    assert all(trial.params["x0"] == "b" for trial in study.trials[15:25])
    assert study.trials[25].params["x1"] == "c"
    assert len({tuple(t.params.values()) for t in study.trials}) == 30


def test_two_workers_that_draw_the_same():
    study = run(az.AZNASSampler(seed=0, n_candidates=20), 12)
    proposed = []
    for _ in range(2):
        study.sampler = az.AZNASSampler(seed=7, n_candidates=20)
        proposed.append(study.ask().relative_params)
    assert proposed[0] != proposed[1]


@pytest.mark.parametrize("with_score", [True, False])
def test_a_conditional_space(with_score):
    """Any candidate can be built from what score is given; depth is learned to matter."""

    def build(trial):
        depth = trial.suggest_int("depth", 1, 5)
        widths = [trial.suggest_int(f"width{i}", 8, 64, step=8) for i in range(depth)]
        return depth, widths

    def proxies(depth, widths):
        return {"size": float(sum(widths)), "narrowest": float(min(widths))}

    def objective(trial):
        depth, widths = build(trial)
        az.record(trial, proxies(depth, widths))
        lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        return sum(widths) / 64 - 3 * abs(depth - 3) - abs(math.log10(lr) + 2)

    score = (lambda params: proxies(*build(optuna.trial.FixedTrial(params)))) if with_score else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # score never lacks a parameter once the first trials have shown them all
        warnings.filterwarnings("ignore", message="candidate_scorer failed .*is not found")
        study = run(az.AZNASSampler(seed=0, candidate_scorer=score, n_candidates=40), 50, function=objective)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    late = [trial.params["depth"] for trial in study.trials[25:]]
    assert np.mean(np.array(late) == 3) > 0.3  # at random 0.2
    shapes = {tuple(v for k, v in t.params.items() if k != "lr") for t in study.trials}
    assert len({tuple(t.params.values()) for t in study.trials}) == 50
    assert 10 < len(shapes) < 50  # a good architecture is trained again, with other hyperparameters


def test_a_parameter_that_is_new_to_the_study():

    def objective(trial):
        params = {f"x{i}": trial.suggest_categorical(f"x{i}", CHOICES) for i in range(6)}
        if trial.number >= 8:
            trial.suggest_int("late", 0, 9)
        az.record(trial, scores_of(params))
        return accuracy_of(params)

    study = run(az.AZNASSampler(seed=0, candidate_scorer=scores_of, n_candidates=20), 25, function=objective)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert len({trial.params.get("late") for trial in study.trials}) > 2


def test_a_custom_aggregation_is_the_prior():
    study = run(
        az.AZNASSampler(seed=0, candidate_scorer=scores_of, aggregation=lambda t: -t[:, 0], n_startup_trainings=15), 15
    )
    assert np.mean([scores_of(trial.params)["total"] for trial in study.trials[1:]]) < 8  # at random 12
    with pytest.raises(ValueError, match="aggregation must return one score for each"):
        run(az.AZNASSampler(seed=0, candidate_scorer=scores_of, aggregation=lambda table: table), 3)


def test_presence_is_learned():
    rng = np.random.default_rng(0)
    architectures = []
    for _ in range(60):
        depth = int(rng.integers(1, 6))
        params = {"depth": depth} | {f"width{i}": int(rng.integers(1, 9)) for i in range(depth)}
        params["kind"] = str(rng.choice(["conv", "attention"]))
        if params["kind"] == "attention":
            params["heads"] = int(rng.integers(1, 9))
        architectures.append(params)
    presence = ConditionalParameters(architectures)
    everything = {"depth": 3, "kind": "conv", "heads": 2} | {f"width{i}": 4 for i in range(5)}
    assert presence.present(everything).keys() == {"depth", "kind", "width0", "width1", "width2"}
    assert presence.present(everything | {"kind": "attention", "depth": 1}).keys() == {
        "depth",
        "kind",
        "heads",
        "width0",
    }


def test_results_in_order():
    def trial(state, values=None, reports=None, **attrs):
        return create_trial(state=state, value=values, intermediate_values=reports or {}, **attrs)

    trials = [
        trial(TrialState.COMPLETE, 0.5),
        trial(TrialState.PRUNED, reports={0: 0.9}),
        trial(TrialState.FAIL),
        trial(TrialState.PRUNED),
        trial(TrialState.PRUNED, reports={0: 0.1, 1: 0.2}),
        trial(TrialState.PRUNED, reports={0: 0.1, 1: math.nan}),
        trial(TrialState.COMPLETE, 0.4),
        trial(TrialState.COMPLETE, -math.inf),
    ]
    assert trained_values(trials, StudyDirection.MAXIMIZE) == pytest.approx(
        [5, 0, math.nan, math.nan, 2, 1, 4, 3], nan_ok=True
    )
    assert trained_values(trials[:2] + trials[6:7], StudyDirection.MINIMIZE).tolist() == [1, 0, 2]


def test_the_encoding():
    space = {
        "op0": CategoricalDistribution(("a", "b", "c")),
        "op1": CategoricalDistribution(("a", "b", "c")),
        "lr": FloatDistribution(1e-4, 1.0, log=True),
        "width": IntDistribution(8, 72, step=8),
        "constant": IntDistribution(3, 3),
    }
    half = math.sqrt(0.5)
    single, pooled, single_kinds, pooled_kinds = Encoder(space)(
        [{"op0": "b", "op1": "b", "lr": 1e-2, "width": 24, "constant": 3}, {"op0": "gone", "lr": 1e-4}]
    )
    assert single[0] == pytest.approx([0, half, 0, 0, 0, half, 0, 0, 0.5, 0, 0.25, 0])
    assert single[1] == pytest.approx([0, 0, 0, half, 0, 0, 0, half, 0, 0, 0, half])
    assert pooled == pytest.approx(np.array([[0, 1, 0, 0], [0, 0, 0, 1]]))
    assert single_kinds == (0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2)
    assert pooled_kinds == (0, 0, 0, 0)


def test_many_choices_are_encoded_in_few_columns():
    """Any two of them are about as far apart as two of a few are, and the same choice is always in the same place."""
    choices = tuple(f"c{i}" for i in range(100_000))
    encoder = Encoder({"x": CategoricalDistribution(choices)})
    chosen = [{"x": choices[i]} for i in range(0, 100_000, 2000)]
    single, pooled, *_ = encoder([*chosen, {}, {"x": "gone"}, {"x": None}])
    assert single.shape == (len(chosen) + 3, 65)
    assert pooled.shape[1] == 0
    squared = ((single[:50, None] - single[None, :50]) ** 2).sum(axis=2)[~np.eye(50, dtype=bool)]
    assert np.all(np.abs(squared - 1.0) < 0.6)  # with a column for each it is 1
    assert squared.mean() == pytest.approx(1.0, abs=0.05)
    assert np.all(encoder(chosen[::-1]).single[::-1] == single[: len(chosen)])
    absent = [0.0] * 64 + [math.sqrt(0.5)]
    assert single[-3:].tolist() == [absent] * 3


def test_a_study_with_many_choices_compares_them_a_bounded_number_of_times(monkeypatch):
    """Equal distributions with many choices are not compared choice by choice for every candidate."""
    choices = tuple(f"c{i}" for i in range(20_000))
    compared, searched = [], []
    equal, search = CategoricalDistribution.__eq__, CategoricalDistribution.to_internal_repr
    monkeypatch.setattr(CategoricalDistribution, "__eq__", lambda a, b: compared.append(1) or equal(a, b))
    monkeypatch.setattr(
        CategoricalDistribution, "to_internal_repr", lambda self, value: searched.append(1) or search(self, value)
    )

    def objective(trial):
        x, y = choices.index(trial.suggest_categorical("x", choices)), trial.suggest_int("y", 0, 9)
        az.record(trial, {"a": x, "b": -y})
        return x * y

    run(az.AZNASSampler(seed=0, n_candidates=50, crossover_prob=1.0, n_startup_trainings=2), 10, function=objective)
    assert len(compared) < 10 * 10
    assert len(searched) < 10 * 10  # Optuna's own


def test_hyperparameters_are_what_is_no_architecture():
    study = run(az.AZNASSampler(seed=0, n_candidates=5), 3)
    assert encode_hyperparameters(study.trials) is None

    def with_rate(trial):
        value = objective(trial)
        return value * trial.suggest_float("lr", 0.0, 1.0)

    study = run(az.AZNASSampler(seed=0, n_candidates=5), 3, function=with_rate)
    assert encode_hyperparameters(study.trials)[:, 0] == pytest.approx([t.params["lr"] for t in study.trials])


@pytest.mark.parametrize("mean", [-3.0, -0.3, 0.0, 0.5, 2.0])
def test_log_expected_improvement_is_the_logarithm_of_the_integral(mean):
    std, best = 0.7, 0.5
    expected, _ = quad(lambda y: (y - best) * norm.pdf(y, mean, std), best, best + 12, epsabs=0.0)
    assert log_expected_improvement(np.array([mean]), np.array([std]), best) == pytest.approx([np.log(expected)])


def test_log_expected_improvement_orders_what_lies_far_below():
    """Where the expected improvement itself is 0 in floating point, its logarithm still grows with the mean."""
    mean = np.concatenate([-np.geomspace(1e7, 1.001, 2000), np.linspace(-1.0, 1.0, 200)])
    improvement = log_expected_improvement(mean, np.ones(len(mean)), 0.0)
    assert np.all(np.isfinite(improvement))
    assert np.all(np.diff(improvement) > 0)


def test_proxy_importance_in_a_study():
    def objective(trial):
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        az.record(trial, {"irrelevant": y, "relevant": x})
        return -x + 3 * trial.suggest_float("lr", 0, 1)

    study = run(optuna.samplers.RandomSampler(seed=0), 60, "minimize", objective)
    importance = az.proxy_importance(study)
    assert list(importance) == ["relevant", "irrelevant"]
    assert isinstance(importance["relevant"], az.ProxyImportance)
    assert importance["relevant"].mean > 0.6
    with pytest.raises(ValueError, match="5 are needed, and there are 0"):
        az.proxy_importance(optuna.create_study())
    with pytest.raises(ValueError, match="one objective"):
        az.proxy_importance(optuna.create_study(directions=["maximize"] * 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidate_scorer": 3}, "candidate_scorer must be callable"),
        ({"n_candidates": 0}, "n_candidates must be an integer of at least 1"),
        ({"n_startup_trainings": 0}, "n_startup_trainings must be an integer of at least 1"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        az.AZNASSampler(**arguments)


def test_features_of_graphs_are_used_where_some_trials_have_them():
    """Trials with and without, candidates with and without: none fails, and the ranking is given one row for each."""
    given = []

    class Watched(LearnedAggregation):
        def condition(self, networks):
            given.append(networks)
            return super().condition(networks)

    def objective(trial):
        x, y = trial.suggest_int("x", 0, 20), trial.suggest_int("y", 0, 20)
        graph = {"norm": float(x), "add": float(y)} if trial.number % 2 else {}
        az.record(trial, az.ProxyScores([float(x + y)], names=["size"], graph=graph))
        return float(y)

    for scorer in (None, lambda params: az.ProxyScores([params["x"]], names=["size"], graph={"norm": params["x"]})):
        given.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("optuna_aznas.sampler.bayesian.LearnedAggregation", Watched)
            sampler = az.AZNASSampler(seed=0, candidate_scorer=scorer)
            study = optuna.create_study(direction="maximize", sampler=sampler)
            study.optimize(objective, n_trials=15)
        graphs = [networks.graph for networks in given if networks.graph is not None]
        assert graphs[-1].shape == (len(given[-1].proxy_scores), 2)
        assert all(np.isfinite(graph).all() for graph in graphs)


@pytest.mark.parametrize(("std", "noise"), [(0.3, 0.2), (1e-3, 10.0), (2.0, 0.0), (1e-6, 1e-6)])
def test_log_augmentation_is_what_augments_the_expected_improvement(std, noise):
    with localcontext() as context:
        context.prec = 50
        expected = (1 - Decimal(noise) / (Decimal(std) ** 2 + Decimal(noise) ** 2).sqrt()).ln()
    assert log_augmentation(np.array([std]), noise) == pytest.approx([float(expected)], abs=1e-12)


def test_a_configuration_that_is_known_well_is_not_trained_again_because_it_is_the_best():
    class Known:  # the first is the best and known well, the second worse and hardly known
        best = 0.0

        def __init__(self, noise_std):
            self.noise_std = noise_std

        def predict(self, rows, columns):
            return np.array([0.0, -1.0])[rows], np.array([0.3, 1.0])[rows]

    data = SimpleNamespace(
        chooses_hyperparameters=False,
        hyperparameters=(),
        n_trials=0,
        running=[],
        candidates=[SimpleNamespace(key=0), SimpleNamespace(key=1)],
    )
    for noise_std, first in ((0.0, 0), (0.5, 1)):
        proposed = maximise(data, Known(noise_std), np.arange(2), np.random.default_rng(0))
        assert next(proposed)[0] == first
