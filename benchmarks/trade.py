"""The trade behind the evaluator's defaults: ranking against time for each batch, estimate of the Jacobian, repeats.

    python benchmarks/trade.py --device cuda --workers 14

Each setting scores the same networks once with each of several seeds. A repeat is one more seed averaged over, so the
rows with more repeats average disjoint pairs and triples of these runs.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from benchmarks.shared_data import DATA
from benchmarks.speed import architectures, describe_machine, score_arch, warm_pool
from optuna_aznas.aggregation import aggregate
from optuna_aznas.spaces.nas_bench_201_results import load_results

BATCHES = (8, 16, 32, 64)
JACOBIANS = ("least-squares", "moment")
REPEATS = (1, 2, 3)


def milliseconds(settings: list[dict[str, object]], archs: list[str], device: str) -> list[float]:
    """Return the median time of each setting, one network after the other with all of them, building included."""
    times: list[list[float]] = [[] for _ in settings]
    for i, arch in enumerate([archs[0], *archs]):
        for own, one in zip(times, settings, strict=True):
            start = time.perf_counter()
            score_arch(("package", arch, device, 0, one))
            if i:  # the first one warms up
                own.append(1000 * (time.perf_counter() - start))
    return [statistics.median(own) for own in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--networks", type=int, default=1000, help="0: only the times")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--timed", type=int, default=20, help="so many networks for the times")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the reference scores")
    options = parser.parse_args()
    every = architectures(options.data)
    archs = every[: options.networks]
    accuracy = load_results("cifar10")
    truth = [accuracy[arch].accuracy for arch in archs]
    print(describe_machine(options.device))

    rows = list(itertools.product(JACOBIANS, BATCHES, REPEATS))
    settings = [{"jacobian": jacobian, "batch_size": batch, "repeats": repeats} for jacobian, batch, repeats in rows]
    times = milliseconds(settings, every[: options.timed], options.device)
    if not options.networks:
        print("milliseconds with one process, building included")
        for (jacobian, batch, repeats), ms in zip(rows, times, strict=True):
            print(f"{jacobian:14s}{batch:6d}{repeats:8d}{ms:8.1f}")
        return
    print(f"{len(archs)} networks, seeds 0 to {options.seeds - 1}; milliseconds with one process")
    print(f"{'Jacobian':14s}{'batch':>6s}{'repeats':>8s}{'tau':>9s}{'sd':>9s}{'runs':>6s}{'ms':>8s}")
    with warm_pool(options.workers, options.device, archs) as pool:
        for (jacobian, batch), group in itertools.groupby(zip(rows, times, strict=True), key=lambda row: row[0][:2]):
            one = {"jacobian": jacobian, "batch_size": batch}
            jobs = [("package", arch, options.device, seed, one) for seed in range(options.seeds) for arch in archs]
            tables = np.array(pool.map(score_arch, jobs, chunksize=10)).reshape(options.seeds, len(archs), -1)
            for (_, _, repeats), ms in group:
                averages = [tables[i : i + repeats].mean(0) for i in range(0, options.seeds - repeats + 1, repeats)]
                taus = [kendalltau(aggregate(table), truth).statistic for table in averages]
                sd = statistics.stdev(taus) if len(taus) > 1 else float("nan")
                print(
                    f"{jacobian:14s}{batch:6d}{repeats:8d}{statistics.mean(taus):9.4f}{sd:9.4f}{len(taus):6d}{ms:8.1f}"
                )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
