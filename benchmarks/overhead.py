"""What choosing a trial costs, as a study grows, over what RandomSampler's trial costs.

    make bench-overhead
    python -m benchmarks.overhead --storages memory --sizes 1000 100000
    python -m benchmarks.overhead --learned

The objective does nothing but suggest ten categorical parameters (9.8 million architectures: more than the largest
study holds) and return four numbers. A study of each size is made once; the samplers then take turns at further trials
of it, so that the machine's moods meet all of them alike. Prints the median milliseconds a trial takes over
RandomSampler's, after one trial of each sampler in which it reads the study, which is stated by itself. A sampler that
takes longer than a second over a trial is left out of larger studies.

With --learned the studies are ones that train, without hyperparameters and with three: up to a fifth of the trials are
trained, the others were scored and pruned. Processor time counts; with one thread (OMP_NUM_THREADS=1).
``candidate_scorer`` costs nothing here; 200 candidates are drawn for each trial.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

import optuna_aznas as az

OPERATIONS = ("none", "skip", "conv1", "conv3", "pool")
SPACE = {f"op{i}": CategoricalDistribution(OPERATIONS) for i in range(10)}
SAMPLERS = {
    "Random": lambda: optuna.samplers.RandomSampler(seed=0),
    "AZNAS": lambda: az.AZNASSampler(seed=0),
    "NSGAII": lambda: optuna.samplers.NSGAIISampler(seed=0),
    "TPE": lambda: optuna.samplers.TPESampler(seed=0),
}
SLOW = 1000.0  # milliseconds


def add_random_trials(study: optuna.Study, n: int, rng: np.random.Generator) -> None:
    study.add_trials(
        create_trial(
            values=rng.normal(size=4).tolist(),
            params={name: OPERATIONS[rng.integers(5)] for name in SPACE},
            distributions=SPACE,
        )
        for _ in range(n)
    )


def fill(study: optuna.Study, n: int, file: Path | None) -> None:
    """Fill an empty study with ``n`` random trials."""
    rng = np.random.default_rng(0)
    if file is None:
        add_random_trials(study, n, rng)
        return
    # Optuna writes some 40 trials a second to SQLite: a first hundred are made so, and the rest are their copies.
    seed = 100
    add_random_trials(study, seed, rng)
    with sqlite3.connect(file) as database:
        columns = {
            table: [name for _, name, *_ in database.execute(f"pragma table_info({table})")]
            for table in ("trials", "trial_params", "trial_values")
        }
        for table, names in columns.items():
            own, owner = names[0], "trial_id"
            copied = [name for name in names if table == "trials" or name != own]
            for copy in range(1, n // seed):
                shift = {owner: seed * copy, "number": seed * copy}
                cells = [f"{name} + {shift[name]}" if name in shift else name for name in copied]
                if table == "trial_values":
                    cells = ["random()" if name == "value" else cell for name, cell in zip(copied, cells, strict=True)]
                database.execute(
                    f"insert into {table} ({', '.join(copied)}) select {', '.join(cells)} from {table} "
                    f"where {owner} <= {seed}"
                )


def objective(trial: optuna.Trial) -> tuple[float, ...]:
    chosen = [OPERATIONS.index(trial.suggest_categorical(name, OPERATIONS)) for name in SPACE]
    return float(sum(chosen)), float(min(chosen)), float(max(chosen)), float(chosen[0] - chosen[1])


def one_trial(study: optuna.Study) -> float:
    start = time.perf_counter()
    study.optimize(objective, n_trials=1)
    return 1000 * (time.perf_counter() - start)


def measure(size: int, storage: str, trials: int, slow: set[str]) -> None:
    """Measure one size and print a line; ``slow`` names the samplers to leave out, and is added to."""
    with tempfile.TemporaryDirectory() as folder:
        file = None if storage == "memory" else Path(folder) / "study.db"
        where = optuna.storages.InMemoryStorage() if file is None else f"sqlite:///{file}"
        filled = optuna.create_study(study_name="s", storage=where, directions=["maximize"] * 4)
        fill(filled, size, file)
        studies, first = {}, {}
        for name in SAMPLERS.keys() - slow:
            # Each with a connection of its own, as if it were alone.
            study = optuna.load_study(study_name="s", storage=where, sampler=SAMPLERS[name]())
            assert len(study.get_trials(deepcopy=False)) >= size
            first[name] = one_trial(study)
            studies[name] = study
        times: dict[str, list[float]] = {name: [] for name in studies}
        for i in range(trials):
            for name, study in studies.items():
                if i < 3 or first[name] < SLOW or name == "AZNAS":
                    times[name].append(one_trial(study))
        slow |= {name for name in times if np.median(times[name]) > SLOW}
        base = float(np.median(times["Random"]))
        line = f"{storage:8s}{size:>9,d}{base:>12.2f}"
        for name in SAMPLERS:
            if name != "Random":
                line += f"{np.median(times[name]) - base:>12.2f}" if name in times else f"{'-':>12s}"
        print(f"{line}{first['AZNAS']:>20.0f}", flush=True)


def scores_of(params: dict[str, str]) -> dict[str, float]:
    chosen = [OPERATIONS.index(choice) for choice in params.values()]
    return {"p": float(sum(chosen)), "q": float(min(chosen)), "r": float(chosen[0] - chosen[1])}


def measure_learned(trained: int, scored: int, trials: int, hyperparameters: int) -> None:
    """Measure trials of a study that trains, with so many hyperparameters, and print a line."""
    rng = np.random.default_rng(0)
    names = [f"hyperparameter{k}" for k in range(hyperparameters)]
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    for i in range(scored):
        params = {name: OPERATIONS[rng.integers(5)] for name in SPACE}
        scores = scores_of(params)
        done = i < trained
        how = {name: float(rng.random()) for name in names} if done else {}
        study.add_trial(
            create_trial(
                state=optuna.trial.TrialState.COMPLETE if done else optuna.trial.TrialState.PRUNED,
                value=scores["p"] + float(rng.normal()) - 10.0 * sum(how.values()) if done else None,
                params=params | how,
                distributions=SPACE | dict.fromkeys(how, FloatDistribution(0.0, 1.0)),
                user_attrs={"aznas:scores": scores, "aznas:architecture": list(params)},
            )
        )

    def objective(trial: optuna.Trial) -> float:
        params = {name: trial.suggest_categorical(name, OPERATIONS) for name in SPACE}
        az.record(trial, scores_of(params))
        return scores_of(params)["p"] - 10.0 * sum(trial.suggest_float(name, 0.0, 1.0) for name in names)

    line = f"{trained:>9,d}{scored:>9,d}{hyperparameters:>17d}"
    for scorer in (scores_of, None):
        study.sampler = az.AZNASSampler(seed=0, candidate_scorer=scorer)
        times = []
        for _ in range(trials + 1):
            start = time.process_time()
            study.optimize(objective, n_trials=1)
            times.append(1000 * (time.process_time() - start))
        line += f"{np.median(times[1:]):>16.0f}{max(times[1:]):>10.0f}{times[0]:>10.0f}"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument("--storages", nargs="+", choices=("memory", "sqlite"), default=["memory", "sqlite"])
    parser.add_argument("--trials", type=int, default=30, help="trials of each sampler")
    parser.add_argument("--learned", action="store_true", help="studies that train, instead")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if arguments.learned:
        print("Milliseconds of processor time a trial of AZNASSampler in a study that trains: median, longest, first")
        print(f"{'trained':>9s}{'scored':>9s}{'hyperparameters':>17s}{'with scorer':>16s}{'':20s}{'without':>16s}")
        for hyperparameters in (0, 3):
            for trained, scored in ((20, 100), (100, 1_000), (1_000, 10_000)):
                measure_learned(trained, scored, arguments.trials, hyperparameters)
        return
    print("Milliseconds a trial: RandomSampler's, and what others take over it (median).")
    print(f"{'storage':8s}{'trials':>9s}" + "".join(f"{name:>12s}" for name in SAMPLERS) + f"{'first of AZNAS':>20s}")
    for storage in arguments.storages:
        slow: set[str] = set()
        for size in sorted(arguments.sizes):
            measure(size, storage, arguments.trials, slow)


if __name__ == "__main__":
    main()
