"""How well trained networks improve the ranking: NAS-Bench-201, tau on the networks that were not trained.

    make bench-learned
    python -m benchmarks.learned --datasets cifar10 --draws 3 --jobs 16

All 15,625 networks are scored (the table of scores, of four proxies; with --scores, of the six default ones, as
``python -m benchmarks.gauntlet --all`` makes it), k random ones are trained (their published validation accuracy is
known), and all others are ranked. Prints Kendall's tau of that ranking with their accuracies: the mean and the worst
of some draws of the k networks.

* plain: the non-linear aggregation, S.
* learned: LearnedAggregation, by scores and parameters; "scores only": without the architecture's parameters;
  "with graph": with features of the networks' graphs; "graph only": with these instead of the parameters.
* forest: scikit-learn's random forest (500 trees, a third of the features at each split) on what `learned` is given:
  ranks, log-ranks, one-hot operations and how often each occurs, and S.
* GP: scikit-learn's Gaussian process on the same, standardised, with a Matern-5/2 kernel and noise, by maximum
  likelihood with two restarts; constant mean.

The settings of `learned` were chosen on CIFAR-10, with draws of other seeds (from 100 on). With --plain it prints a
table of the variants of plain aggregation instead: linear, non-linear, with a floor, and all with a proxy too many.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from optuna.distributions import CategoricalDistribution
from scipy.stats import kendalltau, rankdata

from benchmarks.shared_data import DATA, PROXIES, load_proxies
from optuna_aznas.aggregation import LearnedAggregation, Parameters, aggregate
from optuna_aznas.proxies.features.operators import INPUT, OperatorGraph, graph_features
from optuna_aznas.proxies.registry import DEFAULT
from optuna_aznas.spaces.nas_bench_201 import EDGES, OPERATIONS, PARAMETERS, from_arch
from optuna_aznas.spaces.nas_bench_201_results import Dataset, load_results
from optuna_aznas.study.encoding import Encoder

TRAINED = (0, 8, 16, 32, 64, 128, 256, 512)

Floats = npt.NDArray[np.float64]


class Table(NamedTuple):
    """Scores (n, m), encoded operations, features (n, f) for regressors, and features of the graphs (n, g)."""

    archs: list[str]
    scores: Floats
    parameters: Parameters
    features: Floats
    graph: Floats


def graph_of(arch: str) -> OperatorGraph:
    """Return the operators of a NAS-Bench-201 network without building it, as the evaluator finds them."""
    kinds: list[str] = [INPUT]
    before: list[tuple[int, ...]] = [()]

    def run(kind: str, *given: int | None) -> int | None:
        """Add an operator and return its number; ``None`` stands for a result that does not depend on the input."""
        known = [number for number in given if number is not None]
        if not known or (kind == "add" and len(known) == 1):
            return known[0] if known else None
        kinds.append(kind)
        before.append(tuple(dict.fromkeys(known)))
        return len(kinds) - 1

    def chain(x: int | None, *names: str) -> int | None:
        for name in names:
            x = run(name, x)
        return x

    operators = {
        "nor_conv_3x3": ("activation", "conv_3x3", "norm"),
        "nor_conv_1x1": ("activation", "conv_1x1", "norm"),
        "avg_pool_3x3": ("avg_pool",),
        "skip_connect": (),
    }
    edges = dict(zip(EDGES, from_arch(arch), strict=True))
    x = chain(0, "conv_3x3", "norm")
    for stage in range(3):
        if stage:
            shortcut = chain(x, "avg_pool", "conv_1x1")
            x = run("add", shortcut, chain(x, *operators["nor_conv_3x3"] * 2))
        for _ in range(5):
            nodes: list[int | None] = [x]
            for j in (1, 2, 3):
                results = [chain(nodes[i], *operators[edges[i, j]]) for i in range(j) if edges[i, j] != "none"]
                total = results[0] if results else None
                for result in results[1:]:
                    total = run("add", total, result)
                nodes.append(total)
            x = nodes[3]
    x = chain(x, "norm", "activation", "avg_pool", "linear")
    return OperatorGraph.ending_with(len(kinds) - 1 if x is None else x, kinds, before)


@functools.cache
def table(data: Path, folder: Path | None = None) -> Table:
    scores = load_proxies("nb201", data, folder)
    encode = Encoder(dict.fromkeys(PARAMETERS, CategoricalDistribution(OPERATIONS)))
    operations = [dict(zip(PARAMETERS, from_arch(arch), strict=True)) for arch in scores]
    parameters = encode(operations)
    values = np.array([list(row.values()) for row in scores.values()])
    share = rankdata(values, axis=0) / len(values)
    features = np.hstack([share, np.log(share), parameters.single, parameters.pooled, aggregate(values)[:, np.newaxis]])
    graph = np.array([list(graph_features(graph_of(arch)).values()) for arch in scores])
    return Table(list(scores), values, parameters, features[:, np.ptp(features, axis=0) > 0], graph)


def plain(data: Table, results: Floats, seed: int) -> Floats:
    return aggregate(data.scores)


def learned(data: Table, results: Floats, seed: int) -> Floats:
    return LearnedAggregation().predict(data.scores, results, data.parameters).mean


def learned_with_graph(data: Table, results: Floats, seed: int) -> Floats:
    return LearnedAggregation().predict(data.scores, results, data.parameters, graph=data.graph).mean


def learned_from_scores_and_graph(data: Table, results: Floats, seed: int) -> Floats:
    return LearnedAggregation().predict(data.scores, results, graph=data.graph).mean


def learned_from_scores(data: Table, results: Floats, seed: int) -> Floats:
    return LearnedAggregation().predict(data.scores, results).mean


def forest(data: Table, results: Floats, seed: int) -> Floats:
    from sklearn.ensemble import RandomForestRegressor

    known = ~np.isnan(results)
    model = RandomForestRegressor(500, max_features=1 / 3, random_state=seed)
    return model.fit(data.features[known], rankdata(results[known])).predict(data.features)


def process(data: Table, results: Floats, seed: int) -> Floats:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
    from sklearn.preprocessing import StandardScaler

    known = ~np.isnan(results)
    x = StandardScaler().fit_transform(data.features)
    kernel = ConstantKernel(1.0) * Matern(np.sqrt(x.shape[1]), (1e-1, 1e3), nu=2.5) + WhiteKernel(0.1)
    model = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x[known], rankdata(results[known])).predict(x)


METHODS: dict[str, Callable[[Table, Floats, int], Floats]] = {
    "plain": plain,
    "learned": learned,
    "with graph": learned_with_graph,
    "graph only": learned_from_scores_and_graph,
    "scores only": learned_from_scores,
    "forest": forest,
    "GP": process,
}


def _job(job: tuple[str, Dataset, int, int, Path, Path | None]) -> tuple[str, Dataset, int, float, float]:
    """Return Kendall's tau on the networks that are not trained, and the seconds it took."""
    name, dataset, k, seed, *folders = job
    data = table(*folders)
    accuracy = np.array([load_results(dataset)[arch].accuracy for arch in data.archs])
    trained = np.random.default_rng([seed, k]).permutation(len(accuracy))[:k]
    results = np.full(len(accuracy), np.nan)
    results[trained] = accuracy[trained]
    unseen = np.isnan(results)
    start = time.perf_counter()
    score = METHODS[name](data, results, seed)
    seconds = time.perf_counter() - start
    return name, dataset, k, float(kendalltau(score[unseen], accuracy[unseen]).statistic), seconds


def learning_curves(arguments: argparse.Namespace) -> None:
    jobs = [
        (name, dataset, k, seed, arguments.data, arguments.scores)
        for k in sorted(arguments.trained, reverse=True)  # the slowest first
        for name in arguments.methods
        for dataset in arguments.datasets
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.draws)
        if k or name not in ("forest", "GP")
    ]
    taus: dict[tuple[str, str, int], list[float]] = {}
    seconds: dict[tuple[str, int], list[float]] = {}
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        for name, dataset, k, tau, took in pool.imap_unordered(_job, jobs):
            taus.setdefault((name, dataset, k), []).append(tau)
            seconds.setdefault((name, k), []).append(took)
    columns = "".join(f"{k:>16d}" for k in arguments.trained)
    for dataset in arguments.datasets:
        print(f"\n{dataset}: tau on unseen networks by trained ones, mean (worst) of {arguments.draws} draws")
        print(f"{'':12s}{columns}")
        for name in arguments.methods:
            found = [taus.get((name, dataset, k)) for k in arguments.trained]
            cells = (f"{np.mean(t):.4f} ({min(t):.3f})" if t else "-" for t in found)
            print(f"{name:12s}" + "".join(f"{cell:>16s}" for cell in cells))
    print(f"\nSeconds to learn from k and rank all\n{'':12s}{columns}")
    for name in arguments.methods:
        took = [seconds.get((name, k)) for k in arguments.trained]
        print(f"{name:12s}" + "".join(f"{f'{np.mean(t):.2f}' if t else '-':>16s}" for t in took))


def plain_variants(arguments: argparse.Namespace) -> None:
    data, rng = table(arguments.data, arguments.scores), np.random.default_rng(0)
    n = len(data.archs)
    score_tables = {
        "as they are": data.scores,
        "and a random one": np.hstack([data.scores, rng.normal(size=(n, 1))]),
        "and one of them twice": np.hstack([data.scores, data.scores[:, 2:3]]),
        "and one of them negated": np.hstack([data.scores, -data.scores[:, 2:3]]),
        "5% of scores lost (-inf)": np.where(rng.random(data.scores.shape) < 0.05, -np.inf, data.scores),
    }
    variants: dict[str, Callable[[Floats], Floats]] = {
        "linear": lambda t: rankdata(t, axis=0).sum(axis=1),
        "non-linear": aggregate,
        **{f"floor {f}": functools.partial(aggregate, floor=f) for f in (0.01, 0.03, 0.1, 0.2)},
    }
    for name, scores in score_tables.items():
        print(f"\n{name}: tau with the accuracies of all networks\n{'':12s}" + "".join(f"{d:>12s}" for d in DATASETS))
        for variant, function in variants.items():
            s = function(scores)
            truth = ([load_results(dataset)[arch].accuracy for arch in data.archs] for dataset in DATASETS)
            print(f"{variant:12s}" + "".join(f"{kendalltau(s, t).statistic:>12.4f}" for t in truth))


DATASETS: tuple[Dataset, ...] = get_args(Dataset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--trained", type=int, nargs="+", default=list(TRAINED))
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="variants of plain aggregation instead")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the score table")
    parser.add_argument("--scores", type=Path, help="folder of tables of six proxies; by default four of --data")
    arguments = parser.parse_args()
    print("proxies:", ", ".join(PROXIES if arguments.scores is None else DEFAULT))
    if not (arguments.data / "nb201_score_table.csv.gz").exists():
        parser.exit(1, f"The score table is not there ({arguments.data}).\n")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes
    if arguments.plain:
        plain_variants(arguments)
    else:
        learning_curves(arguments)


if __name__ == "__main__":
    main()
