"""Ctrl-C at any instruction of scoring leaves no trace, in the model or in the process."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import sys
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from optuna_aznas import ProxyEvaluator
from optuna_aznas.proxies.model import interrupts, isolation
from tests.proxies.test_contracts import assert_same, network, random_states, snapshot


class WholeGraph(nn.Module):
    """A model without blocks in its tree, which is run as a whole."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(n, 4, 3, padding=1) for n in (3, 4, 4))
        self.norm, self.drop, self.head = nn.BatchNorm2d(4), nn.Dropout(0.2), nn.Linear(4, 2)

    def forward(self, x):
        x = self.norm(self.a(x)).relu()
        x = x + self.drop(self.b(x).relu())
        x = x + self.c(x).relu()
        return self.head(x.mean((2, 3)))


KINDS = {
    "hooks": (network, {}),
    "whole graph": (WholeGraph, {}),
    "zen_score": (network, {"proxies": ["zen_score"]}),
    "loss": (WholeGraph, {"proxies": ["attention", "naswot", "grasp", "synflow", "jacobian_covariance"]}),
}


def traces():
    """Everything global that scoring touches."""
    return (
        random_states(),
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.autograd.is_multithreading_enabled(),
        torch.get_default_dtype(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        gc.isenabled(),
        signal.getsignal(signal.SIGINT),
        list(interrupts._active),
    )


def test_the_fast_path_of_attention_is_put_back():
    for enabled in (False, True):
        torch.backends.mha.set_fastpath_enabled(enabled)
        ProxyEvaluator((3, 8, 8), batch_size=2)(network())
        assert torch.backends.mha.get_fastpath_enabled() == enabled


class Injection:
    """Raises SIGINT at the n-th line that is traced, wherever it is: in our code, in torch's or in the model's."""

    def __init__(self, at):
        self.at, self.lines = at, 0

    def __call__(self, frame, event, arg):
        if frame.f_code.co_name in ("<lambda>", "_remove_id") and "_dynamo" in frame.f_code.co_filename:
            return None  # called when an object is freed: Python swallows what is raised there, whoever raises it
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                signal.raise_signal(signal.SIGINT)
        return self

    def run(self, function):
        """Whether the function was interrupted."""
        before = sys.gettrace()
        try:
            sys.settrace(self)
            function()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False


def interrupt_everywhere(kind, n, seed):
    """Interrupt at n lines spread over the whole of scoring; return how many interrupts came, and what they left."""
    build, arguments = KINDS[kind]
    model = build()
    evaluator = ProxyEvaluator((3, 8, 8), **{"batch_size": 2, "device": "cpu"} | arguments)
    evaluator(model)
    counting = Injection(-1)
    assert not counting.run(lambda: evaluator(model))
    edges = np.linspace(1, counting.lines, n + 1)
    rng = np.random.default_rng(seed)
    chosen = [int(rng.integers(a, b + 1)) for a, b in itertools.pairwise(edges)]
    before, model_before, left, came = traces(), snapshot(model), [], 0
    for at in chosen:
        came += Injection(at).run(lambda: evaluator(model))
        after = traces()
        left += [(at, i) for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert_same(model_before, snapshot(model))
    return came, left


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_anywhere_leaves_no_trace(kind):
    came, left = interrupt_everywhere(kind, 40, seed=0)
    assert left == []
    assert came == 40


def test_an_interrupt_while_settings_are_changed():
    """Each line of entering and leaving, where a ``with`` is not safe."""

    def enter_and_leave():
        with isolation.scoring_mode([nn.ReLU()], training=True, seed=0, device=torch.device("cpu")):
            pass

    counting = Injection(-1)
    counting.run(enter_and_leave)
    before = traces()
    for at in range(1, counting.lines + 1, 4):
        Injection(at).run(enter_and_leave)
        assert traces() == before, at


def test_the_models_own_code_is_interrupted_at_once():
    class Endless(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        ProxyEvaluator((3, 8, 8), proxies=["naswot"], device="cpu")(Endless())


def test_a_handler_of_a_timeout_is_held_back_too():
    called = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: called.append(number))
    try:
        with interrupts.HeldSignals():
            signal.raise_signal(signal.SIGALRM)
            assert called == []
            interrupts.call_held_handlers()
            assert called == [signal.SIGALRM]
        signal.raise_signal(signal.SIGALRM)
        assert called == [signal.SIGALRM] * 2
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_handler_that_the_model_sets_stays():
    before = signal.getsignal(signal.SIGINT)
    try:
        with interrupts.HeldSignals():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def scoring_thread():
    """Return a thread that has begun to score, and the event that lets it end."""
    entered, leave = threading.Event(), threading.Event()

    def score():
        with isolation.scoring_mode([], training=True, seed=0, device=torch.device("cpu")):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=score)
    thread.start()
    entered.wait(60)
    return thread, leave


def test_ctrl_c_while_another_thread_scores():
    """The main thread need not wait for its turn."""
    thread, leave = scoring_thread()
    timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            ProxyEvaluator((3, 8, 8), batch_size=2)(network())
    finally:
        leave.set()
        thread.join()
        timer.join()
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_forked_while_a_thread_scores_can_score(monkeypatch):
    monkeypatch.setattr(isolation, "_FORK_WAIT", 0.1)
    thread, leave = scoring_thread()
    child = os.fork()
    if child == 0:
        got = isolation._ONE_AT_A_TIME.acquire(timeout=5)
        os._exit(0 if got else 1)
    leave.set()
    thread.join()
    _, status = os.waitpid(child, 0)
    assert status == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_waits_for_the_evaluation_of_another_thread():
    """So that the child does not keep the settings in the middle of it."""
    entered = threading.Event()

    def score():
        with isolation.scoring_mode([], training=True, seed=0, device=torch.device("cpu")):
            entered.set()
            time.sleep(0.3)

    collecting = gc.isenabled()
    thread = threading.Thread(target=score)
    thread.start()
    entered.wait(60)
    child = os.fork()
    if child == 0:
        os._exit(0 if gc.isenabled() == collecting else 1)
    thread.join()
    _, status = os.waitpid(child, 0)
    assert status == 0
    with isolation._turn():  # and the lock is free
        random.random()
