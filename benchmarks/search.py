"""How quickly samplers find good architectures: NAS-Bench-201 as a study, its proxies read from a table.

    make bench-search
    python -m benchmarks.search --samplers AZNAS Random --seeds 40

The pick of a search is the trial that ranks first by S among the trials of its own study. Prints its mean place (1 is
the best) among all 15,625 architectures ranked by S, after so many trials, over several seeds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import optuna
from scipy.stats import rankdata

import optuna_aznas as az
from benchmarks.shared_data import DATA, PROXIES, load_scores, macs
from optuna_aznas.spaces.nas_bench_201 import OPERATIONS, PARAMETERS, from_params, to_arch

CHECKPOINTS = (100, 300, 1000)

SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "AZNAS": lambda seed: az.AZNASSampler(seed=seed),
    "Random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "NSGAII": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "TPE": lambda seed: optuna.samplers.TPESampler(seed=seed),
}


@cache
def table() -> tuple[dict[str, tuple[float, ...]], dict[str, float]]:
    """Return the four proxies of every architecture, and its place by S among all; ties share their mean."""
    proxies = {arch: (*scores, macs(arch)) for arch, scores in load_scores(DATA, "table").items()}
    s = az.aggregate(list(proxies.values()))
    return proxies, dict(zip(proxies, rankdata(-s).tolist(), strict=True))


def search(sampler: optuna.samplers.BaseSampler, n_trials: int) -> optuna.Study:
    """Run one search whose objective reads the table."""
    proxies, _ = table()

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        operations = {name: trial.suggest_categorical(name, OPERATIONS) for name in PARAMETERS}
        return proxies[to_arch(from_params(operations))]

    study = optuna.create_study(directions=["maximize"] * len(PROXIES), sampler=sampler)
    study.optimize(objective, n_trials=n_trials)
    return study


def places_of_picks(study: optuna.Study) -> list[float]:
    """Return the place of the pick at each checkpoint that the study has reached."""
    places = []
    trials = study.trials
    for n in CHECKPOINTS:
        if n <= len(trials):
            pick = trials[int(np.argmax(az.aggregate([trial.values for trial in trials[:n]])))]
            places.append(table()[1][to_arch(from_params(pick.params))])
    return places


def _run(job: tuple[str, int, int]) -> tuple[str, list[float], float]:
    name, seed, n_trials = job
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    start = time.perf_counter()
    study = search(SAMPLERS[name](seed), n_trials)
    return name, places_of_picks(study), (time.perf_counter() - start) / n_trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, choices=CHECKPOINTS, default=CHECKPOINTS[-1])
    parser.add_argument("--workers", type=int, default=2, help="processes side by side")
    arguments = parser.parse_args()
    if not (Path(DATA) / "nb201_score_table.csv.gz").exists():
        parser.exit(1, f"The score table is not there ({DATA}).\n")
    jobs = [(name, seed, arguments.trials) for name in arguments.samplers for seed in range(arguments.seeds)]
    results: dict[str, list[list[float]]] = {name: [] for name in arguments.samplers}
    seconds: dict[str, list[float]] = {name: [] for name in arguments.samplers}
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        for name, places, seconds_per_trial in pool.imap_unordered(_run, jobs):
            results[name].append(places)
            seconds[name].append(seconds_per_trial)
    shown = [n for n in CHECKPOINTS if n <= arguments.trials]
    print(f"Place of the pick among all 15,625 by S, mean (standard error) over {arguments.seeds} seeds, after trials:")
    print(f"{'sampler':10s}" + "".join(f"{n:>18d}" for n in shown) + f"{'ms a trial':>14s}")
    for name, places in results.items():
        mean, error = np.mean(places, axis=0), np.std(places, axis=0) / np.sqrt(len(places))
        cells = "".join(f"{f'{m:.1f} ({e:.1f})':>18s}" for m, e in zip(mean, error, strict=True))
        print(f"{name:10s}{cells}{1000 * np.mean(seconds[name]):>14.1f}")


if __name__ == "__main__":
    main()
