"""Search below limits on parameters and latency, export the best network to ONNX and run it in onnxruntime.

    python examples/limits.py
    python examples/limits.py --parameters 50e3 --latency 10 --trials 60

Takes about a minute on a CPU. The export needs the packages onnx, onnxscript and onnxruntime, and is left out where
they are not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
import torch
from torch import nn

import optuna_aznas as az

INPUT_SHAPE = (3, 32, 32)


def layer(channels_in: int, channels: int, kernel: int, stride: int) -> nn.Sequential:
    """Convolution, normalisation, activation."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


def build(trial: optuna.trial.BaseTrial) -> nn.Module:
    """A plain network of three to seven layers; each layer's parameters exist only in networks that have the layer."""
    channels, layers = 3, []
    for i in range(trial.suggest_int("depth", 3, 7)):
        width = trial.suggest_int(f"width{i}", 8, 96, step=8)
        kernel = trial.suggest_categorical(f"kernel{i}", [1, 3, 5])
        stride = trial.suggest_categorical(f"stride{i}", [1, 2])
        layers.append(layer(channels, width, kernel, stride))
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def main() -> None:
    """Search, measure the best network again, export it and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=100e3, help="most parameters (default: %(default)g)")
    parser.add_argument("--latency", type=float, default=2.0, help="greatest latency in ms (default: %(default)g)")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    evaluator = az.ProxyEvaluator(INPUT_SHAPE, device="cpu")
    limits = az.Limits(build, INPUT_SHAPE, parameters=options.parameters, latency=options.latency)
    study = az.create_study(sampler=az.AZNASSampler(limits=limits, seed=options.seed))
    study.optimize(lambda trial: evaluator(build(trial)), n_trials=options.trials)
    print(az.leaderboard(study, n=3))

    best = az.best_trials(study, 1)[0]
    network = build(optuna.trial.FixedTrial(best.params)).eval()
    print(f"\nTrial {best.number}, measured again: {limits.measure(network)['latency']}")
    export(network)


def export(network: nn.Module) -> None:
    """Export a network, run it in onnxruntime and compare with torch."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"No export to ONNX: {', '.join(missing)} not installed.")
        return
    import onnxruntime

    x = torch.randn(1, *INPUT_SHAPE)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        torch.onnx.export(network, (x,), str(file), input_names=["image"], output_names=["logits"], dynamo=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    times = []
    for _ in range(30):
        start = time.perf_counter()
        (logits,) = session.run(None, {"image": x.numpy()})
        times.append(1000 * (time.perf_counter() - start))
    with torch.no_grad():
        expected = network(x).numpy()
    difference = float(np.abs(logits - expected).max())
    print(f"onnxruntime: {np.median(times):.2f} ms, greatest difference of a logit from torch {difference:.1e}.")
    if difference > 1e-3:
        raise SystemExit("The exported network computes something else.")


if __name__ == "__main__":
    main()
