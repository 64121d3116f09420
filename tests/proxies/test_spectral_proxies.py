"""Entropy retention, isometry, Jacobian rank and activations against independent computations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from optuna_aznas.proxies import DEFAULT, ProxyEvaluator
from optuna_aznas.proxies.isometry import isometry, jacobian_rank
from optuna_aznas.proxies.retention import entropy_retention
from optuna_aznas.proxies.scores import BlockScores
from optuna_aznas.proxies.spectra import spectrum
from optuna_aznas.spaces import nas_bench_201


def linear_blocks(weights: list[np.ndarray]) -> nn.Sequential:
    """1 x 1 convolutions, whose mean Jacobian is the transposed weight itself."""
    layers = []
    for weight in weights:
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
        conv.weight.data = torch.tensor(weight, dtype=torch.float32)[:, :, None, None]
        layers.append(nn.Sequential(conv))
    return nn.Sequential(*layers)


def from_definition(weights: list[np.ndarray]) -> tuple[float, float]:
    isometries, ranks = [], []
    for weight in weights:
        sigma = np.linalg.svd(weight, compute_uv=False)
        isometries.append(-np.mean([abs(math.log(max(s, 1e-3))) for s in sigma]))
        p = sigma / sigma.sum()
        ranks.append(-sum(x * math.log(x) for x in p if x > 0) / math.log(len(sigma)))
    return float(np.mean(isometries)), float(np.mean(ranks))


@pytest.mark.parametrize("shapes", [[(6, 6), (6, 6)], [(8, 6), (4, 8)]])
@pytest.mark.parametrize("jacobian", ["least-squares", "moment"])
def test_against_the_singular_values_of_linear_blocks(shapes, jacobian):
    rng = np.random.default_rng(0)
    stem = rng.standard_normal((6, 3))
    weights = [rng.standard_normal(shape) / 2 for shape in shapes]
    model = linear_blocks([stem, *weights])
    batch = 64 if jacobian == "moment" else 4
    evaluator = ProxyEvaluator(
        (3, 16, 16),
        batch_size=batch,
        init=None,
        jacobian=jacobian,
        device="cpu",
        proxies=["isometry", "jacobian_rank"],
        blocks=["0", "1", "2"],
    )
    expected = from_definition(weights)
    assert tuple(evaluator(model)) == pytest.approx(expected, abs=0.05 if jacobian == "moment" else 1e-4)


def test_rank_deficient_and_dead_blocks():
    rng = np.random.default_rng(0)
    half = np.diag([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    dead = np.zeros((6, 6))
    evaluator = ProxyEvaluator(
        (3, 8, 8), init=None, device="cpu", proxies=["isometry", "jacobian_rank"], blocks=["0", "1"]
    )
    stem = rng.standard_normal((6, 3))
    got = evaluator(linear_blocks([stem, half]))
    assert got.isometry == pytest.approx(0.5 * math.log(1e-3), rel=1e-4)
    assert got.jacobian_rank == pytest.approx(math.log(3) / math.log(6), rel=1e-3)
    got = evaluator(linear_blocks([stem, dead]))
    assert got.isometry == pytest.approx(math.log(1e-3))
    assert got.jacobian_rank == 0.0


def test_few_positions_leave_the_spectrum_out():
    weight = np.random.default_rng(0).standard_normal((16, 16))
    stem = np.random.default_rng(1).standard_normal((16, 3))
    arguments = {"init": None, "device": "cpu", "proxies": ["isometry", "trainability"], "blocks": ["0", "1"]}
    few = ProxyEvaluator((3, 2, 2), batch_size=7, **arguments)(linear_blocks([stem, weight]))  # 28 positions
    enough = ProxyEvaluator((3, 2, 2), batch_size=8, **arguments)(linear_blocks([stem, weight]))  # 32
    assert math.isnan(few.blocks[1].isometry)
    assert few.isometry == 0.0
    assert enough.blocks[1].isometry == pytest.approx(from_definition([weight])[0], rel=1e-3)
    assert few.blocks[1].spectral_norm == pytest.approx(enough.blocks[1].spectral_norm, rel=1e-3)


@given(
    matrix=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6)),
    scale=st.floats(0.01, 100.0),
)
@settings(max_examples=50)
def test_spectrum_against_numpy(matrix, scale):
    a, b, seed = matrix
    m = np.random.default_rng(seed).standard_normal((a, b)) * scale
    largest, iso, rank = spectrum(torch.tensor(m)[None])[0].tolist()
    sigma = np.linalg.svd(m, compute_uv=False)
    p = sigma / sigma.sum()
    assert largest == pytest.approx(sigma[0], rel=1e-9)
    assert iso == pytest.approx(-np.abs(np.log(np.maximum(sigma, 1e-3))).mean(), rel=1e-6, abs=1e-9)
    full = -(p * np.log(p)).sum() / math.log(len(p)) if len(p) > 1 else 1.0
    assert rank == pytest.approx(full, rel=1e-6)


def block(entropy: float, step: float, iso: float = math.nan, rank: float = math.nan) -> BlockScores:
    return BlockScores("b", (4, 4, 4), entropy, step, 1.0, 0.0, 1.0, iso, rank, channels=4)


def test_retention_adds_losses_only():
    blocks = [block(2.0, math.nan), block(2.5, 0.5), block(2.2, -0.3), block(1.2, -1.0), block(1.3, 0.1)]
    assert entropy_retention(blocks) == pytest.approx(-1.3)
    assert entropy_retention(blocks[:2]) == 0.0
    assert math.isnan(entropy_retention([*blocks, block(math.nan, math.nan)]))


def test_means_leave_out_what_was_not_measured():
    blocks = [block(1.0, math.nan), block(1.0, 0.0, -0.5, 0.9), block(1.0, 0.0), block(1.0, 0.0, -0.1, 0.7)]
    assert isometry(blocks) == pytest.approx(-0.3)
    assert jacobian_rank(blocks) == pytest.approx(0.8)


def test_the_jacobian_rank_of_a_perceptron_is_in_nats():
    """Of two perceptrons whose Jacobians are orthogonal the wider one has the higher rank; in a CNN both have 1."""
    evaluator = ProxyEvaluator((8,), init=None, device="cpu", proxies=["jacobian_rank"])

    def orthogonal(width: int) -> nn.Sequential:
        layers = [nn.Linear(8, width, bias=False), nn.Linear(width, width, bias=False)]
        for layer in layers:
            nn.init.orthogonal_(layer.weight, generator=torch.Generator().manual_seed(0))
        return nn.Sequential(nn.Identity(), *layers, nn.Linear(width, 2))

    for width in (4, 32):
        first = math.log(min(8, width))  # the singular values of a matrix with orthonormal rows or columns are 1
        scores = evaluator.replace(blocks=["0", "1", "2"])(orthogonal(width))
        assert [block.singular_values for block in scores.blocks] == [0, min(8, width), width]
        assert [block.jacobian_rank for block in scores.blocks[1:]] == pytest.approx([1.0, 1.0], abs=1e-3)
        assert scores.jacobian_rank == pytest.approx((first + math.log(width)) / 2, rel=1e-3)


class Everything(nn.Module):
    """Convolution, linear layer by module and by a parameter of its own, recurrent layer, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.linear = nn.Linear(8, 6)
        self.own = nn.Parameter(torch.randn(6, 5))
        self.lstm = nn.LSTM(5, 7, batch_first=True)

    def forward(self, x):
        x = self.second(self.norm(self.conv(x)).relu()).relu()
        tokens = self.linear(x.flatten(2).transpose(1, 2))
        own = torch.mm(tokens.reshape(-1, 6), self.own).view(len(x), -1, 5)
        attended = nn.functional.scaled_dot_product_attention(own, own, own)
        return self.lstm(attended)[0].mean(1)


def test_activations_count_the_outputs_of_layers():
    evaluator = ProxyEvaluator((3, 8, 8), batch_size=3, device="cpu", proxies=["activations", "complexity"])
    expected = 4 * 64 + 8 * 16 + 16 * 6 + 16 * 5 + 16 * 7
    assert evaluator(Everything()).activations == expected


def _on_path(operations: tuple[str, ...]) -> list[str]:
    """Return the operations of a NAS-Bench-201 cell that lie on a path from its input to its output."""
    edges = {edge: name for edge, name in zip(nas_bench_201.EDGES, operations, strict=True) if name != "none"}
    routes = [list(itertools.pairwise((0, *nodes, 3))) for nodes in ((), (1,), (2,), (1, 2))]
    used = {edge for route in routes if all(edge in edges for edge in route) for edge in route}
    return [edges[edge] for edge in used]


def test_activations_leave_out_layers_that_are_on_no_path_from_input_to_output():
    """Random cells of NAS-Bench-201, half of which have such layers, against their paths listed one by one."""
    random = np.random.default_rng(0)
    evaluator = ProxyEvaluator((3, 8, 8), batch_size=2, device="cpu", proxies=["activations"])
    c, without = 4, 0
    # Stem and reductions: a convolution at full size; per reduction two in the branch and one in the shortcut.
    plain = 64 * c + 3 * 16 * 2 * c + 3 * 4 * 4 * c + 10
    for operations in random.choice(nas_bench_201.OPERATIONS, (40, 6)).tolist():
        live = _on_path(operations)
        if not live:  # the output is a constant
            continue
        without += any("conv" in name for name in operations) and len(live) < 6 - operations.count("none")
        layers = sum("conv" in name for name in live)
        expected = plain + layers * (64 * c + 16 * 2 * c + 4 * 4 * c)
        network = nas_bench_201.Network(operations, channels=c, cells=1, device="meta")
        assert evaluator(network).activations == expected, operations
    assert without >= 10


class TwoOutputs(nn.Module):
    """Two heads on one trunk; a layer whose result is dropped; a layer that only sees a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.dropped = nn.Conv2d(4, 16, 1)
        self.constant = nn.Linear(5, 4)
        self.heads = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 7)])

    def forward(self, x):
        x = self.trunk(x)
        self.dropped(x)
        x = x + self.constant(torch.ones(5, device=x.device))[:, None, None]
        return {"outputs": [head(x.mean((2, 3))) for head in self.heads]}


def test_activations_count_the_layers_of_all_outputs():
    evaluator = ProxyEvaluator((3, 8, 8), batch_size=3, device="cpu", proxies=["activations"])
    assert evaluator(TwoOutputs()).activations == 2 * 4 * 64 + 3 + 7


def test_features_behind_global_pooling_are_left_out():
    def block(c_in, c_out):
        return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())

    body = [block(3, 8), block(8, 8), block(8, 16)]
    pooled = nn.Sequential(*body, nn.Sequential(nn.Conv2d(16, 32, 1), nn.AdaptiveAvgPool2d(1)), nn.Flatten())
    shapes = [b.shape for b in ProxyEvaluator((3, 8, 8), device="cpu")(nn.Sequential(pooled, nn.Linear(32, 10))).blocks]
    assert all(math.prod(shape[1:]) > 1 for shape in shapes), shapes
    named = ProxyEvaluator((3, 8, 8), device="cpu", blocks=["0", "1", "3"])(pooled)
    assert named.blocks[-1].shape == (32, 1, 1)  # named by the user: kept


def test_a_vector_input_gets_a_large_batch():
    def mlp(width):
        return nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    evaluator = ProxyEvaluator((20,), device="cpu")
    assert evaluator.batch_size == 1024
    assert ProxyEvaluator((3, 8, 8), device="cpu").batch_size == 8
    narrow, wide = evaluator(mlp(64)), evaluator(mlp(128))
    assert wide.expressivity > narrow.expressivity > 2 * math.log(8)  # not bounded by the samples of a small batch


def test_default_needs_one_pass():
    scores = ProxyEvaluator((3, 8, 8), device="cpu")(linear_blocks([np.eye(4, 3), np.eye(4), np.eye(4)]))
    assert scores.names == DEFAULT
    assert all(math.isfinite(value) for value in scores)


class ViTLike(nn.Module):
    """A plain vision transformer that adds its class token behind the patch embedding, as timm's do."""

    def __init__(self, depth: int = 2, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.Flatten(2))
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        layers = [nn.TransformerEncoderLayer(width, 2, 32, batch_first=True, norm_first=True) for _ in range(depth)]
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.embed(x).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        return self.head(self.blocks(x)[:, 0])


def test_a_class_token_does_not_hide_that_all_features_have_one_width():
    names = ["progressivity", "entropy_retention", "trainability", "isometry", "jacobian_rank"]
    assert tuple(ProxyEvaluator((3, 16, 16), device="cpu", proxies=names)(ViTLike())) == (0.0,) * 5


def test_an_identity_block_is_minus_infinity():
    class Same(nn.Module):
        def forward(self, x):
            return x + 0

    def block(c_in, c_out):
        return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())

    model = nn.Sequential(block(3, 8), nn.Sequential(Same()), block(8, 8))
    evaluator = ProxyEvaluator((3, 8, 8), device="cpu", blocks=["0", "1", "2"])
    scores = evaluator(model)
    assert scores.isometry == scores.jacobian_rank == -math.inf
    assert math.isfinite(scores.blocks[2].isometry)


def test_spectral_norms_are_measured_where_a_proxy_uses_them():
    """Trainability uses that of every block; isometry none of a block with few positions."""

    def block(c_in, c_out, stride):
        return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())

    model = nn.Sequential(block(3, 8, 1), block(8, 8, 1), block(8, 64, 4), nn.Flatten())
    default = ProxyEvaluator((3, 8, 8), device="cpu")
    scores, every = default(model), default.replace(proxies=[*DEFAULT, "trainability"])(model)
    assert scores.to_dict().items() <= every.to_dict().items()
    assert scores.blocks[1] == every.blocks[1]
    assert math.isnan(scores.blocks[2].spectral_norm)
    assert math.isnan(scores.blocks[2].trainability)
    assert every.blocks[2].spectral_norm > 0
    with torch.no_grad():
        model[2][0].weight.fill_(math.inf)
    broken = default.replace(init=None)(model)
    assert broken.blocks[2].trainability == -math.inf  # not finite is told from not measured
    assert broken.isometry == -math.inf


def test_spectra_of_an_isotropic_transformer_are_measured_for_trainability():
    layers = [nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2)]
    model = nn.Sequential(nn.Linear(12, 16), *layers)
    default = ProxyEvaluator((40, 12), device="cpu")
    scores, every = default(model), default.replace(proxies=[*DEFAULT, "trainability"])(model)
    assert scores.to_dict().items() <= every.to_dict().items()
    assert all(math.isnan(block.spectral_norm) for block in scores.blocks)
    assert all(block.spectral_norm > 0 for block in every.blocks[1:])
