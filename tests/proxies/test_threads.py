"""Threads that score, and threads that draw meanwhile: neither disturbs the other's random numbers."""

from __future__ import annotations

import inspect
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from optuna_aznas import ProxyEvaluator
from optuna_aznas.proxies.model import draws


class Draws(nn.Module):
    """Draws in its forward by every kind of random function."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(n, 6, 3, padding=1), nn.BatchNorm2d(6), nn.RReLU(), nn.Dropout2d(0.3))
            for n in (3, 6, 6)
        )
        self.lstm = nn.LSTM(6, 6, num_layers=2, dropout=0.5)
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.5)
        self.head = nn.Sequential(nn.AlphaDropout(0.2), nn.Linear(6, 3))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) * (1 + torch.rand(1)) + 0.1 * torch.randn_like(x[:, :1])
            x = nn.functional.dropout(x, 0.2) + torch.distributions.Gamma(2.0, 1.0).rsample()
        x = x + torch.empty_like(x).uniform_() + torch.bernoulli(torch.full((1,), 0.5)) + torch.randint(3, (1,))
        x = x.mean(2)[..., torch.randperm(x.shape[-1])].permute(2, 0, 1)
        x, _ = self.lstm(x)
        x, _ = self.attention(x, x, x)
        return self.head(nn.functional.gumbel_softmax(x.mean(0)))


PROXIES = ["expressivity", "trainability", "complexity", "naswot", "zico", "zen_score"]


@pytest.fixture(autouse=True)
def one_thread():
    """A thread of its own may else round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def evaluator(**arguments):
    return ProxyEvaluator(
        **{"input_shape": (3, 8, 8), "batch_size": 4, "proxies": PROXIES, "device": "cpu"} | arguments
    )


class Drawing:
    """A thread that draws from a global generator all the time, by default torch's."""

    def __init__(self, draw=lambda: torch.rand(()).item()):
        self._draw = draw

    def __enter__(self):
        self.drawn, self._stop = [], threading.Event()
        torch.manual_seed(0)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def _run(self):
        while not self._stop.is_set():
            self.drawn.append(self._draw())
            self._stop.wait(0.0005)

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def test_threads_do_not_share_draws():
    model = Draws()
    alone = evaluator()(model)
    with Drawing() as other:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: evaluator()(model), range(20)))
        n = len(other.drawn)
    assert set(map(tuple, found)) == {tuple(alone)}
    assert n > 20
    torch.manual_seed(0)  # what the other thread drew is one stream, without gaps, repetitions or rewinding
    assert other.drawn == [torch.rand(()).item() for _ in other.drawn]


class DrawsByNumpyAndPython(nn.Sequential):
    def forward(self, x):
        return super().forward(x * (1 + np.random.rand()) + np.random.sample() + random.gauss(0.0, 1.0))


def test_threads_do_not_share_draws_by_numpy_and_python():
    """Nor are another thread's draws repeated: it may load data."""
    layers = [layer for n in (3, 6, 6, 6) for layer in (nn.Conv2d(n, 6, 3, padding=1), nn.ReLU())]
    model = DrawsByNumpyAndPython(*layers, nn.Flatten(), nn.Linear(384, 3))
    functions = np.random.rand, random.random
    alone = evaluator()(model)
    np.random.seed(0)
    random.seed(0)
    with Drawing(lambda: (np.random.rand(), random.random())) as other:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: evaluator()(model), range(20)))
        n = len(other.drawn)
    assert set(map(tuple, found)) == {tuple(alone)}
    assert n > 20
    np.random.seed(0)
    random.seed(0)
    assert other.drawn == [(np.random.rand(), random.random()) for _ in other.drawn]
    assert (np.random.rand, random.random) == functions


@pytest.mark.parametrize("module", [random, np.random], ids=str)
def test_every_global_function_draws_from_a_generator_of_its_own(module):
    """A function that a new version of Python or numpy adds is found too."""
    others = {name for name in module.__all__ if name not in draws._GLOBAL[module]}
    assert {name for name in others if not inspect.isclass(getattr(module, name))} <= {"default_rng"}


def test_alone_torchs_own_generator_is_seeded_and_put_back():
    state = torch.get_rng_state()
    with draws.seeded_draws(3, torch.device("cpu")), draws.own_draws():
        first = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), state)
    with Drawing(), draws.seeded_draws(3, torch.device("cpu")), draws.own_draws():
        assert torch.equal(torch.rand(4), first)


def test_draws_under_a_checkpoint_are_repeated():
    """torch repeats them by its global state, so that is what they must come from."""

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                *(nn.Sequential(nn.Conv2d(n, 6, 3, padding=1), nn.ReLU(), nn.Dropout(0.5)) for n in (3, 6, 6))
            )

        def forward(self, x):
            x = self.layers[0](x)
            for layer in self.layers[1:]:
                x = checkpoint(layer, x, use_reentrant=False)
            return x.mean((2, 3))

    scoring = evaluator(proxies=["gradient_norm", "naswot"], input_shape=(3, 8, 8))
    model = Checkpointed()
    alone = scoring(model)
    waiting = threading.Event()
    idle = threading.Thread(target=waiting.wait)
    idle.start()
    try:
        assert scoring(model) == alone
    finally:
        waiting.set()
        idle.join()


def test_every_random_operator_of_torch_is_known():
    """Against torch's own list of operators that draw."""
    schemas = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("aten::")}
    known = {getattr(function, "__name__", "") for function in draws.RANDOM}
    missing = []
    for name in sorted(schema.removeprefix("aten::") for schema in schemas):
        packet = getattr(torch.ops.aten, name, None)
        if packet is None or not any(draws._draws(getattr(packet, o)) for o in packet.overloads()):
            continue
        for owner in (torch, Tensor, nn.functional):
            function = getattr(owner, name, None)
            if callable(function) and not name.startswith("_") and function not in draws.RANDOM:
                missing.append(f"{owner.__name__}.{name}")
    assert missing == []
    assert {"dropout", "rand", "normal_"} <= known


def test_every_random_function_of_python_is_known():
    """Functions of torch.nn.functional with a parameter that says how much to drop."""
    for name, function in vars(nn.functional).items():
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        parameters = inspect.signature(function).parameters
        if {"dropout_p", "training"} & parameters.keys() and "running_mean" not in parameters:
            assert function in draws.RANDOM, name
