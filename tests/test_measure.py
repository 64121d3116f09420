"""az.measure: latency, peak memory, parameters and multiply-accumulates of a network."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

import optuna_aznas as az
from optuna_aznas import measure


class Branches(nn.Module):
    """Convolutions of all kinds, two branches, dropout, and a shared weight."""

    def __init__(self, device=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, device=device)
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, device=device)
        self.same = nn.Conv2d(8, 8, 3, padding="same", device=device)
        self.norm = nn.BatchNorm2d(8, device=device)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 10, device=device)
        self.tied = self.head

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = self.dropout(self.grouped(x) + self.same(x))
        return self.tied(x.mean(dim=(2, 3)))


class LooksAtValues(nn.Module):
    """What it does depends on values, which empty tensors do not have."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        y = self.linear(x)
        if not bool(torch.isfinite(y).all()):
            raise ValueError("not finite")
        return self.linear(y)


TRANSFORMER = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Branches(), (3, 17, 17)),
        (Branches(device="meta"), (3, 17, 17)),
        (TRANSFORMER, (10, 32)),
        (az.spaces.nas_bench_201.Network(["nor_conv_3x3"] * 6, cells=1, device="meta"), (3, 16, 16)),
    ],
    ids=["branches", "branches on meta", "transformer", "nas_bench_201"],
)
def test_multiply_accumulates_are_those_of_the_proxy(model, shape):
    counted = measure.multiply_accumulates(model, shape)
    assert counted.median == az.ProxyEvaluator(shape, proxies=["complexity"], device="cpu")(model).complexity
    assert (counted.spread, counted.n) == (0.0, 1)


def test_a_network_that_looks_at_values_is_counted_too():
    assert measure.multiply_accumulates(LooksAtValues(), (4,)).median == 32


def test_multiply_accumulates_are_of_one_sample():
    assert measure.multiply_accumulates(nn.Linear(4, 4), inputs=torch.zeros(5, 4)).median == 16
    assert measure.multiply_accumulates(nn.Bilinear(4, 3, 2), inputs=(torch.zeros(5, 4), torch.zeros(5, 3))).unit == ""


def test_parameters_shared_ones_once():
    assert measure.parameters(Branches()).median == sum(p.numel() for p in Branches().parameters())


def test_peak_memory_is_weights_and_the_tensors_that_exist_together():
    chain = nn.Sequential(nn.Linear(8, 1000), nn.ReLU(), nn.Linear(1000, 8))
    weights = sum(p.numel() for p in chain.parameters())
    # While the activation is computed, the batch and two tensors of 1,000 exist.
    assert measure.peak_memory(chain, (8,)).median == 4 * (weights + 8 + 2 * 1000)
    inplace = nn.Sequential(nn.Linear(8, 1000), nn.ReLU(inplace=True), nn.Linear(1000, 8))
    assert measure.peak_memory(inplace, (8,)).median == 4 * (weights + 8 + 1000 + 8)
    assert measure.peak_memory(chain, (8,), batch_size=4).median == 4 * (weights + 4 * (8 + 2 * 1000))


def test_latency_has_a_spread():
    found = measure.latency(Branches(), (3, 16, 16), seconds=0.02)
    assert found.unit == "ms"
    assert found.n >= 5
    assert found.median > 0
    assert found.upper == found.median + found.spread >= found.median


def test_a_network_is_timed_in_the_mode_in_which_it_is_used():
    """A batch of one sample fails in train mode: batch normalisation then has one value for each channel."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    assert measure.latency(model, (4,), seconds=0.001).median > 0


@pytest.mark.parametrize(
    "function", [measure.latency, measure.peak_memory, measure.multiply_accumulates], ids=lambda f: f.__name__
)
def test_the_network_and_the_random_states_are_left_alone(function):
    model = Branches().train()
    before = copy.deepcopy(model.state_dict())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    function(model, (3, 16, 16))
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_inputs_of_any_form():
    class Two(nn.Module):
        def forward(self, a, b):
            return a @ b

    a, b = torch.zeros(2, 3), torch.zeros(3, 4)
    for inputs in ((a, b), {"a": a, "b": b}):
        assert measure.multiply_accumulates(Two(), inputs=inputs).median == 12  # 24 for the batch of 2


@pytest.mark.parametrize("arguments", [{}, {"input_shape": (4,), "inputs": torch.zeros(1, 4)}])
def test_one_of_input_shape_and_inputs(arguments):
    with pytest.raises(ValueError, match="Exactly one of input_shape and inputs must be given"):
        measure.latency(nn.Linear(4, 4), **arguments)


def test_limits_measure_the_network_that_was_chosen():
    limits = az.Limits(Branches, (3, 16, 16), latency=100.0, parameters=1e6, peak_memory=1e9, complexity=1e9)
    numbers = limits.measure(Branches())
    assert list(numbers) == ["parameters", "complexity", "peak_memory", "latency"]  # the cheap ones first
    assert numbers["parameters"] == measure.parameters(Branches())


@pytest.mark.parametrize("fails_on_meta", [False, True])
def test_a_network_is_built_without_weights_where_that_works(fails_on_meta):
    devices = []

    def build(trial):
        width = trial.suggest_int("width", 1, 8)
        scale = torch.linspace(0, 1, 3)
        devices.append(scale.device.type)
        if fails_on_meta:
            scale.tolist()  # as drop-path rates are computed in many models
        return nn.Linear(width, width)

    study = az.create_study(proxies=["a", "b"], sampler=az.AZNASSampler(limits=az.Limits(build, parameters=30), seed=0))
    study.optimize(lambda trial: (build(trial).in_features, 0.0), n_trials=4)
    assert all(trial.params["width"] <= 5 for trial in study.trials)
    assert devices.count("meta") >= 1
    assert ("meta" in devices[2:]) is not fails_on_meta
