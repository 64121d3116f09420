"""The reference data beside the checkout (``../shared/data``): tables of proxy scores and of accuracies."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.gauntlet import tables
from optuna_aznas.proxies import DEFAULT
from optuna_aznas.spaces.nas_bench_201 import from_arch

PROXIES = ("expressivity", "progressivity", "trainability", "complexity")
DATA = Path(__file__).parents[2] / "shared" / "data"
TABLES = {"reference": "nb201_reference_scores.csv.gz", "table": "nb201_score_table.csv.gz"}


def load_scores(data: Path, table: str = "reference") -> dict[str, tuple[float, ...]]:
    """Return (expressivity, progressivity, trainability) by architecture string, in the order of the file."""
    return read_table(data / TABLES[table], PROXIES[:3])


def load_proxies(space: str, data: Path, folder: Path | None) -> dict[str, dict[str, float]]:
    """Return proxy scores by proxy name of each network of a space.

    Args:
        space: NAS-Bench-201 (``"nb201"``) or NAS-Bench-Macro (``"macro"``).
        data: Folder of the reference data.
        folder: Folder of the gauntlet's tables: the default proxies of seed 0. ``None``: the paper's four of ``data``.
    """
    if folder is not None:
        table = tables.read(tables.path_of(folder, space, 0))
        rows = np.column_stack([table.column(name) for name in DEFAULT]).tolist()
        return {key: dict(zip(DEFAULT, row, strict=True)) for key, row in zip(table.keys, rows, strict=True)}
    if space == "nb201":
        four = {arch: (*three, macs(arch)) for arch, three in load_scores(data, "table").items()}
    else:
        four = read_table(data / "nas_bench_macro_scores.csv.gz", PROXIES)
    return {arch: dict(zip(PROXIES, row, strict=True)) for arch, row in four.items()}


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
