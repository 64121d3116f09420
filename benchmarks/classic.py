"""The field's proxies on NAS-Bench-201, each by itself and assembled.

    python -m benchmarks.classic --workers 12                          # 1,000 networks; minutes on a GPU
    python -m benchmarks.classic --networks 100 --device cpu

Prints Kendall's tau and Spearman's rho of every proxy with the validation accuracies of the three data sets beside
published values (tau on CIFAR-10, all networks, on data rather than noise), and of the best aggregation against the
four of AZ-NAS. The best is chosen greedily on CIFAR-10 and one half of the networks, and reported on the other half.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from scipy.stats import kendalltau, spearmanr

from benchmarks.ranking import DATA, load_scores, read_table
from optuna_aznas.aggregation import aggregate
from optuna_aznas.spaces.nas_bench_201 import Network, all_architectures, from_arch, to_arch
from optuna_aznas.spaces.nas_bench_201_results import Dataset, load_results

#: Kendall's tau on CIFAR-10 as published (collected in the AZ-NAS and ZiCo papers).
PUBLISHED = {
    "complexity": 0.62,
    "synflow": 0.56,
    "naswot": 0.57,
    "jacobian_covariance": 0.62,
    "zico": 0.61,
    "trainable_layers": 0.63,
}
FOUR = ("expressivity", "progressivity", "trainability", "complexity")

#: No attention, and the tokens of a convolutional network are its pixels.
LEFT_OUT = ("attention", "position", "token_interaction")


def _score(job: tuple[str, tuple[str, ...], dict[str, object]]) -> tuple[str, tuple[float, ...]]:
    import torch

    from optuna_aznas import ProxyEvaluator

    torch.set_num_threads(1)
    arch, names, settings = job
    return arch, tuple(ProxyEvaluator((3, 32, 32), proxies=names, **settings)(Network(from_arch(arch), device="meta")))


def taus(columns: np.ndarray, archs: Sequence[str]) -> list[float]:
    truths = [[load_results(name)[arch].accuracy for arch in archs] for name in get_args(Dataset)]
    return [kendalltau(columns, truth).statistic for truth in truths]


def select(table: np.ndarray, names: Sequence[str], archs: Sequence[str]) -> list[int]:
    """Return the columns whose aggregation has the highest tau on CIFAR-10: one more, or one less, while that helps."""
    truth = [load_results("cifar10")[arch].accuracy for arch in archs]
    chosen, best = [names.index(name) for name in FOUR if name in names], -1.0
    while True:
        options = [[*chosen, k] for k in range(len(names)) if k not in chosen]
        options += [[k for k in chosen if k != out] for out in chosen if len(chosen) > 1]
        scored = [(kendalltau(aggregate(table[:, option]), truth).statistic, option) for option in [chosen, *options]]
        top, option = max(scored)
        if top <= best + 1e-4:
            return chosen
        best, chosen = top, option


def report(scored: dict[str, tuple[float, ...]], names: Sequence[str]) -> None:
    archs = list(scored)
    table = np.array([scored[arch] for arch in archs])
    print(f"\n{len(archs)} networks: Kendall's tau / Spearman's rho with validation accuracy")
    print(f"{'':34s}" + "".join(f"{name:>18s}" for name in get_args(Dataset)) + "   published (CIFAR-10)")
    truths = {name: [load_results(name)[arch].accuracy for arch in archs] for name in get_args(Dataset)}

    def line(label: str, column: np.ndarray) -> str:
        cells = [
            f"   {kendalltau(column, truth).statistic:6.4f} / {spearmanr(column, truth).statistic:6.4f}"
            for truth in truths.values()
        ]
        return f"{label:34s}" + "".join(cells)

    for k, name in enumerate(names):
        bad = int(np.isinf(table[:, k]).sum())
        print(line(name, table[:, k]) + f"   {PUBLISHED.get(name, '')}" + (f"   ({bad} infinite)" if bad else ""))
    four = [names.index(name) for name in FOUR if name in names]
    print(line("S: the four", aggregate(table[:, four])))
    print(line("S: all", aggregate(table)))
    order = np.random.default_rng(0).permutation(len(archs))
    half = {"chosen on": order[: len(archs) // 2], "held out": order[len(archs) // 2 :]}
    chosen = select(table[half["chosen on"]], names, [archs[i] for i in half["chosen on"]])
    print(f"\nchosen on CIFAR-10, one half: {', '.join(names[k] for k in chosen)}")
    print(line("S: chosen, all networks", aggregate(table[:, chosen])))
    for label, rows in half.items():
        there = [archs[i] for i in rows]
        for what, columns in (("the four", four), ("chosen", chosen)):
            values = taus(aggregate(table[np.ix_(rows, columns)]), there)
            print(f"  {label:10s} {what:10s}" + "".join(f"{value:9.4f}" for value in values))


def main() -> None:
    from optuna_aznas.proxies import ALL_PROXIES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="1000", help="so many of the reference's, from the first; or 'all'")
    parser.add_argument("--proxies", nargs="*", default=[name for name in ALL_PROXIES if name not in LEFT_OUT])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the reference scores")
    parser.add_argument("--out", type=Path, help="write the scores to this csv.gz")
    parser.add_argument("--scored", type=Path, help="do not score: read what --out wrote")
    options = parser.parse_args()
    names = tuple(options.proxies)
    if options.scored:
        with gzip.open(options.scored, "rt") as file:
            names = tuple(next(csv.reader(file))[1:])
        report(read_table(options.scored, names), names)
        return
    if options.networks == "all":
        archs = [to_arch(operations) for operations in all_architectures()]
    else:
        archs = list(load_scores(options.data))[: int(options.networks)]
    settings = {"batch_size": options.batch_size, "seed": options.seed, "device": options.device}
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        scored = dict(pool.imap_unordered(_score, [(arch, names, settings) for arch in archs], chunksize=4))
    seconds = time.perf_counter() - start
    print(f"{len(archs)} networks, {settings}: {seconds:.0f} s, {len(archs) / seconds:.1f} networks a second")
    scored = {arch: scored[arch] for arch in archs}
    if options.out:
        with gzip.open(options.out, "wt") as file:
            writer = csv.writer(file)
            writer.writerow(("arch", *names))
            writer.writerows((arch, *scores) for arch, scores in scored.items())
    report(scored, names)


if __name__ == "__main__":
    main()
