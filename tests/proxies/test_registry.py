"""Proxies are declared in their own modules, and adding one needs nothing else than its module and one line."""

from __future__ import annotations

import importlib
import pkgutil
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from optuna_aznas import ProxyEvaluator, proxies
from optuna_aznas.proxies import arguments
from optuna_aznas.proxies import evaluator as evaluator_module
from optuna_aznas.proxies.context import Seeds
from optuna_aznas.proxies.proxy import Needs, Proxy, Stage
from optuna_aznas.proxies.registry import REGISTRY


def conv(c_in, c_out):
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())


@pytest.fixture
def model():
    return nn.Sequential(conv(3, 4), conv(4, 4), conv(4, 8), nn.Flatten(), nn.Linear(8 * 64, 5))


def test_names_and_their_order():
    assert proxies.AZNAS == ("expressivity", "progressivity", "trainability", "complexity") == proxies.ALL_PROXIES[:4]
    assert proxies.ALL_PROXIES[4:7] == ("entropy_retention", "isometry", "jacobian_rank")
    assert proxies.ALL_PROXIES[7:10] == ("attention", "position", "token_interaction")
    assert proxies.ALL_PROXIES[10:15] == ("parameters", "trainable_layers", "activations", "gradient_norm", "snip")
    assert proxies.ALL_PROXIES[15:18] == ("grasp", "synflow", "naswot")
    assert proxies.ALL_PROXIES[18:] == ("jacobian_covariance", "zen_score", "zico")
    assert set(proxies.DEFAULT) < set(proxies.EXTENDED) < set(proxies.ALL_PROXIES)


def test_no_family_is_forgotten():
    found = set()
    for module in pkgutil.iter_modules(proxies.__path__):
        family = importlib.import_module(f"{proxies.__name__}.{module.name}")
        found |= {proxy.name for proxy in getattr(family, "PROXIES", ())}
    assert found == set(REGISTRY)


@pytest.mark.parametrize("name", proxies.ALL_PROXIES)
def test_each_has_one_way_to_be_computed(name):
    proxy = REGISTRY[name]
    assert proxy.name == name
    assert (proxy.function is None) != (proxy.observer is None)


def test_no_function_shadows_a_module():
    modules = {module.name for module in pkgutil.iter_modules(proxies.__path__)}
    assert not modules & set(proxies.__all__)
    assert proxies.diagnosis.diagnose is proxies.diagnose


class LayerGradients:
    """A proxy that watches the pass over the blocks: the sum of the gradients' norms."""

    def __init__(self, context):
        self.samples = context.samples
        self.norms = []

    def surround(self):
        return nullcontext()

    def __call__(self, block):
        if block.gradient is not None:
            self.norms.append(float(block.gradient.norm()))

    def score(self):
        return sum(self.norms)


@pytest.mark.parametrize("stage", Stage)
def test_a_new_proxy_is_one_declaration(stage, model, monkeypatch):
    new = {
        Stage.FEATURES: Proxy("new", stage, Needs.PRODUCTS, observer=LayerGradients),
        Stage.LOSS: Proxy("new", stage, function=lambda loss: len(loss.gradients)),
        Stage.MODEL: Proxy("new", stage, function=lambda context: context.samples),
    }[stage]
    monkeypatch.setattr(evaluator_module, "REGISTRY", {**REGISTRY, "new": new})
    monkeypatch.setattr(arguments, "ALL_PROXIES", (*REGISTRY, "new"))
    plain = ProxyEvaluator((3, 8, 8), batch_size=4, device="cpu")
    scores = plain.replace(proxies=(*plain.proxies, "new"))(model)
    assert tuple(scores)[:-1] == tuple(plain(model))
    expected = {Stage.LOSS: 4, Stage.MODEL: 4}.get(stage)
    assert scores.new == expected if expected else scores.new > 0


def test_streams_are_apart():
    purposes = ["weights", "noise", "cotangents", "modes", "tokens", "labels", "zen", "new", "newer"]
    seeds = [Seeds(seed, repeat).of(purpose) for seed in (0, 1) for repeat in (0, 1) for purpose in purposes]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert Seeds(3, 1).of("new") == Seeds(3, 1).of("new")
    torch.Generator().manual_seed(max(seeds))
