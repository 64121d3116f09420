"""How well proxies rank vision transformers: AutoFormer-Tiny, 200 networks that were trained one by one.

    python -m benchmarks.autoformer --workers 12                      # 224 x 224, 3 seeds; minutes on a GPU
    python -m benchmarks.autoformer --networks 40 --image-size 96 --seeds 1 --device cpu

The networks were trained as plain ViTs (heads as wide as the embedding divided by their number, no relative positions),
and that is the network scored. Prints Kendall's tau and Spearman's rho with each column of accuracies, mean and
standard deviation over the seeds, for each proxy and for several aggregations; how well one seed's scores agree with
another's; and what no ranking can do better, as the columns disagree with each other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

from benchmarks.ranking import DATA
from optuna_aznas.aggregation import aggregate

FILE = "autoformer_tiny_accuracy.json"
AGGREGATIONS = {
    "the paper's three (moment)": ("expressivity", "trainability (moment)", "complexity"),
    "the three, least squares": ("expressivity", "trainability (least squares)", "complexity"),
    "default": ("expressivity", "progressivity", "trainability", "complexity"),
    "default + attention": ("expressivity", "complexity", "attention"),
    "default + position": ("expressivity", "complexity", "position"),
    "default + token_interaction": ("expressivity", "complexity", "token_interaction"),
    "default + all three": ("expressivity", "complexity", "attention", "position", "token_interaction"),
}


def build(arch: dict[str, Any], image_size: int) -> Any:
    """Build a network as it was trained."""
    from optuna_aznas.spaces.autoformer import VisionTransformer

    depth = arch["depth"]
    return VisionTransformer(
        arch["hidden_dim"],
        arch["num_heads"][:depth],
        arch["mlp_ratio"][:depth],
        head_width=None,
        relative_position=False,
        image_size=image_size,
        classes=100,
        device="meta",
    )


def _score(job: tuple[int, dict[str, Any], int, dict[str, Any]]) -> tuple[int, int, dict[str, float]]:
    import torch

    from optuna_aznas import ProxyEvaluator
    from optuna_aznas.proxies import ALL_PROXIES
    from optuna_aznas.proxies.aznas import trainability

    torch.set_num_threads(1)
    index, arch, image_size, settings = job
    model, shape = build(arch, image_size), (3, image_size, image_size)
    scores = ProxyEvaluator(shape, proxies=ALL_PROXIES, **settings)(model)
    table = scores.to_dict()
    table["trainability (least squares)"] = trainability(list(scores.blocks))
    moment = ProxyEvaluator(shape, proxies="trainability", jacobian="moment", **settings)(model)
    return index, settings["seed"], table | {"trainability (moment)": moment.trainability}


def bound(columns: dict[str, np.ndarray]) -> None:
    """Print the most that the taus of one ranking with two columns can add up to."""
    for a, b in itertools.combinations(columns, 2):
        both = ~np.isnan(columns[a]) & ~np.isnan(columns[b])
        signs = [np.sign(columns[c][both][:, None] - columns[c][both][None, :]) for c in (a, b)]
        product = (signs[0] * signs[1])[np.triu_indices(both.sum(), k=1)]
        agree, disagree = int((product > 0).sum()), int((product < 0).sum())
        print(
            f"  {a} and {b}: their tau is {kendalltau(columns[a][both], columns[b][both]).statistic:.3f}; "
            f"the taus of any ranking without ties add up to at most {2 * agree / (agree + disagree):.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--init", default="auto", choices=["auto", "trunc_normal", "kaiming"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder with {FILE}")
    parser.add_argument("--out", type=Path, help="write all scores to this JSON file")
    options = parser.parse_args()
    networks = json.loads((options.data / FILE).read_text())[: options.networks]
    settings = {"batch_size": options.batch_size, "init": options.init, "device": options.device}
    jobs = [
        (i, network["arch"], options.image_size, settings | {"seed": seed})
        for seed in range(options.seeds)
        for i, network in enumerate(networks)
    ]
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        results = list(pool.imap_unordered(_score, jobs, chunksize=2))
    seconds = time.perf_counter() - start
    print(f"{len(jobs)} evaluations at {options.image_size} x {options.image_size}, {settings}: {seconds:.0f} s")
    names = list(results[0][2])
    tables = np.empty((options.seeds, len(networks), len(names)))
    for i, seed, table in results:
        tables[seed, i] = [table[name] for name in names]
    if options.out:
        as_json = {name: tables[:, :, k].tolist() for k, name in enumerate(names)}
        options.out.write_text(json.dumps(as_json))
    report(names, tables, networks)


def report(names: list[str], tables: np.ndarray, networks: list[dict[str, Any]]) -> None:
    """Print everything.

    Args:
        names: The proxies.
        tables: Scores, (seeds, networks, proxies).
        networks: The entries of the data.
    """
    accuracies = {
        name: np.array([math.nan if network[name] is None else network[name] for network in networks])
        for name in networks[0]
        if name != "arch"
    }
    rankings = {name: tables[:, :, k] for k, name in enumerate(names)}
    for label, members in AGGREGATIONS.items():
        columns = [names.index(name) for name in members]
        rankings[f"S: {label}"] = np.stack([aggregate(table[:, columns]) for table in tables])
    print("\nKendall's tau (standard deviation over seeds) / Spearman's rho; last: rho of one seed with another")
    print(f"{'':34s}" + "".join(f"{name:>24s}" for name in accuracies))
    for label, scores in rankings.items():
        line = f"{label:34s}"
        for truth in accuracies.values():
            there = ~np.isnan(truth)
            if any(np.ptp(np.nan_to_num(row[there], neginf=-1e30)) == 0 for row in scores):
                line += f"{'-':>24s}"
                continue
            taus = [kendalltau(row[there], truth[there]).statistic for row in scores]
            rho = np.mean([spearmanr(row[there], truth[there]).statistic for row in scores])
            line += f"   {np.mean(taus):6.3f} ({np.std(taus):5.3f}) / {rho:5.2f}"
        pairs = [spearmanr(a, b).statistic for a, b in itertools.combinations(scores, 2) if np.ptp(a) > 0]
        print(line + (f"   {np.mean(pairs):.3f}" if pairs else ""))
    print("\nWhat the accuracies allow:")
    bound({name: accuracies[name] for name in accuracies if name.endswith("kd_acc")})


if __name__ == "__main__":
    main()
