"""The MobileNetV2 space: the published network, multiply-accumulates, and a search within a budget."""

from __future__ import annotations

import optuna
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import optuna_aznas as az
from optuna_aznas import spaces
from optuna_aznas.spaces.mobilenet_v2 import (
    MOBILENET_V2,
    STAGES,
    MobileNet,
    Stage,
    from_params,
    macs,
    within_budget,
)


def test_mobilenet_v2_itself():
    """Parameters as published with the network; multiply-accumulates as the paper has them (300 M)."""
    model = from_params(MOBILENET_V2, device="meta")
    assert sum(p.numel() for p in model.parameters()) == 3_504_872
    assert macs(MOBILENET_V2) == pytest.approx(300e6, rel=0.005)


@pytest.mark.parametrize("image_size", [224, 97])
def test_multiply_accumulates_are_what_torch_counts(image_size):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(2):
        trial = study.ask()
        model = spaces.mobilenet_v2.build(trial, classes=10, device="meta").eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, image_size, image_size, device="meta"))
        assert macs(trial.params, image_size=image_size, classes=10) == counter.get_total_flops() / 2


def test_a_trial_becomes_a_network():
    trial = optuna.trial.FixedTrial(MOBILENET_V2)
    model = spaces.mobilenet_v2.build(trial, classes=7)
    assert trial.params == MOBILENET_V2
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert len(model.blocks) == 17
    assert sum(block.residual for block in model.blocks) == 10


def test_mobilenet_v2_lies_in_the_space():
    study = optuna.create_study()
    study.enqueue_trial(MOBILENET_V2)
    trial = study.ask()
    spaces.mobilenet_v2.build(trial, device="meta")
    assert trial.params == MOBILENET_V2
    assert len(trial.params) == 2 + 4 * len(STAGES)


def test_a_search_stays_within_its_budget():
    budget, size = 30e6, 64
    accept = within_budget(budget, image_size=size)
    evaluator = az.ProxyEvaluator((3, size, size), proxies=("expressivity", "complexity"), batch_size=2, device="cpu")
    study = az.create_study(
        proxies=evaluator.proxies, sampler=az.AZNASSampler(candidate_filter=accept, n_startup_trials=5, seed=0)
    )
    study.enqueue_trial(MOBILENET_V2)
    study.optimize(lambda trial: evaluator(spaces.mobilenet_v2.build(trial, device="meta")), n_trials=12)
    found = [trial.values[1] for trial in study.trials]
    assert found == [macs(trial.params, image_size=size) for trial in study.trials]
    assert max(found) <= budget


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="max_macs must be at least"):
        within_budget(1e6)
    with pytest.raises(ValueError, match=r"stages\[0\].depth must be an integer of at least 1; got 0"):
        MobileNet(16, [Stage(0, 16, 3, 1, 1)], 64)
