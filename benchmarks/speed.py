"""The evaluator at its defaults against the plain implementation: time, memory, and ranking, on the same networks.

    make bench-speed                                                     # on the CPU, about ten minutes on two cores
    python benchmarks/speed.py --device cuda --workers 1 2 4 8     # on a GPU, with throughput

"package" is :class:`optuna_aznas.ProxyEvaluator` with every argument at its default, "plain" is ``tests/reference.py``
with the settings of the paper (batch 64, moment). Their runs alternate, network by network. "Built" includes building
the network; the package gets it without weights (``device="meta"``), which it does not need, and also as
the plain implementation gets it.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from benchmarks.shared_data import DATA, TABLES, load_scores
from optuna_aznas import ProxyEvaluator
from optuna_aznas.aggregation import aggregate
from optuna_aznas.spaces.nas_bench_201 import Network, all_architectures, from_arch, to_arch
from optuna_aznas.spaces.nas_bench_201_results import load_results
from tests import reference

SHAPE = (3, 32, 32)
FEATURES = ["stem", *(f"blocks.{i}" for i in range(17))]


def score_package(network: Network, device: str, seed: int = 0, **settings: object) -> tuple[float, ...]:
    return tuple(ProxyEvaluator(SHAPE, device=device, seed=seed, **settings)(network))


def score_plain(network: Network, device: str, seed: int = 0) -> tuple[float, ...]:
    return reference.evaluate(network, FEATURES, SHAPE, device=device, seed=seed)


#: How each side is run: what scores a network, and where the network's parameters are created.
SIDES = {"package": (score_package, "meta"), "plain": (score_plain, "cpu")}


def architectures(data: Path) -> list[str]:
    """Return the reference's 2,002 architectures; without its data as many others."""
    if (data / TABLES["reference"]).exists():
        return list(load_scores(data))
    print(f"({data / TABLES['reference']} is not there: architectures drawn at random instead)")
    return [to_arch(operations) for operations in random.Random(0).sample(list(all_architectures()), 2002)]


def timed(side: str, arch: str, device: str, built_on: str) -> tuple[float, float]:
    """Return milliseconds for building a network and for scoring it."""
    start = time.perf_counter()
    network = Network(from_arch(arch), device=built_on)
    built = time.perf_counter()
    SIDES[side][0](network, device)  # ends with its numbers on the CPU: nothing is left in the GPU's queue
    return 1000 * (built - start), 1000 * (time.perf_counter() - built)


def report_times(archs: Sequence[str], device: str) -> None:
    runs = {"package": ("package", "meta"), "package, ordinary network": ("package", "cpu"), "plain": ("plain", "cpu")}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for i, arch in enumerate([*archs[:3], *archs]):
        for name, (side, built_on) in runs.items():
            pair = timed(side, arch, device, built_on)
            if i >= 3:  # the first ones warm up
                times[name].append(pair)
    print(f"\nMilliseconds a network, medians of {len(archs)} (quartiles):")
    print(f"{'':28s}{'building':>10s}{'scoring':>24s}{'together':>24s}")
    for name, pairs in times.items():
        building, scoring = zip(*pairs, strict=True)
        together = [sum(pair) for pair in pairs]
        print(f"{name:28s}{statistics.median(building):10.1f}{quartiles(scoring):>24s}{quartiles(together):>24s}")
    print("Plain over package, network by network, median (quartiles):")
    for name in list(runs)[:2]:
        pairs = list(zip(times["plain"], times[name], strict=True))
        scoring = [plain[1] / ours[1] for plain, ours in pairs]
        together = [sum(plain) / sum(ours) for plain, ours in pairs]
        print(f"{name:28s}{'':10s}{quartiles(scoring, 2):>24s}{quartiles(together, 2):>24s}")


def quartiles(values: Sequence[float], digits: int = 1) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def peak_memory(job: tuple[str, Sequence[str], str]) -> float:
    """Return the most memory in MB that scoring took, on the device, beyond what was taken before."""
    side, archs, device = job
    score, built_on = SIDES[side]
    networks = [Network(from_arch(arch), device=built_on) for arch in archs]
    before = peak_resident_bytes()
    for network in networks:
        score(network, device)
    if device == "cpu":
        return (peak_resident_bytes() - before) / 1e6
    return torch.cuda.max_memory_allocated() / 1e6


def peak_resident_bytes() -> int:
    """Return the most memory that this process ever held (Linux; ``getrusage`` also counts that of its parent)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def report_memory(archs: Sequence[str], device: str) -> None:
    heavy = sorted(archs, key=lambda arch: -arch.count("conv_3x3"))[:5]
    for side in SIDES:
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process of its own each
            megabytes = pool.apply(peak_memory, ((side, heavy, device),))
        print(f"peak memory, {side}: {megabytes:.0f} MB")


@contextmanager
def warm_pool(workers: int, device: str, archs: Sequence[str]) -> Iterator[multiprocessing.pool.Pool]:
    """Yield a pool whose processes have all scored a few networks on the device."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers + 1)
    with context.Pool(workers, initializer=_warm_up, initargs=(barrier, device, archs[:3], workers)) as pool:
        barrier.wait()
        yield pool


def _warm_up(barrier: multiprocessing.synchronize.Barrier, device: str, archs: Sequence[str], workers: int) -> None:
    if workers > 1:
        torch.set_num_threads(1)
    for side in SIDES:
        for arch in archs:
            score_arch((side, arch, device, 0, {}))
    barrier.wait()


def score_arch(job: tuple[str, str, str, int, dict[str, object]]) -> tuple[float, ...]:
    side, arch, device, seed, settings = job
    score, built_on = SIDES[side]
    return score(Network(from_arch(arch), device=built_on), device, seed, **settings)


def report_throughput(archs: Sequence[str], device: str, numbers_of_workers: Sequence[int]) -> None:
    print("\nNetworks a second, building included, one thread a worker:")
    print(f"{'workers':>8s}" + "".join(f"{side:>12s}" for side in SIDES) + f"{'over 1 plain':>16s}")
    one_plain = 0.0
    for workers in numbers_of_workers:
        rates = {}
        with warm_pool(workers, device, archs) as pool:
            for side in SIDES:
                jobs = [(side, arch, device, 0, {}) for arch in itertools.islice(itertools.cycle(archs), 50 * workers)]
                start = time.perf_counter()
                for _ in pool.imap_unordered(score_arch, jobs, chunksize=5):
                    pass
                rates[side] = len(jobs) / (time.perf_counter() - start)
        one_plain = one_plain or rates["plain"] / workers
        print(f"{workers:8d}" + "".join(f"{rate:12.1f}" for rate in rates.values()), end="")
        print(f"{rates['package'] / one_plain:16.1f}", flush=True)


def report_tau(archs: Sequence[str], device: str, seeds: int, workers: int) -> None:
    print(f"\nKendall's tau of S with CIFAR-10 accuracy, {len(archs)} networks, seeds 0 to {seeds - 1}:")
    accuracy = load_results("cifar10")
    truth = [accuracy[arch].accuracy for arch in archs]
    with warm_pool(workers, device, archs) as pool:
        for side in SIDES:
            taus = []
            for seed in range(seeds):
                table = pool.map(score_arch, [(side, arch, device, seed, {}) for arch in archs], chunksize=5)
                taus.append(kendalltau(aggregate(table), truth).statistic)
                print(f"  {side}, seed {seed}: {taus[-1]:.4f}", flush=True)
            spread = f", standard deviation {statistics.stdev(taus):.4f}" if seeds > 1 else ""
            print(f"{side:10s} mean {statistics.mean(taus):.4f}{spread}: {np.round(taus, 4).tolist()}", flush=True)


def describe_machine(device: str) -> str:
    gpu = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, device {device}{gpu}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--networks", type=int, default=100, help="so many for the times; 0 for none")
    parser.add_argument("--tau-networks", type=int, default=500, help="so many for tau; 0 for none")
    parser.add_argument("--seeds", type=int, default=1, help="so many for tau")
    parser.add_argument("--tau-workers", type=int, default=1, help="processes that score for tau")
    parser.add_argument("--workers", type=int, nargs="*", default=[], help="numbers of processes for the throughput")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the reference scores")
    options = parser.parse_args()
    archs = architectures(options.data)
    print(describe_machine(options.device), flush=True)
    if options.networks:
        report_times(archs[: options.networks], options.device)
        report_memory(archs[: options.networks], options.device)
    if options.workers:
        report_throughput(archs, options.device, options.workers)
    if options.tau_networks:
        report_tau(archs[: options.tau_networks], options.device, options.seeds, options.tau_workers)


if __name__ == "__main__":
    main()
