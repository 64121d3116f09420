"""How many trainings it takes to find a good network: searches in tables of real trainings.

    make bench-trainings
    python -m benchmarks.trainings --tables hpolib_protein_structure --methods AZNAS TPE --seeds 5

Each trial is one training, looked up in a table (:mod:`benchmarks.training_tables`): NAS-Bench-201 on three data sets,
NAS-Bench-Macro, and twelve tables in which hyperparameters were varied together with the architecture. The value of a
trial is the mean over the table's trainings of that configuration, or, with --noise, one of them drawn at random. With
--workers n, n trials run at the same time: each is proposed while the n - 1 before it have no value yet.

Prints, for each table, the mean over the seeds of the share of all configurations, in percent, that beat the incumbent
after so many trainings; for tables of architectures alone, too, the median of the trainings until the best accuracy was
within 0.3 points of the best there is; a search that did not get there counts as 101. The incumbent is the
configuration with the best value so far. It is compared by the mean over its trainings, also with --noise.

* AZNAS, AZNAS + scorer: AZNASSampler without and with ``candidate_scorer``, which looks up candidates' proxy scores.
  "+ shuffled" and "+ negated": proxy scores exchanged at random between networks, or negated, without a scorer.
* AZNAS - proxies: the same sampler with a proxy that is the same for all networks.
* TPE (multivariate), GP and Random are Optuna's.
* Evolution: regularised evolution (Real et al., AAAI 2019): the oldest of the population dies; the best of a random
  sample is mutated in one parameter. Population 20 and sample 5, for 100 trainings; the paper's 100 and 25 would still
  be random here.

Finished searches of the other methods are kept in a folder outside the repository (AZNAS_BENCHMARK_CACHE) and not
repeated. The settings of AZNASSampler were chosen on the tables of ``CHOSEN_ON`` and on NAS-Bench-201's CIFAR-10.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution

import optuna_aznas as az
from benchmarks import training_tables
from benchmarks.shared_data import DATA
from benchmarks.training_tables import ACCURACY_TABLES, CACHE, CHOSEN_ON, JOINT_TABLES, TrainingTable
from optuna_aznas.sampler.variation import mutate, sample_uniform

CHECKPOINTS = (10, 20, 40, 60, 100)
TRAININGS = CHECKPOINTS[-1]
TOLERANCE = 0.3  # points of accuracy

_Floats = npt.NDArray[np.float64]


class Search(NamedTuple):
    """One search.

    Attributes:
        rows: Positions in the table of the configurations that were trained, in order.
        values: The trials' values.
        seconds: Wall-clock seconds of the whole search.
    """

    rows: list[int]
    values: list[float]
    seconds: float

    def incumbents(self, table: TrainingTable) -> _Floats:
        """Return the mean of the incumbent's trainings after each trial."""
        best = np.maximum.accumulate(self.values)
        place = np.maximum.accumulate(np.where(self.values == best, np.arange(len(best)), 0))
        first = [self.values.index(self.values[i]) for i in place]  # of equal values the first, as in Optuna
        return table.means[np.array(self.rows)[first]]


class RegularizedEvolution(optuna.samplers.BaseSampler):
    """Proposes configurations as Real et al. do; for one worker."""

    def __init__(self, space: dict[str, BaseDistribution], seed: int, population: int = 20, sample: int = 5) -> None:
        self._space, self._sample = space, sample
        self._rng = np.random.default_rng(seed)
        self._population: deque[tuple[dict[str, Any], float]] = deque(maxlen=population)

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        if len(self._population) < (self._population.maxlen or 0):
            return {name: sample_uniform(distribution, self._rng) for name, distribution in self._space.items()}
        sample = self._rng.choice(len(self._population), self._sample, replace=False)
        child = dict(max((self._population[i] for i in sample), key=lambda member: member[1])[0])
        name = str(self._rng.choice(list(self._space)))
        return child | {name: mutate(child[name], self._space[name], self._rng)}

    def sample_independent(self, *args: Any) -> Any:
        raise AssertionError("every parameter is in the relative search space")

    def after_trial(self, study: Any, trial: Any, state: Any, values: Sequence[float] | None) -> None:
        assert values is not None
        self._population.append((trial.params, values[0]))


class TableScorer:
    """What :class:`~optuna_aznas.CandidateScorer` does, from a table: it knows the parameters of architectures, too."""

    def __init__(self, table: TrainingTable) -> None:
        self._table = table

    def __call__(self, params: dict[str, Any]) -> dict[str, float]:
        return self._table.proxy_scores(params)

    def search_space(self, draw: Callable[[BaseDistribution], Any]) -> dict[str, BaseDistribution]:
        return dict(self._table.architecture)


def _with_scorer(table: TrainingTable, seed: int) -> az.AZNASSampler:
    return az.AZNASSampler(seed=seed, candidate_scorer=TableScorer(table))


METHODS: dict[str, Callable[[TrainingTable, int], optuna.samplers.BaseSampler]] = {
    "AZNAS": lambda table, seed: az.AZNASSampler(seed=seed),
    "AZNAS + scorer": _with_scorer,
    "AZNAS - proxies": lambda table, seed: az.AZNASSampler(seed=seed),
    "AZNAS + shuffled": lambda table, seed: az.AZNASSampler(seed=seed),
    "AZNAS + negated": lambda table, seed: az.AZNASSampler(seed=seed),
    "AZNAS + scorer, shuffled": _with_scorer,
    "AZNAS + scorer, negated": _with_scorer,
    "Random": lambda table, seed: optuna.samplers.RandomSampler(seed=seed),
    "TPE": lambda table, seed: optuna.samplers.TPESampler(multivariate=True, seed=seed),
    "GP": lambda table, seed: optuna.samplers.GPSampler(seed=seed),
    "Evolution": lambda table, seed: RegularizedEvolution(table.architecture | table.hyperparameters, seed),
}
DEFAULT_METHODS = ("AZNAS", "AZNAS + scorer", "TPE", "GP", "Random", "Evolution")


def altered(table: TrainingTable, method: str, seed: int) -> TrainingTable:
    """Return the table with the proxy scores that a method is given."""
    if method.endswith("- proxies"):
        return dataclasses.replace(table, proxy_scores=lambda params: {"constant": 0.0})
    original = table.proxy_scores
    if method.endswith("negated"):
        return dataclasses.replace(table, proxy_scores=lambda params: {n: -s for n, s in original(params).items()})
    if method.endswith("shuffled"):
        values = [_values(distribution) for distribution in table.architecture.values()]
        networks = list(itertools.product(*values))
        other = dict(zip(networks, np.random.default_rng(seed).permutation(len(networks)), strict=True))

        def exchanged(params: Any) -> dict[str, float]:
            network = networks[other[tuple(params[name] for name in table.architecture)]]
            return original(dict(zip(table.architecture, network, strict=True)))

        return dataclasses.replace(table, proxy_scores=exchanged)
    return table


def _values(distribution: Any) -> list[Any]:
    choices = getattr(distribution, "choices", None)
    return list(range(distribution.low, distribution.high + 1)) if choices is None else list(choices)


class Settings(NamedTuple):
    """How trials are run.

    Attributes:
        noise: Whether a trial's value is one training, drawn at random, rather than the mean.
        workers: Number of trials that run at the same time.
        data: Folder of the reference data.
        scores: Folder of the gauntlet's tables of proxy scores.
    """

    noise: bool
    workers: int
    data: Path
    scores: Path | None


def run(method: str, name: str, seed: int, settings: Settings) -> Search:
    """Search one table by one method."""
    table = altered(training_tables.load(name, settings.data, settings.scores), method, seed)
    rng = np.random.default_rng([seed, 1])
    study = optuna.create_study(direction="maximize", sampler=METHODS[method](table, seed))
    rows: list[int] = []
    values: list[float] = []
    running: deque[tuple[optuna.Trial, float]] = deque()
    start = time.perf_counter()
    for _ in range(TRAININGS):
        if len(running) == settings.workers:
            study.tell(*running.popleft())
        trial = study.ask()
        params = table.suggest(trial, table.architecture)
        if method.startswith("AZNAS"):
            az.record(trial, table.proxy_scores(params))
        rows.append(table.row(params | table.suggest(trial, table.hyperparameters)))
        values.append(float(rng.choice(table.trainings[rows[-1]]) if settings.noise else table.means[rows[-1]]))
        running.append((trial, values[-1]))
    return Search(rows, values, time.perf_counter() - start)


def _kept(method: str, name: str, seed: int, settings: Settings) -> Search:
    """Return a search; one of another method than ours is read from the cache, if it is there."""
    if method.startswith("AZNAS"):
        return run(method, name, seed, settings)
    path = (
        CACHE
        / "searches"
        / f"{'noise' if settings.noise else 'mean'}-{settings.workers}"
        / method
        / f"{name}-{seed}.json"
    )
    if path.exists():
        return Search(*json.loads(path.read_text()))
    search = run(method, name, seed, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(search))
    temporary.replace(path)
    return search


def _job(job: tuple[str, str, int, Settings]) -> tuple[str, str, Search]:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if job[0] == "GP":
        import torch

        torch.set_num_threads(1)
    return job[0], job[1], _kept(*job)


def shares(table: TrainingTable, searches: Sequence[Search]) -> _Floats:
    """Return the mean share, in percent, of configurations ahead of the incumbent, at each checkpoint."""
    curves = np.array([search.incumbents(table) for search in searches])[:, np.array(CHECKPOINTS) - 1]
    return np.vectorize(table.share_ahead)(curves).mean(axis=0)


def trainings_to_target(table: TrainingTable, searches: Sequence[Search]) -> _Floats:
    """Return the number of trainings until the incumbent was within the tolerance of the best, for each search."""
    reached = np.array([search.incumbents(table) for search in searches]) >= table.means.max() - TOLERANCE
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1.0, TRAININGS + 1.0)


def report(
    searches: dict[tuple[str, str], list[Search]], methods: Sequence[str], names: Sequence[str], data: Path
) -> None:
    by_method: dict[str, dict[str, _Floats]] = {method: {} for method in methods}
    for name in names:
        table = training_tables.load(name, data)
        with_target = name in ACCURACY_TABLES
        counts = sorted({len(searches[method, name]) for method in methods})
        print(f"\n{name}: {len(table.means)} configurations, seeds: {' to '.join(map(str, counts))}")
        print(f"{'':25s}" + "".join(f"{n:>9d}" for n in CHECKPOINTS) + "  seconds" + "   to target" * with_target)
        for method in methods:
            found = searches[method, name]
            by_method[method][name] = shares(table, found)
            cells = "".join(f"{share:>9.3f}" for share in by_method[method][name])
            needed = f"{np.median(trainings_to_target(table, found)):>12.1f}" if with_target else ""
            print(f"{method:25s}{cells}{np.mean([search.seconds for search in found]):>9.1f}{needed}")
    for title, group in (("all joint tables", JOINT_TABLES), ("those that settings were chosen on", CHOSEN_ON)):
        present = [name for name in group if name in names]
        if len(present) < 2:
            continue
        print(f"\nMean over {len(present)} of {len(group)}: {title}")
        for method in methods:
            mean = np.mean([by_method[method][name] for name in present], axis=0)
            print(f"{method:25s}" + "".join(f"{share:>9.3f}" for share in mean))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = (*ACCURACY_TABLES, *JOINT_TABLES)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(DEFAULT_METHODS))
    parser.add_argument("--tables", nargs="+", choices=tables, default=list(tables))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--noise", action="store_true", help="a trial's value is one training, not the mean")
    parser.add_argument("--workers", type=int, default=1, help="trials that run at the same time")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the reference data")
    parser.add_argument("--scores", type=Path, help="folder of the gauntlet's tables: six proxies instead of four")
    arguments = parser.parse_args()
    settings = Settings(arguments.noise, arguments.workers, arguments.data, arguments.scores)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    jobs = [
        (method, name, seed, settings) for seed in seeds for name in arguments.tables for method in arguments.methods
    ]
    searches: dict[tuple[str, str], list[Search]] = {(m, n): [] for m in arguments.methods for n in arguments.tables}
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        for method, name, search in pool.imap_unordered(_job, jobs):
            searches[method, name].append(search)
    report(searches, arguments.methods, arguments.tables, arguments.data)


if __name__ == "__main__":
    main()
