"""Architecture and learning rate in one study, with real trainings: what accuracy a number of training epochs buys.

    make bench-digits
    python -m benchmarks.digits --problems readme --methods "TPE, Median" "AZNAS, Median" --seeds 5

Two problems, both on scikit-learn's digits: that of examples/architecture_and_hyperparameters.py, and the second use of
the README. Every method may train for the same number of epochs in all. Prints the best validation accuracy after each
quarter of them, mean and standard deviation over the seeds, and how many trials were trained, even for one epoch, of
how many.

A method is a sampler and what stops a training. "keep" is AZNASPruner, which decides first, and then hands over. "AZNAS
+ TPE" takes the learning rate from TPE.

Trainings are kept in a table, a SQLite file outside the repository, so that no configuration is trained twice: not by
another method, nor by another run. The learning rate is moved to the nearest of four values a decade, and a
configuration is always trained with the same random numbers, so that a run can be repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import multiprocessing
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, TPESampler
from sklearn.datasets import load_digits
from torch import Tensor, nn

import optuna_aznas as az
from examples import architecture_and_hyperparameters as example

TABLE = Path(tempfile.gettempdir()) / "optuna_aznas_digits.sqlite3"
STEPS_A_DECADE = 4  # learning rates that are trained with


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is searched, and how a network is trained.

    Attributes:
        build: Builds the network that a trial suggests.
        train: Trains a network with a learning rate and yields its validation accuracy after each epoch.
        evaluator: Scores networks.
        lowest_lr: Lower bound of the learning rate; the upper bound is 1.
        epochs: Epochs of one training.
        budget: Epochs of one search.
    """

    build: Callable[[optuna.Trial], nn.Module]
    train: Callable[[nn.Module, float], Iterator[float]]
    evaluator: az.ProxyEvaluator
    lowest_lr: float
    epochs: int
    budget: int


def example_problem() -> Problem:
    train_data, valid_data, _ = example.load_data()

    def train(model: nn.Module, lr: float) -> Iterator[float]:
        for _ in example.train(model, lr, *train_data, seed=0):
            yield example.accuracy(model, *valid_data)

    evaluator = az.ProxyEvaluator(inputs=train_data[0][:64])
    return Problem(example.build, train, evaluator, lowest_lr=1e-4, epochs=example.EPOCHS, budget=40 * example.EPOCHS)


def readme_problem() -> Problem:
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y: Tensor = torch.tensor(digits.target)

    def build(trial: optuna.Trial) -> nn.Module:
        layers: list[nn.Module] = []
        channels = 1
        for i in range(trial.suggest_int("depth", 2, 5)):
            width = trial.suggest_int(f"width{i}", 8, 32, step=8)
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))

    def train(model: nn.Module, lr: float) -> Iterator[float]:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        for _ in range(5):
            model.train()
            for batch in torch.randperm(1200).split(100):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
            yield example.accuracy(model, x[1200:], y[1200:])

    return Problem(build, train, az.ProxyEvaluator(input_shape=(1, 8, 8)), lowest_lr=1e-3, epochs=5, budget=200)


PROBLEMS: dict[str, Callable[[], Problem]] = {"readme": readme_problem, "example": example_problem}


def tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed)


def aznas(seed: int) -> BaseSampler:
    return az.AZNASSampler(seed=seed)


def aznas_tpe(seed: int) -> BaseSampler:
    return az.AZNASSampler(hyperparameter_sampler=TPESampler(seed=seed), seed=seed)


def hyperband(epochs: int) -> BasePruner:
    return HyperbandPruner(1, epochs)


METHODS: dict[str, tuple[Callable[[int], BaseSampler], Callable[[int], BasePruner]]] = {
    "TPE": (tpe, lambda _: NopPruner()),
    "TPE, Median": (tpe, lambda _: MedianPruner()),
    "TPE, Hyperband": (tpe, hyperband),
    "TPE, Halving": (tpe, lambda _: SuccessiveHalvingPruner()),
    "AZNAS, Median": (aznas, lambda _: MedianPruner()),
    "AZNAS, Hyperband": (aznas, hyperband),
    "AZNAS, Halving": (aznas, lambda _: SuccessiveHalvingPruner()),
    "AZNAS, keep, Median": (aznas, lambda _: az.AZNASPruner(training_pruner=MedianPruner())),
    "AZNAS, keep, Hyperband": (aznas, lambda epochs: az.AZNASPruner(training_pruner=hyperband(epochs))),
    "AZNAS, keep, Halving": (aznas, lambda _: az.AZNASPruner(training_pruner=SuccessiveHalvingPruner())),
    "AZNAS + TPE, keep, Median": (aznas_tpe, lambda _: az.AZNASPruner(training_pruner=MedianPruner())),
    "AZNAS + TPE, keep, Hyperband": (aznas_tpe, lambda epochs: az.AZNASPruner(training_pruner=hyperband(epochs))),
}
DEFAULT_METHODS = ("TPE, Median", "TPE, Hyperband", "AZNAS, keep, Median", "AZNAS, keep, Hyperband")


class Table:
    """Trainings and proxy scores by configuration, in a SQLite file that several processes may use.

    Args:
        path: The file.
        problem: Name of the problem, one of :data:`PROBLEMS`.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.problem = PROBLEMS[problem]()
        self._name = problem
        self._database = sqlite3.connect(path, timeout=600, isolation_level=None)
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE IF NOT EXISTS results (configuration TEXT PRIMARY KEY, result TEXT)")

    def proxy_scores(self, trial: optuna.Trial) -> dict[str, float]:
        """Suggest an architecture, and return its proxy scores."""
        torch.manual_seed(0)
        model = self.problem.build(trial)
        scores: dict[str, float] | None = self._read("scores", trial.params)
        if scores is None:
            scores = self.problem.evaluator(model).to_dict()
            self._write("scores", trial.params, scores)
        return scores

    def accuracies(self, params: dict[str, Any], lr: float) -> Iterator[float]:
        """Yield the validation accuracies of a training after each epoch; only epochs that were never seen are run."""
        lr = 10 ** (round(STEPS_A_DECADE * math.log10(lr)) / STEPS_A_DECADE)
        configuration = {**params, "lr": float(f"{lr:.6g}")}
        seen: list[float] = self._read("accuracies", configuration) or []
        yield from seen
        if len(seen) == self.problem.epochs:
            return
        torch.manual_seed(0)
        model = self.problem.build(optuna.trial.FixedTrial(params))  # type: ignore[arg-type]
        for epoch, accuracy in enumerate(self.problem.train(model, lr)):
            if epoch >= len(seen):
                seen.append(accuracy)
                self._write("accuracies", configuration, seen)
                yield accuracy

    def _key(self, what: str, configuration: dict[str, Any]) -> str:
        return json.dumps([what, self._name, configuration], sort_keys=True)

    def _read(self, what: str, configuration: dict[str, Any]) -> Any:
        query = "SELECT result FROM results WHERE configuration = ?"
        row = self._database.execute(query, (self._key(what, configuration),)).fetchone()
        return None if row is None else json.loads(row[0])

    def _write(self, what: str, configuration: dict[str, Any], result: Any) -> None:
        row = (self._key(what, configuration), json.dumps(result))
        self._database.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", row)


class _BudgetSpentError(Exception):
    """All epochs have been trained."""


@dataclasses.dataclass(frozen=True)
class Search:
    """What one search gave: best validation accuracies after each quarter of the budget, trials, and those trained."""

    best: list[float]
    n_trials: int
    n_trained: int


def run(table: Table, method: str, seed: int) -> Search:
    """Run one search."""
    problem = table.problem
    make_sampler, make_pruner = METHODS[method]
    sampler, pruner = make_sampler(seed), make_pruner(problem.epochs)
    accuracies: list[float] = []

    def objective(trial: optuna.Trial) -> float:
        proxy_scores = table.proxy_scores(trial)
        architecture = trial.params
        if isinstance(sampler, az.AZNASSampler):
            az.record(trial, proxy_scores)
            if isinstance(pruner, az.AZNASPruner) and trial.should_prune():
                raise optuna.TrialPruned
        lr = trial.suggest_float("lr", problem.lowest_lr, 1.0, log=True)
        for epoch, accuracy in enumerate(table.accuracies(architecture, lr)):
            accuracies.append(accuracy)
            if len(accuracies) == problem.budget:
                raise _BudgetSpentError
            trial.report(accuracy, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return accuracy

    # Hyperband assigns trials to brackets by the study's name: the same name, the same brackets.
    study = optuna.create_study(study_name=f"digits {seed}", direction="maximize", sampler=sampler, pruner=pruner)
    with contextlib.suppress(_BudgetSpentError):
        study.optimize(objective)
    trained = sum(bool(trial.intermediate_values) for trial in study.trials)
    best = np.maximum.accumulate(accuracies)[[problem.budget * k // 4 - 1 for k in (1, 2, 3, 4)]]
    return Search(best.tolist(), len(study.trials), trained)


def _job(job: tuple[Path, str, str, int]) -> tuple[str, str, Search]:
    path, problem, method, seed = job
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    torch.set_num_threads(1)
    return problem, method, run(Table(path, problem), method, seed)


def report(problem: str, results: dict[str, list[Search]]) -> None:
    epochs = [PROBLEMS[problem]().budget * k // 4 for k in (1, 2, 3, 4)]
    seeds = max(map(len, results.values()))
    print(f"\n{problem}: best validation accuracy (%) after so many epochs, mean (sd) of {seeds} seeds")
    print(f"{'':30s}" + "".join(f"{n:>14d}" for n in epochs) + "   trained of trials")
    for method, searches in results.items():
        best = 100 * np.array([search.best for search in searches])
        spread = best.std(axis=0, ddof=1) if len(best) > 1 else np.zeros(4)
        cells = "".join(f"{f'{m:.2f} ({s:.2f})':>14s}" for m, s in zip(best.mean(axis=0), spread, strict=True))
        trained, trials = (np.mean([getattr(s, name) for s in searches]) for name in ("n_trained", "n_trials"))
        print(f"{method:30s}{cells}{trained:>10.0f} of {trials:.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(DEFAULT_METHODS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2, help="processes side by side")
    parser.add_argument("--table", type=Path, default=TABLE, help="SQLite file of the trainings")
    arguments = parser.parse_args()
    results: dict[str, dict[str, list[Search]]] = {
        problem: {method: [] for method in arguments.methods} for problem in arguments.problems
    }
    jobs = [
        (arguments.table, problem, method, seed)
        for problem in arguments.problems
        for seed in range(arguments.seeds)
        for method in arguments.methods
    ]
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        for problem, method, search in pool.imap_unordered(_job, jobs):
            results[problem][method].append(search)
    for problem in arguments.problems:
        report(problem, results[problem])


if __name__ == "__main__":
    main()
