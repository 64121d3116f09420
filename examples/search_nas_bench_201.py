"""Search NAS-Bench-201 without training a network, as an Optuna study, then train twenty of its networks.

    python examples/search_nas_bench_201.py                 # two minutes
    python examples/search_nas_bench_201.py --seconds 600   # continues the study

First a study scores networks by proxies. Then a second study "trains" twenty networks: their published CIFAR-10
accuracies are looked up. It begins with the best of the first, and proposes the others from the accuracies so far.

The search is stored in an SQLite file, with figures and notes for optuna-dashboard. Running the script again continues
the search.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import get_args

import numpy as np
import optuna
import torch
from scipy.stats import kendalltau, spearmanr

import optuna_aznas as az
from optuna_aznas.spaces.nas_bench_201 import from_params, to_arch
from optuna_aznas.spaces.nas_bench_201_results import Dataset, load_results

DATASETS = get_args(Dataset)
TOP = 5  # networks with the highest rank scores that are trained first


def search(study: optuna.Study, seconds: float | None, trials: int | None, device: str) -> None:
    """Add trials to the study until the time or the number of trials is reached, or until Ctrl-C."""
    evaluator = az.ProxyEvaluator(input_shape=(3, 32, 32), device=device)
    torch.set_num_threads(1)  # enough for networks this small, and a busy machine slows several threads down by far

    def objective(trial: optuna.Trial) -> az.ProxyScores:
        return evaluator(az.spaces.nas_bench_201.build(trial))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of the progress bar
        try:
            study.optimize(objective, n_trials=trials, timeout=seconds, show_progress_bar=True)
        except KeyboardInterrupt:
            print("\nInterrupted; what is finished is in the study.", file=sys.stderr)


def report(study: optuna.Study) -> None:
    """Print the leaderboard with true accuracies, and the correlation of the rank score with them."""
    results = {dataset: load_results(dataset) for dataset in DATASETS}
    everyone = {dataset: np.array([r.accuracy for r in results[dataset].values()]) for dataset in DATASETS}

    def place(accuracy: float, dataset: str) -> int:
        return int((everyone[dataset] > accuracy).sum()) + 1

    board = az.leaderboard(study, n=5)
    print(f"\nThe best of {len(az.rank_scores(study))} networks by rank score S, none of them trained, and their")
    print("true accuracy in percent with its place among all 15,625 (ImageNet is ImageNet16-120):\n")
    print(
        f"{'':>2}  {'trial':>5}  {'S':>6}" + "".join(f"  {name:>16}" for name in ("CIFAR-10", "CIFAR-100", "ImageNet"))
    )
    for entry in board:
        arch = to_arch(from_params(entry.params))
        line = f"{entry.place:>2}  {entry.number:>5}  {entry.rank_score:6.2f}"
        for dataset in DATASETS:
            accuracy = results[dataset][arch].accuracy
            line += f"  {accuracy:5.2f} ({place(accuracy, dataset):>5}.)".rjust(18)
        print(f"{line}  {arch}")

    ranked = az.rank_scores(study)
    archs = [to_arch(from_params(trial.params)) for trial in study.trials if trial.number in ranked]
    print(f"\n{'':34}" + "".join(f"{name:>10}" for name in ("CIFAR-10", "CIFAR-100", "ImageNet")))
    for name, correlation in (("Kendall's tau", kendalltau), ("Spearman's rho", spearmanr)):
        values = [
            correlation(list(ranked.values()), [results[d][a].accuracy for a in archs]).statistic for d in DATASETS
        ]
        print(f"{name + ' of S, all searched':34}" + "".join(f"{value:10.3f}" for value in values))
    print(f"{'best accuracy there is':34}" + "".join(f"{everyone[dataset].max():10.2f}" for dataset in DATASETS))
    print(
        "(Over the searched networks, most of them good ones; over all 15,625, S has a tau of about 0.79 on CIFAR-10.)"
    )


def train(searched: optuna.Study, trainings: int, seed: int | None, device: str) -> None:
    """Look up the accuracies of so many networks, chosen one after the other, and print the best and its place."""
    evaluator = az.ProxyEvaluator(input_shape=(3, 32, 32), device=device)
    accuracies = {arch: result.accuracy for arch, result in load_results("cifar10").items()}

    def objective(trial: optuna.Trial) -> float:
        az.record(trial, evaluator(az.spaces.nas_bench_201.build(trial)))
        return accuracies[to_arch(from_params(trial.params))]

    study = optuna.create_study(direction="maximize", sampler=az.AZNASSampler(seed=seed))
    for best in az.best_trials(searched, n=TOP):
        study.enqueue_trial(best.params)
    study.optimize(objective, n_trials=trainings)

    everyone = np.array(list(accuracies.values()))
    random = np.random.default_rng(0).choice(everyone, (10_000, trainings)).max(axis=1).mean()
    print(
        f"\nNow {trainings} networks are trained on CIFAR-10: the {TOP} best by S, then those that the sampler proposes"
    )
    print("from the accuracies so far. (The accuracies are looked up in the benchmark; nothing is trained here.)\n")
    for name, accuracy in (
        (f"best of the {trainings}", study.best_value),
        (f"best of {trainings} random ones", random),
    ):
        print(f"{name:22} {accuracy:6.2f}, place {int((everyone > accuracy).sum()) + 1:>4} of {len(everyone)}")
    print("(Random ones: the mean over 10,000 draws.)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=110, help="how long to search (default: 110)")
    parser.add_argument("--trials", type=int, help="how many networks to score, instead of --seconds")
    parser.add_argument(
        "--storage", default="sqlite:///nas_bench_201.db", help="where the study lies (default: %(default)s)"
    )
    parser.add_argument("--study-name", default="nas_bench_201")
    parser.add_argument("--trainings", type=int, default=20, help="how many networks to train (default: %(default)s)")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = az.create_study(
        study_name=options.study_name, storage=options.storage, load_if_exists=True, seed=options.seed
    )
    before = len(study.trials)
    if before:
        print(f"Continuing study {options.study_name!r} in {options.storage}: {before} trials so far.")
    search(study, None if options.trials else options.seconds, options.trials, options.device)
    report(study)
    train(study, options.trainings, options.seed, options.device)
    az.dashboard.publish(study)
    print(f"\nLook at the search:  .venv/bin/optuna-aznas dashboard --storage {options.storage}")


if __name__ == "__main__":
    main()
