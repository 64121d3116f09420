"""What makes scoring fast must not change what is scored."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from optuna_aznas import ProxyEvaluationError, ProxyEvaluator, spaces
from optuna_aznas.proxies import aznas, feature_pass, spectra
from optuna_aznas.proxies.batching import BatchedDecompositions
from optuna_aznas.proxies.features.cotangents import random_signs as draw_signs
from optuna_aznas.proxies.model import counting
from optuna_aznas.proxies.model.counting import MacCounter
from optuna_aznas.spaces.nas_bench_201 import Network, from_arch, to_params
from tests.proxies.test_agreement import ARCHS, ResNetish
from tests.proxies.test_contracts import assert_same, random_states, snapshot


def random_signs(rows, columns, seed):
    return torch.from_numpy(np.random.default_rng(seed).choice([-1.0, 1.0], (rows, columns))).float()


@settings(max_examples=150)
@given(
    positions=st.integers(1, 40),
    channels=st.integers(1, 24),
    channels_of_g=st.integers(1, 24),
    seed=st.integers(0, 2**32 - 1),
)
def test_least_squares_is_the_smallest_solution(positions, channels, channels_of_g, seed):
    """Against the pseudo-inverse of v itself, well conditioned or singular, more positions than channels or fewer."""
    v = random_signs(positions, channels, seed)
    g = torch.from_numpy(np.random.default_rng(seed + 1).normal(size=(positions, channels_of_g))).float()
    singular_values = torch.linalg.svdvals(v.double())
    relative = singular_values / singular_values[0]
    assume(not ((relative > 1e-6) & (relative < 0.03)).any())  # all but singular: single precision cannot tell
    solution = torch.linalg.pinv(v.double(), rtol=1e-6) @ g.double()
    expected = torch.linalg.svdvals(solution)[0].item()
    (job,) = aznas._by_least_squares(g[None], v[None])
    assert max(max(stack.shape) for stack in job.stacks) <= max(channels, channels_of_g)
    largest, iso, rank = job.function(*job.stacks)[0].tolist()
    assert largest == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert math.isnan(iso) == math.isnan(rank) == (positions < 2 * channels)


@settings(max_examples=50)
@given(rows=st.integers(1, 30), columns=st.integers(1, 30), log_scale=st.integers(-18, 18), seed=st.integers(0, 99))
def test_spectral_norm(rows, columns, log_scale, seed):
    """Also where squares would leave the range of single precision."""
    matrix = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, rows, columns))).float() * 10.0**log_scale
    expected = torch.linalg.svdvals(matrix)[0, 0].item()
    assert spectra.spectrum(matrix)[0, 0].item() == pytest.approx(expected, rel=1e-5)


@settings(max_examples=50)
@given(positions=st.integers(2, 30), channels=st.integers(1, 30), seed=st.integers(0, 99))
def test_entropy_from_either_side(positions, channels, seed):
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(positions, channels))).double()
    covariance = torch.cov(x.T, correction=0).reshape(channels, channels)
    expected = spectra.spectral_entropy(covariance[None]).item()
    scatter = spectra.scatter(x[None])
    assert scatter.shape[-1] == min(positions, channels)
    assert spectra.spectral_entropy(scatter).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_signs_are_independent_and_balanced():
    """Every bit of a word counts, and no tensor repeats another's signs."""
    draw = draw_signs(torch.Generator().manual_seed(0))
    like = torch.empty(8, 64, 32, 32)
    first, second = draw(like), draw(like)
    assert set(first.unique().tolist()) == {-1.0, 1.0}
    by_bit = first.flatten().view(-1, 64)
    assert by_bit.mean(0).abs().max() < 5 / math.sqrt(len(by_bit))
    products = by_bit.T @ by_bit / len(by_bit) - torch.eye(64)
    assert products.abs().max() < 6 / math.sqrt(len(by_bit))
    assert abs((first * second).mean()) < 5 / math.sqrt(first.numel())
    last = draw(torch.empty(2, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last))
    assert last.dtype == torch.float64
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last.abs(), torch.ones_like(last))


def test_a_batch_that_is_reduced_later_gives_the_same(monkeypatch):
    """Blocks of one shape may wait for one another, as they do on a GPU."""
    evaluator, model = ProxyEvaluator((3, 32, 32), device="cpu"), Network(from_arch(ARCHS[1]), channels=4, cells=2)
    at_once = evaluator(model)
    waiting = []

    def never(self, device):
        waiting.append(sum(map(len, self._waiting.values())))

    monkeypatch.setattr(BatchedDecompositions, "reduce_if_due", never)
    assert evaluator(model) == pytest.approx(at_once, rel=1e-4)
    assert waiting == sorted(waiting)
    assert waiting[-1] >= 2 * len(at_once.blocks) - 1  # a feature of each, and a product of all but the stem


class Insists(nn.Module):
    """A network that needs contiguous memory, and the running statistics of its normalisation."""

    def __init__(self, what):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.blocks = nn.Sequential(
            *[nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)) for _ in range(2)]
        )
        self.what = what
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        x = self.blocks(self.stem(x))
        return x.view(len(x), -1) if self.what == "view" else x - self.stem[1].running_mean.sum()


@pytest.mark.parametrize("what", ["view", "statistics"])
def test_models_that_need_what_was_left_out(what):
    model = Insists(what)
    before, states = snapshot(model), random_states()
    evaluator = ProxyEvaluator((3, 8, 8), device="cpu")
    scores = evaluator(model)
    assert model.runs == 2
    assert all(map(math.isfinite, scores))
    assert evaluator(model) == scores
    assert_same(before, snapshot(model))
    assert states == random_states()


def test_layouts_agree(monkeypatch):
    """The same weights and input give the same scores, channels last or first."""
    model = ResNetish().double()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def signs(feature):
        generator = torch.Generator().manual_seed(feature.numel())
        return torch.randint(0, 2, feature.shape, generator=generator).to(feature.dtype) * 2 - 1

    monkeypatch.setattr(feature_pass, "random_signs", lambda generator: signs)
    evaluator = ProxyEvaluator(inputs=x, init=None, device="cpu")
    last = evaluator(model)
    prepared, ways = ProxyEvaluator._prepared, []

    def as_written(self, subject, seeds, *, streamlined, **others):
        ways.append(streamlined)
        return prepared(self, subject, seeds, streamlined=False, **others)

    monkeypatch.setattr(ProxyEvaluator, "_prepared", as_written)
    assert evaluator(model) == pytest.approx(last, rel=1e-9)
    assert ways == [True]


def test_a_model_without_weights_scores_the_same():
    evaluator = ProxyEvaluator((3, 16, 16), device="cpu")
    for arch in ARCHS[:3]:
        bare = Network(from_arch(arch), channels=4, cells=1, device="meta")
        assert all(parameter.is_meta for parameter in bare.parameters())
        assert evaluator(bare) == evaluator(Network(from_arch(arch), channels=4, cells=1))
        assert all(parameter.is_meta for parameter in bare.parameters())


def test_a_network_without_weights_can_be_given_some():
    import optuna

    trial = optuna.trial.FixedTrial(to_params(from_arch(ARCHS[0])))
    bare = spaces.nas_bench_201.build(trial, channels=4, cells=1, device="meta").to_empty(device="cpu")
    for module in bare.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    ordinary = spaces.nas_bench_201.build(trial, channels=4, cells=1)
    assert [p.shape for p in bare.parameters()] == [p.shape for p in ordinary.parameters()]
    for a, b in zip(bare.parameters(), ordinary.parameters(), strict=True):
        assert a.abs().max().item() == pytest.approx(b.abs().max().item(), rel=0.5)
    assert torch.isfinite(bare(torch.randn(2, 3, 8, 8))).all()


def test_multiply_accumulates_of_what_is_no_layer():
    """Products outside layers are counted operator by operator; the rest is let through."""
    x = torch.ones(2, 3, 4)
    weight = torch.ones(5, 4)
    cases = {
        lambda: nn.functional.linear(x, weight): 2 * 3 * 4 * 5,
        lambda: nn.functional.linear(input=x, weight=weight): 2 * 3 * 4 * 5,
        lambda: x @ weight.T: 2 * 3 * 4 * 5,
        lambda: torch.einsum("bnc,bmc->bnm", x, x): 2 * 3 * 3 * 4,
        lambda: torch.bmm(x, x.mT): 2 * 3 * 3 * 4,
        lambda: nn.functional.conv1d(x, torch.ones(6, 3, 2), stride=2): 2 * 2 * 6 * 3 * 2,
        lambda: nn.functional.conv1d(x, torch.ones(3, 1, 3), groups=3): 2 * 3 * 2 * 3,
        lambda: nn.functional.conv_transpose1d(x, torch.ones(3, 6, 2)): 2 * 4 * 3 * 6 * 2,
        lambda: torch.relu(x + x * 2).mean(): 0,
    }
    for call, expected in cases.items():
        with MacCounter() as counter:
            call()
        assert counter.total == expected


def test_modules_whose_weights_cannot_be_replaced():
    evaluator = ProxyEvaluator((3, 16, 16), device="cpu")
    model = Network(from_arch(ARCHS[0]), channels=4, cells=1)
    with pytest.raises(ProxyEvaluationError, match=r"DataParallel spreads a model over devices.*\.module"):
        evaluator(nn.DataParallel(model))


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_models_run_as_they_were_written(whole):
    def backend(graph, inputs):
        raise AssertionError("compiled all the same")

    model, evaluator = Network(from_arch(ARCHS[0]), channels=4, cells=1), ProxyEvaluator((3, 16, 16), device="cpu")
    expected = evaluator(model)
    if whole:
        compiled = torch.compile(model, backend=backend)
    else:
        compiled, model.blocks[1] = model, torch.compile(model.blocks[1], backend=backend)
    assert evaluator(compiled) == expected


@pytest.mark.parametrize("collecting", [True, False])
def test_global_settings_come_back(collecting):
    was = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        threads = torch.get_num_threads()
        ProxyEvaluator((3, 16, 16))(Network(from_arch(ARCHS[0]), channels=4, cells=1))
        assert gc.isenabled() is collecting
        assert torch.get_num_threads() == threads
    finally:
        (gc.enable if was else gc.disable)()


@pytest.mark.parametrize("model", [ResNetish(), Network(from_arch(ARCHS[1]), channels=4, cells=1)])
def test_reading_the_graph_intercepts_no_operators(model, monkeypatch):
    """The recorder reads an attribute of every result, and each dispatch mode that is entered costs microseconds."""
    running, entered = [], []
    count, enter = counting.MacCounter.__torch_function__, counting._OperatorCounter.__enter__

    def noted(self, func, types, args=(), kwargs=None):
        running.append(func)
        return count(self, func, types, args, kwargs)

    def entering(self):
        entered.append(running[-1].__name__)
        return enter(self)

    monkeypatch.setattr(counting.MacCounter, "__torch_function__", noted)
    monkeypatch.setattr(counting._OperatorCounter, "__enter__", entering)
    ProxyEvaluator((3, 16, 16), device="cpu")(model)
    assert set(entered) <= {"untyped_storage"}
