"""Weights that are computed from others are drawn anew too; what a forward leaves behind in a model is removed."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from optuna_aznas import ProxyEvaluationError, ProxyEvaluator
from optuna_aznas.proxies.model.isolation import substituted
from optuna_aznas.proxies.model.weights import substitute_state
from tests.proxies.test_contracts import assert_same, snapshot


def old_weight_norm(layer):
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


def pruned(layer):
    mask = torch.zeros_like(layer.weight)
    mask[:, ::2] = 1
    return prune.custom_from_mask(layer, "weight", mask)


def orthogonal(**arguments):
    return lambda layer: parametrizations.orthogonal(layer, **arguments)


WAYS = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm as a whole": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "orthogonal, householder": orthogonal(orthogonal_map="householder", use_trivialization=False),
    "orthogonal, cayley": orthogonal(orthogonal_map="cayley", use_trivialization=False),
    "older weight_norm": old_weight_norm,
    "older spectral_norm": nn.utils.spectral_norm,
    "pruned": pruned,
}


def model_with(way, seed):
    torch.manual_seed(seed)
    layers = [nn.Sequential(nn.Linear(6, 12), nn.ReLU())]
    layers += [nn.Sequential(WAYS[way](nn.Linear(12, 12)), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(*layers, nn.Linear(12, 2))


def attributes(model):
    return [(name, set(vars(module)), id(vars(module).get("weight"))) for name, module in model.named_modules()]


PROXIES = ["expressivity", "trainability", "complexity", "zico", "gradient_norm", "zen_score"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("way", WAYS)
def test_two_initialisations_one_score(way):
    evaluator = ProxyEvaluator((6,), batch_size=16, proxies=PROXIES, device="cpu")
    models = [model_with(way, seed) for seed in (0, 1)]
    before = [(snapshot(model), attributes(model)) for model in models]
    first, second = map(evaluator, models)
    assert first == second
    assert all(map(math.isfinite, first))
    for model, (state, names) in zip(models, before, strict=True):
        assert_same(state, snapshot(model))
        assert attributes(model) == names
    own = ProxyEvaluator((6,), batch_size=16, init=None, device="cpu")
    assert own(models[0]) != own(models[1])


def drawn(layer, **arguments):
    """The weight that a layer computes under substitutes."""
    given = {"init": "kaiming", "generator": torch.Generator().manual_seed(0), "device": torch.device("cpu")}
    state = substitute_state(layer.named_modules(), **given | arguments)
    with torch.no_grad(), substituted(state):
        layer(torch.zeros(2, *layer.weight.shape[1:]) if isinstance(layer, nn.Linear) else torch.zeros(2, 8, 4, 4))
        return layer.weight.detach().clone()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("way", ["weight_norm", "weight_norm as a whole", "older weight_norm"])
@pytest.mark.parametrize("build", [lambda: nn.Linear(40, 30), lambda: nn.Conv2d(8, 6, 3, padding=1)])
def test_weight_normalisation_changes_no_draw(build, way):
    torch.testing.assert_close(drawn(WAYS[way](build())), drawn(build()))


@pytest.mark.parametrize("way", ["spectral_norm", "older spectral_norm"])
def test_spectral_normalisation_is_of_the_draw(way):
    plain = drawn(nn.Linear(40, 30))
    expected = plain / torch.linalg.svdvals(plain)[0]
    torch.testing.assert_close(drawn(WAYS[way](nn.Linear(40, 30)).train()), expected, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("way", ["orthogonal", "orthogonal, householder", "orthogonal, cayley"])
@pytest.mark.parametrize("shape", [(12, 12), (12, 7), (7, 12)])
def test_orthogonal_weights_stay_orthogonal(way, shape):
    weight = drawn(WAYS[way](nn.Linear(*shape)))
    gram = weight @ weight.T if weight.shape[0] < weight.shape[1] else weight.T @ weight
    torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-4, rtol=0)


def test_a_mask_stays():
    weight = drawn(pruned(nn.Linear(8, 6)))
    assert (weight[:, 1::2] == 0).all()
    assert (weight[:, ::2] != 0).all()


def test_a_parametrization_of_several_tensors_is_refused():
    class Sum(nn.Module):
        def forward(self, a, b):
            return a + b

        def right_inverse(self, w):
            return w / 2, w / 2

    model = model_with("pruned", 0)
    parametrize.register_parametrization(model[0][0], "weight", Sum())
    with pytest.raises(ProxyEvaluationError, match=r"'0\.0\.weight' is computed from 2 tensors by Sum.*init=None"):
        ProxyEvaluator((6,), device="cpu")(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantized_models_are_refused():
    model = model_with("pruned", 0)
    for layer in model[1:4]:
        prune.remove(layer[0], "weight")
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    with pytest.raises(ProxyEvaluationError, match=r"'0\.0' \(Linear\) is quantized.*before quantization"):
        ProxyEvaluator((6,), device="cpu")(quantized)


def test_the_default_dtype_does_not_matter():
    class New(nn.Module):
        def forward(self, x):
            return x + torch.full((12,), 0.1) @ torch.eye(12)

    for dtype in (torch.float32, torch.float64):
        model = model_with("orthogonal", 0).insert(2, New()).to(dtype)
        evaluator = ProxyEvaluator((6,), batch_size=16, proxies=PROXIES, device="cpu")
        expected = evaluator(model)
        for default in (torch.float64, torch.float16, torch.float32):
            torch.set_default_dtype(default)
            try:
                assert evaluator(model) == expected
                assert torch.get_default_dtype() == default
            finally:
                torch.set_default_dtype(torch.float32)


class LeavesThings(nn.Module):
    """A forward that registers what was not there before."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3)])
        self.register_buffer("filled", None)
        self.register_parameter("late", None)
        self.cache = None
        self.kept = torch.zeros(3)
        self.gone = torch.ones(3)

    def forward(self, x):
        self.filled = torch.ones(6)
        self.late = nn.Parameter(torch.ones(6))
        self.register_buffer("new", x.detach())
        self.added = nn.Identity()
        self.cache, self.kept = x, x
        if hasattr(self, "gone"):
            del self.gone
        self.layers[0].register_forward_hook(lambda module, args, output: None)
        self.layers[1].register_full_backward_pre_hook(lambda module, gradient: None)
        return self.layers(x * self.late + self.filled)


def everything(model):
    found = []
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, dict):
                found += [(name, attribute, key, id(item)) for key, item in value.items()]
            elif isinstance(value, set):
                found.append((name, attribute, frozenset(value)))
            else:
                found.append((name, attribute, id(value)))
    return sorted(map(repr, found))


def test_what_a_forward_registers_is_removed():
    model = LeavesThings()
    before, state = everything(model), snapshot(model)
    ProxyEvaluator((6,), device="cpu", proxies=["expressivity", "naswot"])(model)
    assert everything(model) == before
    assert_same(state, snapshot(model))


def test_constants_are_shared_by_parameters_and_never_by_buffers():
    """Normalisation writes into its running statistics while it runs."""
    model = nn.Sequential(*[nn.BatchNorm1d(4) for _ in range(3)])
    generator = torch.Generator().manual_seed(0)
    state = substitute_state(model.named_modules(), init="kaiming", generator=generator, device=torch.device("cpu"))
    places = {name: [s.tensor for s in state if s.name == name] for name in ("weight", "running_mean", "running_var")}
    assert len(set(map(id, places["weight"]))) == 1
    buffers = [*places["running_mean"], *places["running_var"]]
    assert len({id(tensor) for tensor in (*buffers, places["weight"][0])}) == 7
    with substituted(state):
        model(torch.randn(8, 4))
    assert (places["weight"][0] == 1).all()


def test_embeddings_have_unit_spread():
    """They are looked up and not multiplied, so their width says nothing of it."""
    layer = nn.Embedding(500, 64)
    generator = torch.Generator().manual_seed(0)
    (table,) = substitute_state([("", layer)], init="kaiming", generator=generator, device=torch.device("cpu"))
    assert table.tensor.std().item() == pytest.approx(1.0, abs=0.02)
