"""How well the proxies rank NAS-Bench-201, and how well they agree with the reference scores.

    make bench-ranking                                   # the first 1,000 networks of the reference
    python benchmarks/ranking.py --networks all    # all 15,625; hours on a CPU, minutes on a GPU

Prints, for each proxy, Spearman's rho with the reference's scores of the same networks, and Kendall's tau and
Spearman's rho of each proxy and of their aggregation with the true accuracies on the three data sets, beside what the
reference's scores give.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from scipy.stats import kendalltau, spearmanr

from optuna_aznas.aggregation import aggregate
from optuna_aznas.spaces.nas_bench_201 import Network, all_architectures, from_arch, to_arch
from optuna_aznas.spaces.nas_bench_201_results import Dataset, load_results

PROXIES = ("expressivity", "progressivity", "trainability", "complexity")
DATA = Path(__file__).parents[2] / "shared" / "data"
TABLES = {"reference": "nb201_reference_scores.csv.gz", "table": "nb201_score_table.csv.gz"}


def load_scores(data: Path, table: str = "reference") -> dict[str, tuple[float, ...]]:
    """Return (expressivity, progressivity, trainability) by architecture string, in the order of the file."""
    return read_table(data / TABLES[table], PROXIES[:3])


def read_table(path: Path, columns: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Return the named columns of a csv.gz by architecture string, in the order of the file."""
    with gzip.open(path, "rt") as file:
        return {row["arch"]: tuple(float(row[name]) for name in columns) for row in csv.DictReader(file)}


def macs(arch: str) -> float:
    """Multiply-accumulates that depend on the architecture, in closed form: 15 cells of equal cost (the rest is
    constant).
    """
    cost = {"nor_conv_3x3": 9, "nor_conv_1x1": 1}
    return 15 * sum(cost.get(operation, 0) for operation in from_arch(arch)) * 16 * 16 * 32 * 32


def _score(job: tuple[str, dict[str, object], int]) -> tuple[str, tuple[float, ...]]:
    import torch

    from optuna_aznas import ProxyEvaluator

    arch, settings, threads = job
    if threads:
        torch.set_num_threads(threads)
    return arch, tuple(ProxyEvaluator((3, 32, 32), **settings)(Network(from_arch(arch))))


def score_all(
    archs: Sequence[str], settings: dict[str, object], workers: int
) -> Iterator[tuple[str, tuple[float, ...]]]:
    jobs = zip(archs, itertools.repeat(settings), itertools.repeat(1 if workers > 1 else 0))
    if workers == 1:
        yield from map(_score, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(_score, jobs, chunksize=4)


def correlation_table(columns: dict[str, np.ndarray], archs: Sequence[str]) -> None:
    print(f"{'':34s}" + "".join(f"{name:>18s}" for name in get_args(Dataset)))
    for name, column in columns.items():
        line = f"{name:34s}"
        for dataset in get_args(Dataset):
            truth = [load_results(dataset)[arch].accuracy for arch in archs]
            line += f"   {kendalltau(column, truth).statistic:6.4f} / {spearmanr(column, truth).statistic:6.4f}"
        print(line)


def report(scored: dict[str, tuple[float, ...]], data: Path) -> None:
    archs = list(scored)
    ours = np.array([scored[arch] for arch in archs])
    print(f"\nKendall's tau / Spearman's rho with validation accuracy, {len(archs)} networks:")
    columns = {name: ours[:, i] for i, name in enumerate(PROXIES)} | {"S (aggregated)": aggregate(ours)}
    correlation_table(columns, archs)
    for table in TABLES:
        if not (data / TABLES[table]).exists():
            print(f"\n({data / TABLES[table]} is not there: no comparison)")
            continue
        reference = load_scores(data, table)
        shared = [arch for arch in archs if arch in reference]
        if not shared:
            continue
        theirs = np.array([(*reference[arch], macs(arch)) for arch in shared])
        mine = np.array([scored[arch] for arch in shared])
        print(f"\nAgainst {TABLES[table]}, the {len(shared)} networks in both:")
        for i, name in enumerate(PROXIES[:3]):
            rho = spearmanr(mine[:, i], theirs[:, i]).statistic
            here, there = np.isinf(mine[:, i]).sum(), np.isinf(theirs[:, i]).sum()
            print(f"  rho of {name:14s} {rho:.4f}   (-inf: {here} here, {there} there)")
        correlation_table({"S here": aggregate(mine), "S there": aggregate(theirs)}, shared)


def report_seeds(runs: list[dict[str, tuple[float, ...]]], data: Path) -> None:
    """Print how tau of the aggregation with CIFAR-10 accuracy varies from seed to seed, beside the reference's one
    seed.
    """
    reference = load_scores(data) if (data / TABLES["reference"]).exists() else {}
    archs = [arch for arch in runs[0] if arch in reference] or list(runs[0])
    truth = [load_results("cifar10")[arch].accuracy for arch in archs]

    def tau(table: list[tuple[float, ...]]) -> float:
        return kendalltau(aggregate(table), truth).statistic

    taus = [tau([run[arch] for arch in archs]) for run in runs]
    print(f"\ntau of S with CIFAR-10 accuracy, seed by seed, {len(archs)} networks: {np.round(taus, 4).tolist()}")
    print(f"mean {np.mean(taus):.4f}, standard deviation {np.std(taus, ddof=1):.4f}", end="")
    if archs[0] in reference:
        print(f"; the reference (one seed) {tau([(*reference[arch], macs(arch)) for arch in archs]):.4f}", end="")
    print()


def check_parameters() -> None:
    """Build all 15,625 networks and compare their parameter counts with the benchmark's."""
    results = load_results("cifar10")
    counts = {"equal": 0, "among two listed": 0, "different": 0}
    for operations in all_architectures():
        size = round(sum(p.numel() for p in Network(operations).parameters()) / 1e6, 6)
        listed = {round(s, 6) for s in results[to_arch(operations)].model_sizes}
        counts["different" if size not in listed else "equal" if len(listed) == 1 else "among two listed"] += 1
    print(f"parameter counts, CIFAR-10: {counts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks",
        default="1000",
        help="so many of the reference's networks, from the first; or 'all' (default: 1000)",
    )
    parser.add_argument("--part", default="1/1", help="only part i of n, as 'i/n': every n-th network")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--jacobian", default="moment", choices=["moment", "least-squares"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="so many seeds, one after the other, from --seed on")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1, help="processes (useful on a GPU)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the reference scores")
    parser.add_argument("--out", type=Path, help="write the scores to this csv.gz")
    parser.add_argument("--scored", type=Path, nargs="*", help="do not score: read what --out wrote")
    parser.add_argument("--parameters", action="store_true", help="only compare all parameter counts")
    options = parser.parse_args()
    if options.parameters:
        check_parameters()
        return

    if options.scored:
        scored = {}
        for path in options.scored:
            scored |= read_table(path, PROXIES)
        report(scored, options.data)
        return
    if options.networks == "all":
        archs = [to_arch(operations) for operations in all_architectures()]
    else:
        archs = list(load_scores(options.data))[: int(options.networks)]
    i, n = map(int, options.part.split("/"))
    archs = archs[i - 1 :: n]
    settings = {name: getattr(options, name) for name in ("batch_size", "jacobian", "repeats", "device")}
    runs = []
    for seed in range(options.seed, options.seed + options.seeds):
        print(f"{len(archs)} networks, {settings}, seed {seed}, {options.workers} worker(s)")
        start = time.perf_counter()
        scored = {}
        for arch, scores in score_all(archs, settings | {"seed": seed}, options.workers):
            scored[arch] = scores
            if len(scored) % 500 == 0:
                print(f"  {len(scored)} in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        seconds = time.perf_counter() - start
        per_network, per_second = 1000 * seconds / len(archs), len(archs) / seconds
        print(f"{seconds:.0f} s, {per_network:.0f} ms a network, {per_second:.1f} networks a second")
        runs.append({arch: scored[arch] for arch in archs})
    if options.out:
        with gzip.open(options.out, "wt") as file:
            writer = csv.writer(file)
            writer.writerow(("arch", *PROXIES))
            writer.writerows((arch, *scores) for arch, scores in runs[0].items())
    report(runs[0], options.data)
    if len(runs) > 1:
        report_seeds(runs, options.data)


if __name__ == "__main__":
    main()
