"""Architecture and learning rate in one study, with real trainings: what accuracy a number of training epochs buys.

    make bench-digits

The problem is that of examples/architecture_and_hyperparameters.py. Every method may train for the same number of
epochs in all. Prints the validation accuracy of the best trial after so many of them, the test accuracy of the last
such trial, and the seconds that all took, scoring included; mean and standard deviation over the seeds.

* TPE: each trial is trained to its end.
* TPE + Hyperband: trials that do not keep up are stopped.
* AZNAS: AZNASSampler steers the architecture and TPE the rest; AZNASPruner stops poor architectures before they are
  trained, and then hands over to Hyperband.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import time
import warnings
from collections.abc import Callable

import numpy as np
import optuna
import torch
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, TPESampler

import optuna_aznas as az
from examples.architecture_and_hyperparameters import EPOCHS, accuracy, build, load_data, train

CHECKPOINTS = (45, 90, 180, 360)

METHODS: dict[str, Callable[[int], tuple[BaseSampler, BasePruner]]] = {
    "TPE": lambda seed: (TPESampler(seed=seed), NopPruner()),
    "TPE + Hyperband": lambda seed: (TPESampler(seed=seed), HyperbandPruner(1, EPOCHS)),
    "AZNAS, then Hyperband": lambda seed: (
        az.AZNASSampler(hyperparameter_sampler=TPESampler(seed=seed), seed=seed),
        az.AZNASPruner(training_pruner=HyperbandPruner(1, EPOCHS)),
    ),
    "AZNAS, no early stop": lambda seed: (
        az.AZNASSampler(hyperparameter_sampler=TPESampler(seed=seed), seed=seed),
        az.AZNASPruner(),
    ),
}


class _BudgetSpentError(Exception):
    """All epochs have been trained."""


def run(method: str, seed: int) -> tuple[list[float], float, float, int, int]:
    """Return best validation accuracies at the checkpoints, test accuracy, seconds, trials, and trials trained."""
    train_data, valid_data, test_data = load_data()
    evaluator = az.ProxyEvaluator(inputs=train_data[0][:64])
    sampler, pruner = METHODS[method](seed)
    scores_first = isinstance(pruner, az.AZNASPruner)
    best, best_test, spent = 0.0, 0.0, 0
    curve: list[float] = []

    def objective(trial: optuna.Trial) -> float:
        nonlocal best, best_test, spent
        torch.manual_seed(1000 * seed + trial.number)
        model = build(trial)
        if scores_first:
            az.record(trial, evaluator(model))
            if trial.should_prune():
                raise optuna.TrialPruned
        lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
        value = 0.0
        for epoch in train(model, lr, *train_data, seed=trial.number):
            spent += 1
            value = accuracy(model, *valid_data)
            if value > best:
                best, best_test = value, accuracy(model, *test_data)
            if spent in CHECKPOINTS:
                curve.append(best)
                if spent == CHECKPOINTS[-1]:
                    raise _BudgetSpentError
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    start = time.perf_counter()
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    with contextlib.suppress(_BudgetSpentError):
        study.optimize(objective)
    trained = sum(bool(trial.intermediate_values) for trial in study.trials)
    return curve, best_test, time.perf_counter() - start, len(study.trials), trained


def _job(job: tuple[str, int]) -> tuple[str, tuple[list[float], float, float, int, int]]:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    torch.set_num_threads(1)
    return job[0], run(*job)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="processes side by side")
    arguments = parser.parse_args()
    jobs = [(method, seed) for seed in range(arguments.seeds) for method in METHODS]
    results: dict[str, list[tuple[list[float], float, float, int, int]]] = {method: [] for method in METHODS}
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        for method, result in pool.imap_unordered(_job, jobs):
            results[method].append(result)
    print(f"Best validation accuracy (%) after so many epochs of training, mean (sd) over {arguments.seeds} seeds:")
    columns = "".join(f"{n:>14d}" for n in CHECKPOINTS)
    print(f"{'':22s}{columns}{'test':>14s}{'seconds':>9s}{'trials':>8s}{'trained':>8s}")
    for method, runs in results.items():
        accuracies = 100 * np.array([[*curve, test] for curve, test, *_ in runs])
        mean, spread = accuracies.mean(axis=0), accuracies.std(axis=0, ddof=1)
        cells = "".join(f"{f'{m:.2f} ({s:.2f})':>14s}" for m, s in zip(mean, spread, strict=True))
        seconds, trials, trained = np.mean([rest for _, _, *rest in runs], axis=0)
        print(f"{method:22s}{cells}{seconds:>9.0f}{trials:>8.0f}{trained:>8.0f}")


if __name__ == "__main__":
    main()
