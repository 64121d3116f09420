"""An evaluator does not change; another one with other arguments is checked like a new one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from optuna_aznas import ProxyEvaluator
from optuna_aznas.proxies import DEFAULT


def conv(c_in, c_out):
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())


@pytest.fixture
def model():
    return nn.Sequential(conv(3, 4), conv(4, 4), conv(4, 8), nn.Flatten(), nn.Linear(8 * 64, 5))


@pytest.fixture
def evaluator():
    return ProxyEvaluator((3, 8, 8), batch_size=4, device="cpu", seed=5)


@pytest.mark.parametrize("name", ["proxies", "seed", "device", "something"])
def test_attributes_cannot_be_set(name, evaluator):
    before = dict(vars(evaluator))
    with pytest.raises(AttributeError, match=rf"immutable.*replace\({name}="):
        setattr(evaluator, name, 1)
    with pytest.raises(AttributeError, match="immutable"):
        delattr(evaluator, name)
    assert vars(evaluator) == before


def test_replace(evaluator, model):
    other = evaluator.replace(proxies="naswot", seed=7)
    assert (other.proxies, other.seed, other.batch_size) == (("naswot",), 7, 4)
    assert other(model) == ProxyEvaluator((3, 8, 8), batch_size=4, device="cpu", seed=7, proxies=["naswot"])(model)
    assert (evaluator.seed, evaluator.proxies) == (5, DEFAULT)
    batch = torch.randn(2, 3, 8, 8)
    assert evaluator.replace(input_shape=None, inputs=batch).inputs is batch


@pytest.mark.parametrize(
    "arguments", [{"proxies": ["nonsense"]}, {"seed": -1}, {"inputs": torch.ones(1)}, {"jacobian": "none"}]
)
def test_replace_checks(arguments, evaluator):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        evaluator.replace(**arguments)


def test_replace_takes_arguments_only(evaluator):
    with pytest.raises(TypeError, match="nonsense"):
        evaluator.replace(nonsense=1)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_score_the_same(duplicate, evaluator, model):
    other = duplicate(evaluator)
    assert other is not evaluator
    assert other(model) == evaluator(model)
    with pytest.raises(AttributeError, match="immutable"):
        other.seed = 1


def test_repr(evaluator):
    assert "seed=5" in repr(evaluator)
    assert "input_shape=(3, 8, 8)" in repr(evaluator)
    assert "inputs=..." in repr(ProxyEvaluator(inputs=torch.ones(2, 3, 8, 8), device="cpu"))
