"""How the cost of scoring grows with batch, resolution, width and depth, up to a ResNet-50 at 224 x 224.

python benchmarks/growth.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from benchmarks.speed import describe_machine, peak_resident_bytes
from optuna_aznas import ProxyEvaluator
from optuna_aznas.spaces.nas_bench_201 import Network

#: A cell with each operation at least once.
CELL = ("nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3", "skip_connect", "none", "nor_conv_3x3")

#: What varies, from 8 samples of 32 x 32, 16 channels and 5 cells a stage.
GROWTH = {
    "batch": (4, 8, 16, 32, 64, 128),
    "resolution": (16, 32, 64, 128),
    "channels": (8, 16, 32, 64, 128),
    "cells": (1, 2, 5, 10, 20),
}


class Bottleneck(nn.Module):
    """The block of ResNet-50 (He et al., 2016), with the stride in its 3 x 3 convolution."""

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        c_out = 4 * width
        self.convs = nn.Sequential(
            nn.Conv2d(c_in, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, c_out, 1, bias=False), nn.BatchNorm2d(c_out),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.convs(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    blocks: list[nn.Module] = []
    c_in = 64
    for stage, depth in enumerate((3, 4, 6, 3)):
        for i in range(depth):
            width = 64 * 2**stage
            blocks.append(Bottleneck(c_in, width, stride=2 if stage and not i else 1))
            c_in = 4 * width
    stem = nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))
    return nn.Sequential(stem, nn.Sequential(*blocks), head)


def milliseconds(evaluator: ProxyEvaluator, model: nn.Module, runs: int = 5) -> float:
    evaluator(model)
    return 1000 * statistics.median(evaluator(model).seconds for _ in range(runs))


def report_growth(device: str) -> None:
    for what, values in GROWTH.items():
        line = []
        for value in values:
            setting = {"batch": 8, "resolution": 32, "channels": 16, "cells": 5} | {what: value}
            model = Network(CELL, channels=setting["channels"], cells=setting["cells"], device="meta")
            size = setting["resolution"]
            evaluator = ProxyEvaluator((3, size, size), batch_size=setting["batch"], device=device)
            line.append(f"{value}: {milliseconds(evaluator, model):.0f}")
        print(f"ms by {what:12s}" + "   ".join(line), flush=True)


def score_resnet50(device: str, jacobian: str) -> tuple[float, float, tuple[float, ...]]:
    """Return the seconds of the second of two evaluations, the peak memory in GB, and the scores."""
    with torch.device("meta"):
        model = resnet50()
    evaluator = ProxyEvaluator((3, 224, 224), jacobian=jacobian, device=device)
    evaluator(model)
    start = time.perf_counter()
    scores = evaluator(model)
    seconds = time.perf_counter() - start
    if device == "cuda":
        return seconds, torch.cuda.max_memory_allocated() / 1e9, tuple(scores)
    return seconds, peak_resident_bytes() / 1e9, tuple(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    device = parser.parse_args().device
    print(describe_machine(device))
    report_growth(device)
    for jacobian in ("least-squares", "moment"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process of its own, for its peak memory
            seconds, gigabytes, scores = pool.apply(score_resnet50, (device, jacobian))
        print(
            f"ResNet-50, 224 x 224, default batch, {jacobian}: {seconds:.1f} s, peak memory {gigabytes:.2f} GB",
            end="",
        )
        print(f"; {scores[3] / 1e9:.2f} G multiply-accumulates")


if __name__ == "__main__":
    main()
