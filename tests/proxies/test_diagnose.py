"""Each rule of diagnose finds a block that was built to break it, and leaves sound networks alone."""

from __future__ import annotations

import html
import json
import math

import pytest
import torch
from torch import nn

from optuna_aznas import ProxyEvaluationError, ProxyEvaluator, diagnose
from optuna_aznas.proxies import AZNAS, BlockDiagnosis
from optuna_aznas.spaces.nas_bench_201 import Network, from_arch
from tests.proxies.test_agreement import ARCHS
from tests.proxies.test_contracts import assert_same, random_states, snapshot


def conv(c_in, c_out, stride=1, kernel=3):
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)
    )


class Does(nn.Module):
    """A block that applies a function, with a weight that does nothing."""

    def __init__(self, function):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.function = function

    def forward(self, x):
        return self.function(x)


def network(*middle, width=16):
    return nn.Sequential(
        conv(3, width), conv(width, width), *middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(2)
    )


def look(*middle, **kwargs):
    model = network(*middle)
    model(torch.zeros(2, 3, 16, 16))  # gives the head its shape
    return diagnose(model, ProxyEvaluator(**{"input_shape": (3, 16, 16), "device": "cpu"} | kwargs))


def found(diagnosis, name):
    (block,) = [block for block in diagnosis.blocks if block.name == name]
    return [finding.split(":")[0] for finding in block.findings]


def test_a_sound_network_has_no_findings():
    diagnosis = diagnose(Network(from_arch(ARCHS[0]), channels=8, cells=2), ProxyEvaluator((3, 32, 32), device="cpu"))
    assert [block.findings for block in diagnosis.blocks] == [()] * len(diagnosis.blocks)
    assert len(diagnosis.findings) == 2
    assert "found in the tree of modules: stem, blocks.0" in diagnosis.findings[0]
    weakest = min(diagnosis.blocks[1:], key=lambda block: block.step)
    assert diagnosis.findings[1].startswith(f"the weakest step is {weakest.name}'s")


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (conv(16, 3), ["loses expressivity"]),
        (Does(lambda x: x[:, :1].expand(-1, 16, -1, -1) * torch.ones(16, 1, 1)), ["dead"]),
        (Does(lambda x: torch.ones_like(x) + 0 * x), ["dead"]),
        (Does(lambda x: x * math.nan), ["dead"]),
        (Does(lambda x: x * 5), ["gradients explode"]),
        (Does(lambda x: x * 0.1), ["gradients die"]),
        (Does(lambda x: x.detach() * 2), ["no gradient passes"]),
        (Does(lambda x: x + 0), ["does nothing"]),
        (nn.Sequential(nn.Conv2d(16, 16, 11, padding=5), nn.Dropout2d(0.0)), ["costs much for little"]),
        (conv(16, 16), []),
    ],
)
def test_rules(block, expected):
    diagnosis = look(block, conv(3, 16) if expected == ["loses expressivity"] else conv(16, 16))
    assert [finding for finding in found(diagnosis, "2") if finding in expected] == expected
    if not expected:
        assert found(diagnosis, "2") == []
    assert found(diagnosis, "1") == []


def test_a_narrowing_says_so():
    diagnosis = look(conv(16, 3), conv(3, 16))
    assert "it narrows from 16 channels to 3" in diagnosis.blocks[2].findings[0]
    assert "the weakest step is 2's" in "\n".join(diagnosis.findings)


def test_gradients_over_the_whole_depth():
    deep = look(*[Does(lambda x: 0.55 * x + 0.0 * x.roll(1, 1)) for _ in range(14)])
    assert all(found(deep, str(i)) == [] for i in range(2, 16))
    assert "gradients die over the whole depth" in "\n".join(deep.findings)
    exploding = look(*[Does(lambda x: 1.9 * x + 0.0 * x.roll(1, 1)) for _ in range(14)])
    assert "gradients explode over the whole depth" in "\n".join(exploding.findings)


def test_scores_that_are_not_finite_name_their_block():
    diagnosis = look(Does(lambda x: x + 0), conv(16, 16), proxies=AZNAS)
    assert diagnosis.scores.trainability == -math.inf
    assert "trainability is -inf: look at 2" in diagnosis.findings
    assert "1 of 4 blocks do nothing: 2" in diagnosis.findings
    constant = look(Does(lambda x: torch.ones_like(x) + 0 * x), conv(16, 16))
    assert any(finding.startswith("expressivity is -inf: look at 2") for finding in constant.findings)


def test_what_it_returns():
    diagnosis = look(conv(16, 32, stride=2))
    assert [type(block) for block in diagnosis.blocks] == [BlockDiagnosis] * 3
    for block, scored in zip(diagnosis.blocks, diagnosis.scores.blocks, strict=True):
        for name in ("name", "shape", "entropy", "step", "spectral_norm", "trainability", "complexity"):
            value = getattr(block, name)
            assert value == getattr(scored, name) or math.isnan(value)
        assert block.share == pytest.approx(block.complexity / diagnosis.scores.complexity)
    head = 32 * 2
    assert sum(block.share for block in diagnosis.blocks) == pytest.approx(1 - head / diagnosis.scores.complexity)


def test_as_data():
    diagnosis = look(Does(lambda x: x * math.nan), Does(lambda x: x + 0), conv(16, 16))
    rows = json.loads(json.dumps(diagnosis.to_dicts(), allow_nan=False))
    assert [row["name"] for row in rows] == [block.name for block in diagnosis.blocks]
    assert rows[0]["step"] is None
    assert rows[2]["trainability"] == "-inf"
    assert rows[0]["shape"] == [16, 16, 16]
    assert rows[2]["findings"] == list(diagnosis.blocks[2].findings)


def test_as_a_table():
    diagnosis = look(conv(16, 3), conv(3, 16))
    lines = str(diagnosis).splitlines()
    assert lines[0].startswith("Sequential, block by block. step: change of entropy")
    assert "sigma: largest singular value" in lines[0]
    assert lines[2].split() == ["block", "shape", "entropy", "step", "sigma", "trainability", "MACs", "share"]
    row = next(i for i, line in enumerate(lines) if line.startswith("2 "))
    assert "3x16x16" in lines[row]
    assert lines[row + 1] == f"    ! {diagnosis.blocks[2].findings[0]}"
    assert any(line.startswith("scores: expressivity") for line in lines)
    assert lines[-len(diagnosis.findings) :] == [f"- {finding}" for finding in diagnosis.findings]
    assert max(map(len, lines)) <= 180
    assert "nan" not in str(diagnosis)
    assert diagnosis.model_name == "Sequential"


def test_in_a_notebook():
    diagnosis = look(conv(16, 3), conv(3, 16))
    text = diagnosis._repr_html_()
    assert text.count("<tr>") == 1 + len(diagnosis.blocks)
    assert html.escape(diagnosis.blocks[2].findings[0]) in text
    assert diagnosis.scores._repr_html_().count("<th ") == len(diagnosis.scores)


def test_the_scores_are_those_of_the_evaluator():
    model, evaluator = Network(from_arch(ARCHS[0]), channels=4, cells=1), ProxyEvaluator((3, 16, 16), device="cpu")
    assert diagnose(model, evaluator).scores == evaluator(model)
    one = ProxyEvaluator((3, 16, 16), proxies=["expressivity"], device="cpu")
    assert diagnose(model, one).scores == one(model)
    assert one.proxies == ("expressivity",)
    assert math.isfinite(diagnose(model, one).blocks[1].spectral_norm)
    named = ProxyEvaluator((3, 16, 16), blocks="blocks.*", device="cpu")
    assert "named by blocks=" in diagnose(model, named).findings[0]


def test_bad_input_and_an_untouched_model():
    with pytest.raises(TypeError, match=r"evaluator must be a ProxyEvaluator; got tuple"):
        diagnose(nn.Linear(2, 2), (3, 8, 8))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module; got int"):
        diagnose(3, ProxyEvaluator((3, 8, 8)))
    with pytest.raises(ProxyEvaluationError, match="No blocks found"):
        diagnose(nn.Linear(2, 2), ProxyEvaluator((2,)))
    model = Network(from_arch(ARCHS[0]), channels=4, cells=1)
    before, states = snapshot(model), random_states()
    diagnose(model, ProxyEvaluator((3, 16, 16)))
    assert_same(before, snapshot(model))
    assert states == random_states()
