"""What AZNASPruner keeps, and what it saves: searches of tables of trainings, with it and without.

    python -m benchmarks.pruning
    python -m benchmarks.pruning --tables macro --samplers TPE --seeds 5

A trial is an architecture of NAS-Bench-201 or NAS-Bench-Macro. Its proxy scores are looked up, and, if the pruner keeps
it, its accuracy (validation; test on NAS-Bench-Macro). A search ends after 40 trainings. Prints the share of all
architectures, in percent, that beat the best one trained after so many trainings (geometric mean over the seeds), and
the fraction of the trials after the startup that was trained (mean, lowest and highest over the seeds).
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

import optuna_aznas as az
from benchmarks.shared_data import DATA, PROXIES, load_scores, macs, read_table
from optuna_aznas.spaces.nas_bench_201 import OPERATIONS, PARAMETERS, from_params, to_arch
from optuna_aznas.spaces.nas_bench_201_results import load_results

CHECKPOINTS = (10, 20, 30, 40)
MAX_TRIALS = 400
STARTUP = 5  # of AZNASPruner, by default

TABLES = ("cifar10", "cifar100", "imagenet", "macro")
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "Random": lambda seed: RandomSampler(seed=seed),
    "TPE": lambda seed: TPESampler(multivariate=True, seed=seed),
    "NSGA-II": lambda seed: NSGAIISampler(population_size=20, seed=seed),
    "AZNAS": lambda seed: az.AZNASSampler(seed=seed),
}
PRUNERS: dict[str, Callable[[], BasePruner]] = {"-": NopPruner, "AZNASPruner": az.AZNASPruner}


class Table(NamedTuple):
    """Architectures by name, and how a trial names one.

    Attributes:
        choices: The parameters and their choices.
        name: Returns an architecture's name, of its parameters.
        proxy_scores: By name.
        accuracies: By name.
    """

    choices: Mapping[str, tuple[str, ...]]
    name: Callable[[dict[str, Any]], str]
    proxy_scores: Mapping[str, dict[str, float]]
    accuracies: Mapping[str, float]


@functools.cache
def load(table: str) -> Table:
    """Return a table of :data:`TABLES`."""
    if table == "macro":
        scores = read_table(DATA / "nas_bench_macro_scores.csv.gz", PROXIES)
        accuracies = read_table(DATA / "nas_bench_macro.csv.gz", ["accuracy"])
        return Table(
            choices={f"layer{i}": ("0", "1", "2") for i in range(8)},
            name=lambda params: "".join(params.values()),
            proxy_scores={arch: dict(zip(PROXIES, row, strict=True)) for arch, row in scores.items()},
            accuracies={arch: accuracy for arch, (accuracy,) in accuracies.items()},
        )
    published = load_results(table)  # type: ignore[arg-type]
    scores = {arch: (*row, macs(arch)) for arch, row in load_scores(DATA, "table").items()}
    return Table(
        choices=dict.fromkeys(PARAMETERS, OPERATIONS),
        name=lambda params: to_arch(from_params(params)),
        proxy_scores={arch: dict(zip(PROXIES, row, strict=True)) for arch, row in scores.items()},
        accuracies={arch: result.accuracy for arch, result in published.items()},
    )


def run(table: str, sampler: str, pruner: str, seed: int) -> tuple[list[float], float]:
    """Return the shares of architectures ahead after the checkpoints, in percent, and the fraction trained."""
    choices, name, proxy_scores, accuracies = load(table)
    trained: list[tuple[int, float]] = []  # trial number, accuracy

    def objective(trial: optuna.Trial) -> float:
        arch = name({parameter: trial.suggest_categorical(parameter, c) for parameter, c in choices.items()})
        az.record(trial, proxy_scores[arch])
        if trial.should_prune():
            raise optuna.TrialPruned
        trained.append((trial.number, accuracies[arch]))
        if len(trained) == CHECKPOINTS[-1]:
            trial.study.stop()
        return accuracies[arch]

    study = optuna.create_study(direction="maximize", sampler=SAMPLERS[sampler](seed), pruner=PRUNERS[pruner]())
    study.optimize(objective, n_trials=MAX_TRIALS)
    best = np.maximum.accumulate([accuracy for _, accuracy in trained])
    everything = np.array(list(accuracies.values()))
    shares = [100 * (np.sum(everything > best[min(n, len(best)) - 1]) + 0.5) / len(everything) for n in CHECKPOINTS]
    return shares, sum(number >= STARTUP for number, _ in trained) / (len(study.trials) - STARTUP)


def _job(job: tuple[str, str, str, int]) -> tuple[tuple[str, str, str], tuple[list[float], float]]:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return job[:3], run(*job)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2, help="processes side by side")
    arguments = parser.parse_args()
    if not DATA.exists():
        parser.exit(1, f"The tables of proxy scores are not there ({DATA}).\n")
    cases = [(t, s, p) for t in arguments.tables for s in arguments.samplers for p in PRUNERS]
    jobs = [(*case, seed) for case in cases for seed in range(arguments.seeds)]
    results: dict[tuple[str, str, str], list[tuple[list[float], float]]] = {case: [] for case in cases}
    print(f"{'':32s}" + "".join(f"{n:>8d}" for n in CHECKPOINTS) + "   trained of the trials after the startup")
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        for case, result in pool.imap(_job, jobs):
            results[case].append(result)
            if len(results[case]) == arguments.seeds:
                shares = np.exp(np.mean(np.log([shares for shares, _ in results[case]]), axis=0))
                fractions = [fraction for _, fraction in results[case]]
                low, mean, high = min(fractions), float(np.mean(fractions)), max(fractions)
                print(
                    "{:10s}{:9s}{:13s}".format(*case)
                    + "".join(f"{share:8.3f}" for share in shares)
                    + f"{mean:>8.2f} ({low:.2f} to {high:.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
