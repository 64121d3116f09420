"""The evaluator against tests/reference.py, given the same weights, input and v."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from optuna_aznas import ProxyEvaluator
from optuna_aznas.proxies import AZNAS, feature_pass, find_blocks
from optuna_aznas.spaces.nas_bench_201 import Network, from_arch
from tests import reference

ARCHS = [
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|",
    "|skip_connect~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|nor_conv_3x3~0|nor_conv_1x1~1|nor_conv_3x3~2|",
    "|nor_conv_1x1~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|none~2|",
    "|avg_pool_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|",  # identity cells
    "|none~0|+|nor_conv_3x3~0|none~1|+|none~0|none~1|skip_connect~2|",
]


class ResNetish(nn.Module):
    """Bias, group and depthwise convolution, layer with stride, no normalisation in between, linear head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
        self.layers = nn.Sequential(Block(8, 8, 1), Block(8, 12, 2), Block(12, 12, 1), Block(12, 24, 4))
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        return self.head(self.layers(self.stem(x)).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.norm = nn.GroupNorm(4, c_in)
        self.depthwise = nn.Conv2d(c_in, c_in, 3, stride=stride, padding=1, groups=c_in)
        self.pointwise = nn.Conv2d(c_in, c_out, 1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride=stride)

    def forward(self, x):
        return self.shortcut(x) + self.pointwise(torch.relu(self.depthwise(self.norm(x))))


def noise_and_signs(monkeypatch):
    """Make the evaluator use an input and v that a test can use too: v from the feature's values."""

    def signs(feature):
        # Any fixed function of the shape will do, as long as both sides call it.
        generator = torch.Generator().manual_seed(feature.numel() + feature.shape[1])
        return reference.random_signs(feature, generator)

    monkeypatch.setattr(feature_pass, "random_signs", lambda generator: signs)
    return signs


def build(case):
    return Network(from_arch(case), channels=8, cells=2) if isinstance(case, str) else case()


@pytest.mark.parametrize("jacobian", ["moment", "least-squares"])
@pytest.mark.parametrize("case", [*ARCHS, ResNetish], ids=[*range(len(ARCHS)), "resnetish"])
def test_agrees_with_the_reference(case, jacobian, monkeypatch):
    signs = noise_and_signs(monkeypatch)
    model = build(case)
    reference.initialise(model, torch.Generator().manual_seed(3))
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    names = list(find_blocks(model))
    assert names[0] == "stem"
    evaluator = ProxyEvaluator(inputs=x, init=None, jacobian=jacobian, device="cpu", proxies=AZNAS)
    model.train()

    ours = evaluator(model)
    features = reference.features_of(model, names, x)
    vs = [signs(feature) for feature in features[1:]]
    assert ours == pytest.approx(reference.scores(model, names, x, vs, jacobian), rel=2e-4, abs=2e-4)

    # Block by block in double precision: in single, rounding tips a ReLU over here and there.
    ours = evaluator(model.double())
    features = reference.features_of(model, names, x.double())
    vs = [signs(feature) for feature in features[1:]]
    assert ours == pytest.approx(reference.scores(model, names, x.double(), vs, jacobian), rel=1e-6, abs=1e-6)
    assert [block.name for block in ours.blocks] == names
    for block, feature in zip(ours.blocks, features, strict=True):
        assert block.shape == tuple(feature.shape[1:])
        assert block.entropy == pytest.approx(reference.entropy(feature), rel=1e-6, abs=1e-6)
    pairs = zip(features[:-1], features[1:], vs, ours.blocks[1:], strict=True)
    for before, after, v, block in pairs:
        expected = reference.block_trainability(before, after, v, jacobian)
        assert block.trainability == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert math.isnan(ours.blocks[0].step)


def test_the_all_none_cell_has_a_defined_score():
    """No signal: expressivity and progressivity are -inf, each cell's sigma is 0."""
    arch = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    scores = ProxyEvaluator((3, 32, 32), batch_size=4, device="cpu", proxies=AZNAS)(Network(from_arch(arch), cells=1))
    assert scores.expressivity == scores.progressivity == -math.inf
    for name in ("blocks.0", "blocks.2", "blocks.4"):
        (cell,) = [block for block in scores.blocks if block.name == name]
        assert cell.spectral_norm == 0.0
        assert cell.trainability == pytest.approx(2 - 1e6)
    assert math.isfinite(scores.trainability)
    assert scores.complexity > 0


def test_an_identity_block_scores_minus_infinity():
    scores = ProxyEvaluator((3, 32, 32), batch_size=4, device="cpu", proxies=AZNAS)(
        Network(from_arch(ARCHS[3]), cells=1)
    )
    assert scores.trainability == -math.inf
    assert scores.progressivity <= 0.0


@pytest.mark.parametrize("batch_size", [2, 16])
def test_least_squares_is_exact_for_a_linear_block_at_any_batch(batch_size):
    """A block y = W x has Jacobian W everywhere: least squares finds its spectral norm, moments only roughly."""
    torch.manual_seed(0)
    weight = torch.randn(12, 6)

    class Matrix(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(6, 12, 1, bias=False))
            with torch.no_grad():
                self.inner[0].weight.copy_(weight[:, :, None, None])

        def forward(self, x):
            return self.inner(x)

    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU()), Matrix())
    expected = torch.linalg.svdvals(weight)[0].item()
    exact = ProxyEvaluator((3, 8, 8), init=None, batch_size=batch_size, device="cpu")(model)
    rough = ProxyEvaluator((3, 8, 8), init=None, batch_size=batch_size, jacobian="moment", device="cpu")(model)
    assert exact.blocks[1].spectral_norm == pytest.approx(expected, rel=1e-4)
    assert abs(rough.blocks[1].spectral_norm - expected) > 1e-3 * expected


def test_fewer_positions_than_channels():
    """With least squares, v v^T is singular there; the smallest solution serves."""
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 1),
        nn.Conv2d(64, 2, 1),
    )
    scores = ProxyEvaluator((3, 2, 2), batch_size=4, device="cpu", proxies=AZNAS)(model)
    assert all(math.isfinite(score) for score in scores)


def test_complexity_counts_published_networks():
    """Multiply-accumulates and parameters published for two networks (in millions)."""
    for arch, macs, parameters in ((ARCHS[0], 153.27, 1.073), (ARCHS[1], 121.82, 0.858)):
        model = Network(from_arch(arch))
        scores = ProxyEvaluator((3, 32, 32), batch_size=2, proxies=["complexity"], device="cpu")(model)
        assert round(scores.complexity / 1e6, 2) == macs
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == parameters


def test_block_complexities_add_up():
    model = ResNetish()
    scores = ProxyEvaluator((3, 32, 32), batch_size=4, device="cpu", proxies=AZNAS)(model)
    head = 24 * 5
    assert sum(block.complexity for block in scores.blocks) + head == scores.complexity
    assert scores.complexity == reference.complexity(copy.deepcopy(model), torch.randn(2, 3, 32, 32))


def test_what_is_not_named_is_not_computed(monkeypatch):
    model = ResNetish()

    def forbidden(*args, **kwargs):
        raise AssertionError("computed all the same")

    every = ProxyEvaluator((3, 32, 32), batch_size=4, device="cpu", proxies=AZNAS)(model)
    monkeypatch.setattr(torch.autograd, "grad", forbidden)
    forward_only = ProxyEvaluator((3, 32, 32), batch_size=4, proxies=["progressivity", "expressivity"], device="cpu")
    scores = forward_only(model)
    assert scores.names == ("progressivity", "expressivity")
    assert tuple(scores) == (every.progressivity, every.expressivity)
    monkeypatch.undo()
    monkeypatch.setattr("optuna_aznas.proxies.aznas.scatter", forbidden)
    assert ProxyEvaluator((3, 32, 32), batch_size=4, proxies="trainability", device="cpu")(model) == (
        every.trainability,
    )


def test_repeats_average_over_draws(monkeypatch):
    model = ResNetish()
    singles = []
    score_once = ProxyEvaluator._score_repeat

    def keep(self, *args):
        singles.append(score_once(self, *args))
        return singles[-1]

    monkeypatch.setattr(ProxyEvaluator, "_score_repeat", keep)
    scores = ProxyEvaluator((3, 32, 32), batch_size=4, device="cpu", seed=5, repeats=3)(model)
    assert len({values["expressivity"] for values, *_ in singles}) == 3  # three draws indeed
    for i, name in enumerate(scores.names):
        assert scores[i] == pytest.approx(sum(values[name] for values, *_ in singles) / 3), name
    assert scores.blocks == tuple(singles[0][1])


def test_a_decomposition_that_does_not_converge_is_a_score(monkeypatch):
    """Only the block concerned has no entropy, and the network scores -inf."""
    evaluator, eigvalsh = ProxyEvaluator((3, 32, 32), batch_size=4, device="cpu", proxies=AZNAS), torch.linalg.eigvalsh
    model = ResNetish()
    expected = evaluator(model)
    bad = []

    def moody(matrices):
        if matrices.shape[-1] == 12:  # two blocks have 12 channels
            bad[:] = bad or [matrices[1]]
            if any(torch.equal(matrix, bad[0]) for matrix in matrices):
                raise torch.linalg.LinAlgError("failed to converge")
        return eigvalsh(matrices)

    monkeypatch.setattr(torch.linalg, "eigvalsh", moody)
    scores = evaluator(model)
    assert scores.expressivity == scores.progressivity == -math.inf
    assert scores.trainability == expected.trainability
    entropies = [block.entropy for block in scores.blocks]
    assert math.isnan(entropies.pop(3))
    assert entropies == [block.entropy for i, block in enumerate(expected.blocks) if i != 3]
