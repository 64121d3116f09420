"""How many trainings it takes to find a good network: NAS-Bench-201 as a study that trains.

    make bench-trainings
    python -m benchmarks.trainings --datasets cifar10 --seeds 5 --jobs 16

Each trial is one training of the published 200 epochs; its value is the published validation accuracy (the mean over
the trainings of that network). Prints the median, over the seeds, of the best accuracy after so many trainings, and of
the trainings until it was within 0.3 points of the best there is; a search that did not get there counts as 101.

* AZNAS + scorer: ``candidate_scorer`` looks up candidates in the table of proxy scores: 200 networks for each
  training.
* AZNAS: without ``candidate_scorer``; all that is known are the scores of the networks that were trained.
* AZNAS + pruner: the same with AZNASPruner, which sees a network's scores before it is trained, and stops three of
  four. Only what it lets through is a training.
* Regularised evolution (Real et al., AAAI 2019): the oldest of the population dies; the best of a random sample is
  mutated in one operation. Population 20 and sample 5 by default, for 100 trainings; the paper's 100 and 25 would still
  be random here. --evolution compares others.
* TPE (multivariate), GP and random sampling are Optuna's.

The settings of AZNASSampler were chosen on CIFAR-10 with seeds from 200 on.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import time
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import optuna

import optuna_aznas as az
from benchmarks.shared_data import DATA, PROXIES, load_scores, macs
from optuna_aznas.spaces.nas_bench_201 import OPERATIONS, PARAMETERS, from_params, to_arch
from optuna_aznas.spaces.nas_bench_201_results import Dataset, load_results

CHECKPOINTS = (10, 20, 30, 50, 75, 100)
TRAININGS = CHECKPOINTS[-1]
TOLERANCE = 0.3  # points of accuracy


@functools.cache
def proxies(data: Path) -> dict[str, dict[str, float]]:
    """Return the scores of every architecture, by its string."""
    return {
        arch: dict(zip(PROXIES, (*scores, macs(arch)), strict=True))
        for arch, scores in load_scores(data, "table").items()
    }


class RegularizedEvolution:
    """Proposes architectures as Real et al. do; single-process and without Optuna."""

    def __init__(self, seed: int, population: int, sample: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._size, self._sample = population, sample
        self._population: deque[tuple[list[str], float]] = deque(maxlen=population)

    def ask(self) -> list[str]:
        if len(self._population) < self._size:
            return [str(choice) for choice in self._rng.choice(OPERATIONS, len(PARAMETERS))]
        sample = self._rng.choice(self._size, self._sample, replace=False)
        child = list(max((self._population[i] for i in sample), key=lambda member: member[1])[0])
        edge = int(self._rng.integers(len(child)))
        child[edge] = str(self._rng.choice([choice for choice in OPERATIONS if choice != child[edge]]))
        return child

    def tell(self, operations: list[str], value: float) -> None:
        self._population.append((operations, value))


def evolve(dataset: Dataset, seed: int, population: int, sample: int) -> list[float]:
    """Return the accuracies of the networks that a regularised evolution trains."""
    search = RegularizedEvolution(seed, population, sample)
    values: list[float] = []
    while len(values) < TRAININGS:
        operations = search.ask()
        values.append(load_results(dataset)[to_arch(operations)].accuracy)
        search.tell(operations, values[-1])
    return values


def optimize(
    sampler: optuna.samplers.BaseSampler, pruner: optuna.pruners.BasePruner, dataset: Dataset, data: Path, record: bool
) -> list[float]:
    """Return the accuracies of the networks that a study trains."""
    results, scores = load_results(dataset), proxies(data)
    values: list[float] = []

    def objective(trial: optuna.Trial) -> float:
        arch = to_arch(from_params({name: trial.suggest_categorical(name, OPERATIONS) for name in PARAMETERS}))
        if record:
            az.record(trial, scores[arch])
            if trial.should_prune():
                raise optuna.TrialPruned
        values.append(results[arch].accuracy)
        if len(values) == TRAININGS:
            trial.study.stop()
        return values[-1]

    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    study.optimize(objective, n_trials=40 * TRAININGS)
    return values


def with_score(seed: int, data: Path) -> az.AZNASSampler:
    scores = proxies(data)
    return az.AZNASSampler(seed=seed, candidate_scorer=lambda params: scores[to_arch(from_params(params))])


OPTUNA: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "Random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "TPE": lambda seed: optuna.samplers.TPESampler(multivariate=True, seed=seed),
    "GP": lambda seed: optuna.samplers.GPSampler(seed=seed),
}
OURS = ("AZNAS + scorer", "AZNAS", "AZNAS + pruner")
SAMPLERS = (*OURS, *OPTUNA, "Evolution")


def run(name: str, dataset: Dataset, seed: int, data: Path, population: int = 20, sample: int = 5) -> list[float]:
    """Return the accuracies of one search's trainings, in order."""
    if name == "Evolution":
        return evolve(dataset, seed, population, sample)
    no_pruner = optuna.pruners.NopPruner()
    if name in OPTUNA:
        return optimize(OPTUNA[name](seed), no_pruner, dataset, data, record=False)
    sampler = with_score(seed, data) if name == "AZNAS + scorer" else az.AZNASSampler(seed=seed)
    pruner = az.AZNASPruner() if name == "AZNAS + pruner" else no_pruner
    return optimize(sampler, pruner, dataset, data, record=True)


def _job(job: tuple[str, Dataset, int, Path, int, int]) -> tuple[str, Dataset, list[float], float]:
    name, dataset, *_ = job
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if name == "GP":
        import torch

        torch.set_num_threads(1)
    start = time.perf_counter()
    return name, dataset, run(*job), time.perf_counter() - start


def report(dataset: Dataset, runs: dict[str, list[list[float]]], seconds: dict[str, list[float]]) -> None:
    best = max(result.accuracy for result in load_results(dataset).values())
    n = max(map(len, runs.values()))
    print(f"\n{dataset}: best accuracy after so many trainings, median of {n} seeds; the best there is: {best:.2f}")
    print(f"{'':16s}" + "".join(f"{n:>8d}" for n in CHECKPOINTS) + "   trainings to target (quartiles)   seconds")
    for name, values in runs.items():
        curves = np.maximum.accumulate(np.array(values), axis=1)
        cells = "".join(f"{np.median(curves[:, n - 1]):>8.2f}" for n in CHECKPOINTS)
        reached = curves >= best - TOLERANCE
        needed = np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, TRAININGS + 1)
        low, middle, high = np.quantile(needed, [0.25, 0.5, 0.75])
        target = f"{middle:.1f} ({low:.0f} to {high:.0f})"
        print(f"{name:16s}{cells}{target:>34s}{np.mean(seconds[name]):>10.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--datasets", nargs="+", choices=get_args(Dataset), default=list(get_args(Dataset)))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--evolution", type=int, nargs=2, default=(20, 5), metavar=("POPULATION", "SAMPLE"))
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the score table")
    arguments = parser.parse_args()
    if not (arguments.data / "nb201_score_table.csv.gz").exists():
        parser.exit(1, f"The score table is not there ({arguments.data}).\n")
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    # The slowest first, so that no process is left alone with them.
    names = sorted(arguments.samplers, key=lambda name: name != "GP")
    jobs = [
        (name, dataset, seed, arguments.data, *arguments.evolution)
        for name in names
        for dataset in arguments.datasets
        for seed in seeds
    ]
    runs: dict[Dataset, dict[str, list[list[float]]]] = {
        dataset: {name: [] for name in arguments.samplers} for dataset in arguments.datasets
    }
    seconds: dict[Dataset, dict[str, list[float]]] = {
        dataset: {name: [] for name in arguments.samplers} for dataset in arguments.datasets
    }
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        for name, dataset, values, took in pool.imap_unordered(_job, jobs):
            runs[dataset][name].append(values)
            seconds[dataset][name].append(took)
    for dataset in arguments.datasets:
        report(dataset, runs[dataset], seconds[dataset])


if __name__ == "__main__":
    main()
