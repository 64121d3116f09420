"""Blocks of models from the transformers package, which nobody here wrote."""

from __future__ import annotations

import math

import pytest
import torch

from optuna_aznas import ProxyEvaluator
from optuna_aznas.proxies import DEFAULT
from tests.proxies.test_contracts import assert_same, random_states, snapshot
from tests.proxies.transformers_models import CASES, TEXT

transformers = pytest.importorskip("transformers", reason="the extra 'models' is not installed")


def run_once(model, given):
    """Some of these models hang hooks on themselves when they are first run."""
    with torch.no_grad():
        if "inputs" in given:
            model.eval()(**given["inputs"])
        else:
            model.eval()(torch.zeros(2, *given["input_shape"]))
    model.train()


@pytest.mark.filterwarnings("ignore")  # the package's own
@pytest.mark.parametrize("name", CASES)
def test_features(name):
    case = CASES[name]
    torch.manual_seed(0)
    model = case.build(transformers)
    run_once(model, case.inputs)
    before, states = snapshot(model), random_states()
    proxies = [*DEFAULT, "trainability"]
    scores = ProxyEvaluator(**case.inputs, batch_size=4, proxies=proxies, device="cpu")(model)
    assert_same(before, snapshot(model))
    assert states == random_states()
    assert [block.shape for block in scores.blocks] == case.shapes
    assert len({block.name for block in scores.blocks}) == len(scores.blocks)
    assert all(map(math.isfinite, scores))
    stems = [i for i, block in enumerate(scores.blocks) if math.isnan(block.step)]
    assert len(stems) == (2 if "CLIP" in name or "T5" in name else 1)
    for block in scores.blocks:
        assert math.isnan(block.step) or block.spectral_norm > 0
        assert block.entropy > 0.01
    assert sum(block.complexity for block in scores.blocks) <= scores.complexity


@pytest.mark.filterwarnings("ignore")
def test_own_weights_count():
    """A mask hides tokens; other weights give other scores."""
    torch.manual_seed(0)
    model = CASES["BERT"].build(transformers)
    evaluator = ProxyEvaluator(inputs=TEXT, init=None, device="cpu")
    own = evaluator(model)
    assert evaluator(model) == own
    assert evaluator(CASES["BERT"].build(transformers)).expressivity != own.expressivity
    masked = TEXT | {"attention_mask": TEXT["attention_mask"].clone()}
    masked["attention_mask"][:, 4:] = 0
    assert ProxyEvaluator(inputs=masked, init=None, device="cpu")(model).expressivity != own.expressivity
