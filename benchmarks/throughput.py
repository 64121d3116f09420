"""Networks a second by ``ProxyEvaluator.map`` with 1, 2, 4, ... workers, on NAS-Bench-201, building included.

    python -m benchmarks.throughput                               # as many workers as the machine has cores
    python -m benchmarks.throughput --device cuda --workers 1 2 4 8 14

Each round scores the same networks with each number of workers, one after the other, so that other work on the machine
meets all of them; the ratio to one worker is taken within a round. One worker is this process, as with ``n_workers=1``.
The workers have started and scored before the time is taken; starting them is measured apart, and so is the cost of
sending a function and a result. Networks are built on the meta device, as the evaluator draws their weights.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import time
from collections.abc import Sequence

import joblib
import torch

from optuna_aznas import ProxyEvaluator, ProxyScores, _workers
from optuna_aznas.spaces.nas_bench_201 import Network, all_architectures

SHAPE = (3, 32, 32)


def builders(n: int) -> list[functools.partial[Network]]:
    """Return functions that build ``n`` networks drawn at random."""
    drawn = random.Random(0).sample(list(all_architectures()), n)
    return [functools.partial(Network, operations, device="meta") for operations in drawn]


def seconds_for(evaluator: ProxyEvaluator, networks: Sequence[functools.partial[Network]], n_workers: int) -> float:
    """Return the time that map takes for these networks."""
    start = time.perf_counter()
    results = list(evaluator.map(networks, n_workers=n_workers))
    seconds = time.perf_counter() - start
    failed = [result for result in results if not isinstance(result, ProxyScores)]
    if failed:
        raise failed[0]
    return seconds


def report_throughput(evaluator: ProxyEvaluator, n: int, numbers: Sequence[int], rounds: int) -> None:
    """Print networks a second by number of workers."""
    networks = builders(n)
    for workers in numbers:
        seconds_for(evaluator, networks[: 4 * workers], workers)  # warms up
    rates: dict[int, list[float]] = {workers: [] for workers in numbers}
    for _ in range(rounds):
        for workers in numbers:
            rates[workers].append(n / seconds_for(evaluator, networks, workers))
    print(f"\nNetworks a second, {n} networks, medians of {rounds} rounds (smallest to largest):")
    print(f"{'workers':>8}{'networks a second':>30}{'over ' + str(numbers[0]) + ' worker':>30}")
    for workers, of_workers in rates.items():
        ratios = [rate / first for rate, first in zip(of_workers, rates[numbers[0]], strict=True)]
        print(f"{workers:8}{spread(of_workers, 1):>30}{spread(ratios, 2):>30}")


def report_costs(evaluator: ProxyEvaluator, workers: int) -> None:
    """Print what starting workers and calling one costs."""
    _workers._end_idle()
    networks = builders(2 * workers)
    cold, warm = (seconds_for(evaluator, networks, workers) for _ in range(2))
    print(
        f"\nStarting {workers} workers and scoring {len(networks)} networks: {cold:.1f} s; once they run: {warm:.1f} s"
    )
    n = 500
    start = time.perf_counter()
    for _ in _workers.call_each(bool, range(n), n_workers=1, n_ahead=1):
        pass
    print(f"One call of a worker, sent and answered: {1e3 * (time.perf_counter() - start) / n:.2f} ms")


def spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", help="default: 1, 2, 4, 8, 14 up to the number of cores")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cores = joblib.cpu_count()
    numbers = options.workers or [n for n in (1, 2, 4, 8, 14) if n <= cores]
    evaluator = ProxyEvaluator(SHAPE, device=options.device)
    gpu = f", {torch.cuda.get_device_name(evaluator.device)}" if evaluator.device.type == "cuda" else ""
    print(f"torch {torch.__version__}, {cores} cores, one thread a process, device {evaluator.device}{gpu}")
    report_throughput(evaluator, options.networks, numbers, options.rounds)
    report_costs(evaluator, numbers[-1])


if __name__ == "__main__":
    main()
