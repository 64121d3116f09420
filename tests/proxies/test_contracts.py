"""DESIGN's first two contracts: the model comes back untouched, and the same seed gives the same scores."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from optuna_aznas import ProxyEvaluationError, ProxyEvaluator
from optuna_aznas.proxies import AZNAS, DEFAULT
from optuna_aznas.spaces.nas_bench_201 import Network, from_arch

ARCH = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"


def network():
    return Network(from_arch(ARCH), channels=4, cells=1)


class Awkward(nn.Module):
    """Everything that scoring could disturb: tied and frozen weights, gradients, dropout, buffers, hooks, mixed
    modes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*[Layer() for _ in range(3)])
        self.head = nn.Linear(8, 2)
        self.layers[1].conv.weight = self.layers[0].conv.weight  # tied
        self.head.weight.requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))
        self.layers[2].eval()
        self.calls = []
        self.head.register_forward_hook(lambda module, args, output: self.calls.append(1))
        for parameter in self.layers[0].parameters():
            parameter.grad = torch.ones_like(parameter)

    def forward(self, x):
        self.seen += 1
        x = self.layers(self.stem(x))
        x += torch.rand((), device=x.device) + float(np.random.rand()) + random.random()
        return self.head(x.mean((2, 3)))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        x = self.act(x)  # in place, on the block's input
        x = self.drop(self.norm(self.conv(x)))
        x += 0.1  # in place, on what becomes the block's output
        return x


def snapshot(model):
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "addresses": [(name, id(t), t.data_ptr(), t.device) for name, t in model.state_dict(keep_vars=True).items()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "versions": [p._version for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [
            (list(module._forward_hooks), list(module._forward_pre_hooks), list(module._backward_hooks))
            for module in model.modules()
        ],
    }


def assert_same(before, after):
    assert before.keys() == after.keys()
    for key in before:
        if key == "state":
            assert all(torch.equal(before[key][name], after[key][name]) for name in before[key])
        elif key == "grads":
            for a, b in zip(before[key], after[key], strict=True):
                assert (a is None) == (b is None)
                assert a is None or torch.equal(a, b)
        else:
            assert before[key] == after[key], key


def random_states():
    return torch.get_rng_state().tolist(), pickle.dumps(np.random.get_state()), random.getstate()


@pytest.mark.parametrize("init", ["auto", None])
@pytest.mark.parametrize("build", [network, Awkward])
def test_the_model_comes_back_untouched(build, init):
    model = build()
    before, states = snapshot(model), random_states()
    scores = ProxyEvaluator((3, 16, 16), batch_size=4, init=init, repeats=2)(model)
    assert all(np.isfinite(scores))
    assert_same(before, snapshot(model))
    assert states == random_states()


def test_untouched_when_it_fails():
    class Failing(Awkward):
        def forward(self, x):
            super().forward(x)
            raise KeyError("no such thing")

    model = Failing()
    before, states = snapshot(model), random_states()
    with pytest.raises(ProxyEvaluationError, match="no such thing"):
        ProxyEvaluator((3, 16, 16), batch_size=4)(model)
    assert_same(before, snapshot(model))
    assert states == random_states()


def test_untouched_when_it_is_interrupted():
    class Interrupted(Awkward):
        def forward(self, x):
            super().forward(x)
            raise KeyboardInterrupt

    model = Interrupted()
    before, states = snapshot(model), random_states()
    with pytest.raises(KeyboardInterrupt):
        ProxyEvaluator((3, 16, 16), batch_size=4)(model)
    assert_same(before, snapshot(model))
    assert states == random_states()


def test_threads_take_turns():
    """Even on the same model; global state is as before when all are done."""
    evaluator, models = ProxyEvaluator((3, 16, 16), batch_size=4), [network(), Awkward()]
    expected = [evaluator(model) for model in models]
    before = [snapshot(model) for model in models]
    settings = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    states = random_states()
    with ThreadPoolExecutor(4) as pool:
        scored = list(pool.map(evaluator, models * 8))
    for scores, alone in zip(scored, expected * 8, strict=True):
        assert scores == pytest.approx(alone, rel=1e-4)  # a thread of its own may round otherwise
    assert states == random_states()
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == settings
    for model, was in zip(models, before, strict=True):
        assert_same(was, snapshot(model))


def test_a_scored_model_trains():
    model = network()
    ProxyEvaluator((3, 16, 16), batch_size=4)(model)
    x, y = torch.randn(8, 3, 16, 16), torch.randint(0, 10, (8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_callers_modes_do_not_matter():
    evaluator = ProxyEvaluator((3, 16, 16), batch_size=4)
    model = network()
    expected = evaluator(model)
    with torch.no_grad():
        assert evaluator(model) == expected
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert evaluator(model) == expected
        assert torch.is_inference_mode_enabled()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert evaluator(model) == expected


PRECISIONS = {
    "legacy": "torch.set_float32_matmul_precision('medium')",
    "legacy cudnn": "torch.backends.cudnn.allow_tf32 = False",
    "cuda matmul": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "cudnn conv": "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "mkldnn": "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "all": "torch.backends.fp32_precision = 'tf32'",
}


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="an older torch without these names"
)
@pytest.mark.parametrize("setting", PRECISIONS)
def test_the_callers_precision_does_not_matter(setting):
    """In a process of its own each: torch forbids mixing its two ways of setting it, and keeps a memory of both."""
    script = f"""
import torch
from tests.proxies.test_contracts import network
from optuna_aznas import ProxyEvaluator

evaluator, model = ProxyEvaluator((3, 16, 16), batch_size=4), network()
expected = evaluator(model)
{PRECISIONS[setting]}

def settings():
    b = torch.backends
    owners = (b, b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv)
    values = [owner.fp32_precision for owner in owners]
    return values + ([torch.get_float32_matmul_precision()] if {setting == "legacy"} else [])

before = settings()
assert evaluator(model) == expected
assert settings() == before, (before, settings())
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_same_seed_same_scores_whatever_came_before():
    evaluator = ProxyEvaluator((3, 16, 16), batch_size=4, seed=7)
    model = network()
    expected = evaluator(model)
    ProxyEvaluator((3, 32, 32), batch_size=2, seed=3)(Awkward())
    torch.manual_seed(99)
    assert evaluator(model) == expected
    assert ProxyEvaluator((3, 16, 16), batch_size=4, seed=7)(network()) == expected  # weights of its own do not count
    assert ProxyEvaluator((3, 16, 16), batch_size=4, seed=8)(model) != expected
    dropout = ProxyEvaluator((3, 16, 16), batch_size=4, init=None)
    awkward = Awkward()
    assert dropout(awkward) == dropout(awkward)


def test_same_scores_in_another_process():
    script = (
        "import torch; torch.set_num_threads(1); from optuna_aznas import ProxyEvaluator;"
        "from optuna_aznas.spaces.nas_bench_201 import Network, from_arch;"
        f"model = Network(from_arch({ARCH!r}), channels=4, cells=1);"
        "print(list(ProxyEvaluator((3, 16, 16), batch_size=4, device='cpu')(model)))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    here = ProxyEvaluator((3, 16, 16), batch_size=4, device="cpu")(network())
    assert list(here) == pytest.approx(eval(runs[0]), rel=1e-4)  # other numbers of threads, other rounding


def test_scores_are_a_tuple_that_survives_pickling():
    scores = ProxyEvaluator((3, 16, 16), batch_size=4)(network())
    assert isinstance(scores, tuple)
    assert scores.names == DEFAULT
    assert scores.to_dict() == dict(zip(scores.names, scores, strict=True))
    assert scores.expressivity == scores[0]
    assert scores.seconds > 0
    again = pickle.loads(pickle.dumps(scores))
    assert again == scores
    assert again.names == scores.names
    assert again.blocks[1] == scores.blocks[1]
    assert again.seconds == scores.seconds
    with pytest.raises(AttributeError, match="latency"):
        _ = scores.latency


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_leaves_the_model_where_it_is_and_agrees_with_the_cpu():
    model = network()
    before = snapshot(model)
    torch.cuda.manual_seed(5)
    state = torch.cuda.get_rng_state().tolist()
    evaluator = ProxyEvaluator((3, 16, 16), batch_size=4, init=None, device="cuda", inputs=None)
    scores = evaluator(model)
    assert_same(before, snapshot(model))
    assert torch.cuda.get_rng_state().tolist() == state
    assert evaluator(model) == scores
    x = torch.randn(16, 3, 16, 16)
    gpu = ProxyEvaluator(inputs=x, init=None, proxies=AZNAS, device="cuda")(model)
    cpu = ProxyEvaluator(inputs=x, init=None, proxies=AZNAS, device="cpu")(model)
    # The same weights and input; v differs, so trainability only roughly. Convolutions may run in TF32.
    assert gpu.expressivity == pytest.approx(cpu.expressivity, rel=1e-2)
    assert gpu.progressivity == pytest.approx(cpu.progressivity, rel=5e-2, abs=5e-2)
    assert gpu.complexity == cpu.complexity
    assert gpu.trainability == pytest.approx(cpu.trainability, rel=0.3, abs=0.05)
