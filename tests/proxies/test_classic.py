"""The field's other proxies, against their formulas written plainly."""

from __future__ import annotations

import functools
import math
import operator

import numpy as np
import pytest
import torch
from torch import nn

from optuna_aznas import ProxyEvaluationError, ProxyEvaluator
from optuna_aznas.proxies import ALL_PROXIES
from optuna_aznas.proxies.context import ScoringContext, Seeds
from optuna_aznas.proxies.loss_pass import LossPass
from optuna_aznas.proxies.model.weights import substitute_state
from optuna_aznas.proxies.proxy import Stage
from optuna_aznas.proxies.registry import REGISTRY
from optuna_aznas.proxies.zico import zico

#: The proxies that do not look at blocks.
CLASSIC_PROXIES = [proxy.name for proxy in REGISTRY.values() if proxy.stage is not Stage.FEATURES]


class Small(nn.Module):
    """Convolutions with normalisation, a residual block, and a classifier."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), norm(6), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), norm(6), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), norm(8), nn.ReLU())
        self.classifier = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.classifier(self.second(x + self.first(x)).mean(dim=(2, 3)))


class GivenSeed(ScoringContext):
    """A context whose streams all start from its seed itself, so that a test can draw the same."""

    def generator(self, purpose):
        return torch.Generator().manual_seed(self.seeds.seed)


def computed(model, x, names, second=None, seed=3):
    """The package's scores with the model's own weights, on ``x``, with labels from ``seed``."""
    state = substitute_state(model.named_modules(), init=None, generator=torch.Generator(), device=torch.device("cpu"))
    context = GivenSeed(model, False, state, x, lambda: second, Seeds(seed, 0), torch.device("cpu"))
    proxies = [REGISTRY[name] for name in names]
    needs = functools.reduce(operator.or_, (proxy.needs for proxy in proxies))
    observers = {proxy.name: proxy.observer(context) for proxy in proxies if proxy.observer}
    scores = {}
    loss = LossPass(context, needs, observers) if any(proxy.stage is Stage.LOSS for proxy in proxies) else None
    for proxy in proxies:
        scores[proxy.name] = proxy.score(loss if proxy.stage is Stage.LOSS else context)
    return scores


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Small().train()


@pytest.fixture
def batch():
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def weights_of(model):
    return [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def loss_of(model, x, labels):
    return nn.functional.cross_entropy(model(x), labels)


def labels_for(x, seed=3, classes=5):
    return torch.randint(0, classes, (len(x),), generator=torch.Generator().manual_seed(seed))


def test_gradient_norm_and_snip(model, batch):
    scores = computed(model, batch, ["gradient_norm", "snip"])
    loss_of(model, batch, labels_for(batch)).backward()
    norm = sum(weight.grad.norm().item() for weight in weights_of(model))
    snip = sum((weight.grad * weight).abs().sum().item() for weight in weights_of(model))
    assert scores == {"gradient_norm": pytest.approx(norm, rel=1e-4), "snip": pytest.approx(snip, rel=1e-4)}


def test_grasp_by_finite_differences(batch):
    """H g is the change of the gradient along g."""
    torch.manual_seed(0)
    model = Small().double().train()
    batch = batch.double()
    score = computed(model, batch, ["grasp"])["grasp"]
    weights, labels = weights_of(model), labels_for(batch)

    def gradients():
        return torch.autograd.grad(loss_of(model, batch, labels), weights)

    g, step = gradients(), 1e-5
    moved = []
    for sign in (1, -1):
        with torch.no_grad():
            for weight, direction in zip(weights, g, strict=True):
                weight += sign * step * direction
        moved.append(gradients())
        with torch.no_grad():
            for weight, direction in zip(weights, g, strict=True):
                weight -= sign * step * direction
    expected = 0.0
    for weight, up, down in zip(weights, *moved, strict=True):
        expected -= (weight * (up - down) / (2 * step)).sum().item()
    # ReLU has kinks, and a few units lie on one side of theirs only after the step.
    assert score == pytest.approx(expected, rel=1e-3)


def test_synflow_of_a_chain_is_layers_times_flow():
    """In a chain of linear layers sum w dR/dw is R for each layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    flow = torch.ones(4, dtype=torch.float64)
    for layer in (model[0], model[3], model[5]):
        flow = layer.weight.detach().double().abs() @ flow
    assert computed(model, torch.randn(2, 4), ["synflow"])["synflow"] == pytest.approx(3 * flow.sum().item())
    assert "forward" not in vars(model[1])


def test_synflow_does_not_overflow_where_float32_would():
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(40)))
    for layer in model:
        nn.init.constant_(layer.weight, 1.0)
    score = computed(model, torch.randn(2, 64), ["synflow"])["synflow"]
    assert score == pytest.approx(40 * 64.0**41)


def test_naswot(model, batch):
    inputs = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach().numpy()))
    score = computed(model, batch, ["naswot"])["naswot"]
    codes = np.concatenate([(x > 0).reshape(len(x), -1) for x in inputs], axis=1)
    kernel = [[np.sum(codes[i] == codes[j]) for j in range(len(codes))] for i in range(len(codes))]
    assert score == pytest.approx(np.linalg.slogdet(np.array(kernel, float))[1], rel=1e-6)


def test_naswot_counts_functional_activations(batch):
    class Functional(Small):
        def forward(self, x):
            return super().forward(torch.relu(x - 0.1))

    torch.manual_seed(0)
    plain = computed(Small(), batch, ["naswot"])["naswot"]
    torch.manual_seed(0)
    assert computed(Functional(), batch, ["naswot"])["naswot"] > plain


def test_jacobian_covariance(batch):
    torch.manual_seed(0)
    model = Small(norm=lambda n: nn.GroupNorm(2, n))  # samples do not see each other
    score = computed(model, batch, ["jacobian_covariance"])["jacobian_covariance"]
    rows = []
    for x in batch:
        jacobian = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], x)
        rows.append(jacobian.sum(dim=0).flatten().numpy())
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(rows)) + 1e-5
    assert score == pytest.approx(-np.sum(np.log(eigenvalues) + 1 / eigenvalues), rel=1e-3)


def test_zico(model, batch):
    second = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    score = computed(model, batch, ["zico"], second=second)["zico"]
    generator = torch.Generator().manual_seed(3)
    found = []
    for x in (batch, second):
        labels = torch.randint(0, 5, (6,), generator=generator)
        found.append([g.numpy() for g in torch.autograd.grad(loss_of(model, x, labels), weights_of(model))])
    expected = 0.0
    for a, b in zip(*found, strict=True):
        mean, deviation = (abs(a) + abs(b)) / 2, abs(abs(a) - abs(b)) / 2
        expected += math.log(np.sum(mean[deviation > 0] / deviation[deviation > 0]))
    assert score == pytest.approx(expected, rel=1e-4)


def test_zico_leaves_out_layers_without_gradient():
    dead = torch.zeros(3, 3)
    live = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 3.0]])
    assert zico([[dead, live[0]], [dead, live[1]]]) == pytest.approx(math.log(1.5 / 0.5))


def test_zen_score(model, batch):
    """With the weights and noises that it draws, in the order in which it draws them."""
    score = computed(model, batch, ["zen_score"])["zen_score"]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in weights_of(model):
            weight.copy_(torch.randn(weight.shape, generator=generator))
    x = torch.randn(batch.shape, generator=generator)
    moved = x + 0.01 * torch.randn(batch.shape, generator=generator)
    logs = []

    def feature(x, keep=False):
        def conv_norm(block, x):
            x = block[0](x)
            if keep:
                logs.append(0.5 * math.log(x.var(dim=(0, 2, 3), unbiased=False).mean().item()))
            return torch.relu(block[1](x))

        x = conv_norm(model.stem, x)
        return conv_norm(model.second, x + conv_norm(model.first, x))

    with torch.no_grad():
        difference = (feature(x, keep=True) - feature(moved)).flatten(1).norm(dim=1).mean().item()
    assert score == pytest.approx(math.log(difference) + sum(logs), rel=1e-4)


def test_counts(model):
    scores = computed(model, torch.zeros(2, 3, 8, 8), ["parameters", "trainable_layers"])
    assert scores == {"parameters": sum(p.numel() for p in model.parameters()), "trainable_layers": 4}


def test_naming_one_changes_no_other_and_the_model_stays():
    torch.manual_seed(0)
    model = Small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    every = ProxyEvaluator((3, 8, 8), batch_size=4, proxies=ALL_PROXIES, device="cpu")(model)
    assert every.names == ALL_PROXIES
    for name in CLASSIC_PROXIES:
        alone = ProxyEvaluator((3, 8, 8), batch_size=4, proxies=name, device="cpu")(model)
        assert alone[0] == pytest.approx(getattr(every, name), rel=1e-5), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_what_is_not_named_costs_nothing(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("computed without being named")

    with monkeypatch.context() as patch:
        patch.setattr("optuna_aznas.proxies.evaluator.LossPass", forbidden)
        ProxyEvaluator((3, 8, 8), device="cpu")(Small())
    monkeypatch.setattr("optuna_aznas.proxies.evaluator.plan_blocks", forbidden)
    monkeypatch.setattr(Small, "forward", forbidden)
    scores = ProxyEvaluator((3, 8, 8), proxies=("parameters", "trainable_layers"), device="cpu")(Small())
    assert scores.trainable_layers == 4


def test_the_same_seed_gives_the_same_scores_and_another_others():
    torch.manual_seed(0)
    model, drawn = Small(), [name for name in CLASSIC_PROXIES if name not in ("parameters", "trainable_layers")]
    once, again, other = (
        ProxyEvaluator((3, 8, 8), proxies=drawn, device="cpu", seed=seed)(model) for seed in (1, 1, 2)
    )
    assert once == again
    assert all(a != b for a, b in zip(once, other, strict=True))


def test_outputs_of_other_shapes_have_a_loss():
    for head in (nn.Conv2d(6, 4, 1), nn.Sequential(nn.Flatten(), nn.Linear(6 * 64, 1))):
        model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), head)
        scores = ProxyEvaluator((3, 8, 8), proxies=("gradient_norm", "snip", "zico"), device="cpu")(model)
        assert all(math.isfinite(score) and score != 0 for score in scores)


def test_an_output_without_gradient_is_an_error():
    class Detached(Small):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(ProxyEvaluationError, match=r"output of Detached .* has no gradient .* detach"):
        ProxyEvaluator((3, 8, 8), proxies="snip", device="cpu")(Detached())


def test_integers_have_no_jacobian():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 3))
    tokens = torch.randint(0, 10, (4, 3))
    assert ProxyEvaluator(inputs=tokens, proxies="gradient_norm", device="cpu")(model)[0] > 0
    with pytest.raises(ProxyEvaluationError, match="jacobian_covariance needs a floating-point input"):
        ProxyEvaluator(inputs=tokens, proxies="jacobian_covariance", device="cpu")(model)


def test_a_model_without_layers_is_an_error():
    with pytest.raises(ProxyEvaluationError, match="Identity has no convolution or linear layer"):
        ProxyEvaluator((3, 8, 8), proxies="snip", device="cpu")(nn.Identity())
