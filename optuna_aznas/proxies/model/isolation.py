"""What scoring must leave as it was: the model's modes and the global random generators."""

from __future__ import annotations

import gc
import random
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def scoring_mode(modules: Iterable[nn.Module], *, training: bool, seed: int, device: torch.device) -> Iterator[None]:
    """Run the body with ``modules`` in train or eval mode and every global setting fixed; put all of it back
    afterwards.

    Parameters and buffers need no care here: scoring runs on substitutes
    (:func:`~optuna_aznas.proxies.model.weights.substitute_state`). What remains is the mode of each module, torch's,
    numpy's and Python's global random state (a model with dropout draws from it; inside, all three start from
    ``seed``), and the settings that change results: gradient mode, autocast, and reduced precision of matrix products.
    Much of this is global to the process, so threads take turns.
    """
    with _ONE_AT_A_TIME:
        modes = [(module, module.training) for module in modules]
        numpy_state, python_state = np.random.get_state(), random.getstate()
        cuda = [device] if device.type == "cuda" else []
        collecting, threads = gc.isenabled(), torch.get_num_threads()
        fused_attention = torch.backends.mha.get_fastpath_enabled()
        settings = [(owner, name, getattr(owner, name), value) for owner, name, value in _numeric_settings()]
        try:
            for module, was_training in modes:
                if was_training != training:  # setting an attribute of a module is slow
                    module.training = training  # not .train(): models override that to keep parts frozen
            for owner, name, _, value in settings:
                setattr(owner, name, value)
            if cuda:
                torch.set_num_threads(1)  # what is left to the CPU are small matrices, slower with more
            torch.backends.mha.set_fastpath_enabled(False)  # one operator, inside which nothing can be counted or seen
            gc.disable()  # a pass leaves no cycles, and looking for them again and again takes a tenth of its time
            with (
                torch.random.fork_rng(devices=cuda),
                torch.inference_mode(False),
                torch.enable_grad(),
                torch.autocast(device.type, enabled=False),
                # A GPU's backward passes otherwise run in a thread of their own, and waking it for every block can take
                # longer than queueing the block's kernels.
                torch.autograd.grad_mode.set_multithreading_enabled(False),
                _without_compilation(),
            ):
                torch.default_generator.manual_seed(seed)
                if cuda:
                    with torch.cuda.device(device):
                        torch.cuda.manual_seed(seed)
                np.random.seed(seed % 2**32)
                random.seed(seed)
                yield
        finally:
            if cuda:
                torch.set_num_threads(threads)
            torch.backends.mha.set_fastpath_enabled(fused_attention)
            if collecting:
                gc.enable()
            for owner, name, before, _ in settings:
                setattr(owner, name, before)
            for module, was_training in modes:
                if module.training != was_training:
                    module.training = was_training
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _without_compilation() -> AbstractContextManager[Any]:
    """Run what :func:`torch.compile` has wrapped as it was written: compiling takes longer than scoring, and the count
    of operations could not look inside.
    """
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):  # torch 2.6 and later
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _numeric_settings() -> list[tuple[Any, str, Any]]:
    """The global settings on which results depend: (owner, name, value while scoring). On a GPU, convolutions run in
    TF32.
    """
    backends: Any = torch.backends
    settings: list[tuple[Any, str, Any]] = [
        (backends.cudnn, "benchmark", False),
        (backends.cudnn, "deterministic", True),
    ]
    if hasattr(backends.cuda.matmul, "fp32_precision"):  # torch 2.9 and later; must not be mixed with the older names
        settings += [
            (backends.cuda.matmul, "fp32_precision", "ieee"),
            (backends.cudnn.conv, "fp32_precision", "tf32"),
            (backends.mkldnn.matmul, "fp32_precision", "ieee"),
            (backends.mkldnn.conv, "fp32_precision", "ieee"),
        ]
    else:
        settings += [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", True)]
    return settings
