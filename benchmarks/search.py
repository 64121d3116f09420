"""How quickly samplers find good architectures: a space as a study, its proxies read from a table.

    make bench-search
    python -m benchmarks.search --samplers AZNAS Random --seeds 40
    python -m benchmarks.search --space macro
    python -m benchmarks.gauntlet --all --spaces nb201 macro  # then it reads the default proxies

The pick of a search is the trial that ranks first by S among the trials of its own study. Prints its mean place (1 is
the best) among all architectures after so many trials, over several seeds: ranked by S, and by trained value. The
proxies are the default's where the gauntlet's tables (``--scores``) hold all networks, and otherwise the paper's four,
read from the reference data.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import optuna
from scipy.stats import rankdata

import optuna_aznas as az
from benchmarks.shared_data import DATA, load_proxies
from optuna_aznas.spaces.nas_bench_201 import OPERATIONS, PARAMETERS, from_params, to_arch

CHECKPOINTS = (100, 300, 1000)

SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "AZNAS": lambda seed: az.AZNASSampler(seed=seed),
    "Random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "NSGAII": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "TPE": lambda seed: optuna.samplers.TPESampler(seed=seed),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a search's proxies come from.

    Attributes:
        space: ``"nb201"`` or ``"macro"``.
        data: Folder of the reference data.
        tables: Folder of the gauntlet's tables; ``None`` for the paper's four proxies of the reference data.
    """

    space: str
    data: Path = DATA
    tables: Path | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """The proxies of every architecture of a space, and its place among all by S and by trained value; ties share."""

    proxies: Mapping[str, tuple[float, ...]]
    by_s: Mapping[str, float]
    by_value: Mapping[str, float]


@cache
def table(source: Source) -> Table:
    """Return the table of a source."""
    from benchmarks.gauntlet import spaces

    space = spaces.load(source.space, source.data)
    scores = load_proxies(source.space, source.data, source.tables)
    proxies = {key: tuple(row.values()) for key, row in scores.items()}
    missing = len(space.keys) - len(proxies.keys() & set(space.keys))
    if missing:
        raise ValueError(f"The table of {source.space} lacks {missing} of {len(space.keys)} architectures.")
    trained = next(iter(space.load_truths().values()))
    s = rankdata(-az.aggregate([proxies[key] for key in space.keys]))
    value = rankdata([-trained[key] for key in space.keys])
    return Table(proxies, dict(zip(space.keys, s, strict=True)), dict(zip(space.keys, value, strict=True)))


def architecture(space: str, choose: Callable[[str, tuple[str, ...]], str]) -> str:
    """Return the key of the architecture whose parameters ``choose`` gives, by name and choices."""
    if space == "nb201":
        return to_arch(from_params({name: choose(name, OPERATIONS) for name in PARAMETERS}))
    return "".join(choose(f"layer{i}", ("0", "1", "2")) for i in range(8))


def search(source: Source, sampler: optuna.samplers.BaseSampler, n_trials: int) -> optuna.Study:
    """Run one search whose objective reads the table."""
    proxies = table(source).proxies

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        return proxies[architecture(source.space, lambda name, choices: trial.suggest_categorical(name, choices))]

    directions = ["maximize"] * len(next(iter(proxies.values())))
    study = optuna.create_study(directions=directions, sampler=sampler)
    study.optimize(objective, n_trials=n_trials)
    return study


def places_of_picks(source: Source, study: optuna.Study) -> list[tuple[float, float]]:
    """Return the pick's places, by S and by trained value, at each checkpoint that the study has reached."""
    places = []
    trials, known = study.trials, table(source)
    for n in CHECKPOINTS:
        if n <= len(trials):
            pick = trials[int(np.argmax(az.aggregate([trial.values for trial in trials[:n]])))]
            key = architecture(source.space, lambda name, choices, pick=pick: str(pick.params[name]))  # type: ignore[misc]
            places.append((known.by_s[key], known.by_value[key]))
    return places


def _run(job: tuple[Source, str, int, int]) -> tuple[str, list[tuple[float, float]], float]:
    source, name, seed, n_trials = job
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table(source)
    start = time.perf_counter()
    study = search(source, SAMPLERS[name](seed), n_trials)
    return name, places_of_picks(source, study), (time.perf_counter() - start) / n_trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", choices=("nb201", "macro"), default="nb201")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, choices=CHECKPOINTS, default=CHECKPOINTS[-1])
    parser.add_argument("--workers", type=int, default=2, help="processes side by side")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the reference data")
    parser.add_argument("--scores", type=Path, default=Path("gauntlet"), help="folder of the gauntlet's tables")
    arguments = parser.parse_args()
    source = Source(arguments.space, arguments.data, arguments.scores)
    try:
        known = table(source)
        print("The default proxies, from the gauntlet's table:")
    except (OSError, ValueError) as error:
        print(f"The paper's four proxies, as the gauntlet has no table of all networks ({error}):")
        source = dataclasses.replace(source, tables=None)
        try:
            known = table(source)
        except (OSError, ValueError) as missing:
            parser.exit(1, f"The score table is not there: {missing}\n")
    jobs = [(source, name, seed, arguments.trials) for name in arguments.samplers for seed in range(arguments.seeds)]
    results: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in arguments.samplers}
    seconds: dict[str, list[float]] = {name: [] for name in arguments.samplers}
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        for name, places, seconds_per_trial in pool.imap_unordered(_run, jobs):
            results[name].append(places)
            seconds[name].append(seconds_per_trial)
    shown = [n for n in CHECKPOINTS if n <= arguments.trials]
    for k, by in enumerate(("S", "trained value")):
        print(f"Place of the pick among all {len(known.by_s):,} by {by}, mean (standard error) over", end=" ")
        print(f"{arguments.seeds} seeds, after trials:")
        print(f"{'sampler':10s}" + "".join(f"{n:>18d}" for n in shown) + f"{'ms a trial':>14s}")
        for name, found in results.items():
            places = np.array(found)[:, :, k]
            mean, error = places.mean(axis=0), places.std(axis=0) / np.sqrt(len(places))
            cells = "".join(f"{f'{m:.1f} ({e:.1f})':>18s}" for m, e in zip(mean, error, strict=True))
            print(f"{name:10s}{cells}{1000 * np.mean(seconds[name]):>14.1f}")


if __name__ == "__main__":
    main()
