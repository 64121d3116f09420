"""Scoring as a multiple of one forward and one backward pass of the same model at the same batch, with peak memory.

    python -m benchmarks.multiples                                    # on the CPU, about five minutes on one core
    python -m benchmarks.multiples --device cuda --threads 1          # on a GPU
    python -m benchmarks.multiples --models ResNet-50 ViT-S --runs 9
    python -m benchmarks.multiples --threads 1 --cpu-time             # beside other work: time on the CPU

The models are those of the transformers package, built from configurations without weights: images of 224 x 224, BERT
on 128 tokens. "Pass" is what a training step computes: the model as it was built, in train mode, its output, and the
gradients of all its parameters. "Score" is :class:`optuna_aznas.ProxyEvaluator` at its defaults on the same batch. The
two alternate; the ratio is taken pair by pair. Peak memory is what a run takes beyond what was held before: allocated
memory on a GPU, on the CPU the resident memory of a process of its own for each.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed import describe_machine, peak_resident_bytes
from optuna_aznas import ProxyEvaluator
from optuna_aznas.proxies import DEFAULT

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import transformers

_VIT_S = transformers.ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)

#: The models by name. MobileNetV2 and ConvNeXt-T are the sizes that their configurations have by default.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": lambda: transformers.ResNetForImageClassification(
        transformers.ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic")
    ),
    "ResNet-50": lambda: transformers.ResNetForImageClassification(transformers.ResNetConfig()),
    "MobileNetV2": lambda: transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config()),
    "EfficientNet-B0": lambda: transformers.EfficientNetForImageClassification(
        transformers.EfficientNetConfig(
            width_coefficient=1.0, depth_coefficient=1.0, image_size=224, hidden_dim=1280, dropout_rate=0.2
        )
    ),
    "ConvNeXt-T": lambda: transformers.ConvNextForImageClassification(transformers.ConvNextConfig()),
    "ViT-S": lambda: transformers.ViTForImageClassification(_VIT_S),
    "Swin-T": lambda: transformers.SwinForImageClassification(transformers.SwinConfig()),
    "BERT-12": lambda: transformers.BertForSequenceClassification(transformers.BertConfig()),
}

_TOKENS = 128


def batch(name: str, samples: int) -> Any:
    """Return a batch for a model: token ids for BERT, noise of 224 x 224 for all others."""
    generator = torch.Generator().manual_seed(0)
    if name.startswith("BERT"):
        return {"input_ids": torch.randint(1000, 30000, (samples, _TOKENS), generator=generator)}
    return {"pixel_values": torch.randn(samples, 3, 224, 224, generator=generator)}


class Subject:
    """A model on a device with its batch, and the two things to time.

    Args:
        name: Its name in :data:`MODELS`.
        samples: Samples in the batch.
        device: Where it is run.
        proxies: What is scored.
        clock: Returns seconds.
    """

    def __init__(
        self,
        name: str,
        samples: int,
        device: str,
        proxies: tuple[str, ...],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        torch.manual_seed(0)
        self._device, self._clock = device, clock
        self._model = MODELS[name]().to(device).train()
        self._batch = {key: value.to(device) for key, value in batch(name, samples).items()}
        self._evaluator = ProxyEvaluator(inputs=self._batch, device=device, proxies=proxies)

    def passed(self) -> None:
        """Run one forward and one backward pass."""
        output = self._model(**self._batch)[0]
        assert isinstance(output, Tensor)
        output.sum().backward()
        self._model.zero_grad(set_to_none=True)

    def scored(self) -> None:
        """Score the model once."""
        self._evaluator(self._model)

    def milliseconds(self, run: Callable[[], None]) -> float:
        """Return the time of one run, until the device has finished."""
        self._wait()
        start = self._clock()
        run()
        self._wait()
        return 1000 * (self._clock() - start)

    def peak_megabytes(self, run: Callable[[], None]) -> float:
        """Return the most memory of a GPU that one run took beyond what the model and its batch hold."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    def _wait(self) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize()


def peak_memory(job: tuple[str, str, int, int, tuple[str, ...]]) -> float:
    """Return the most resident memory in MB that one run took beyond what the model and its batch hold."""
    what, name, samples, threads, proxies = job
    if threads:
        torch.set_num_threads(threads)
    subject = Subject(name, samples, "cpu", proxies)
    before = peak_resident_bytes()
    getattr(subject, what)()
    return (peak_resident_bytes() - before) / 1e6


def report(name: str, options: argparse.Namespace) -> None:
    """Print one model's row."""
    proxies = tuple(options.proxies)
    clock = time.process_time if options.cpu_time else time.perf_counter
    subject = Subject(name, options.batch, options.device, proxies, clock)
    first = subject.milliseconds(subject.scored)
    subject.passed()
    passes, scores = [], []
    for _ in range(options.runs):
        passes.append(subject.milliseconds(subject.passed))
        scores.append(subject.milliseconds(subject.scored))
    ratios = [score / plain for score, plain in zip(scores, passes, strict=True)]
    row = f"{name:16s}{first:9.0f}"
    for times in (passes, scores):
        row += f"{min(times):9.0f}{statistics.median(times):9.0f}"
    row += f"{min(scores) / min(passes):9.2f}{statistics.median(ratios):9.2f}"
    if options.memory and options.device != "cpu":
        for run in (subject.passed, subject.scored):
            row += f"{subject.peak_megabytes(run):9.0f}"
    elif options.memory:
        for what in ("passed", "scored"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process of its own each
                job = (what, name, options.batch, options.threads, proxies)
                row += f"{pool.apply(peak_memory, (job,)):9.0f}"
    print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=8, help="samples")
    parser.add_argument("--runs", type=int, default=5, help="pairs of a pass and a scoring, after one of each")
    parser.add_argument("--threads", type=int, default=0, help="threads of the CPU; 0 leaves torch's default")
    parser.add_argument("--proxies", nargs="+", default=list(DEFAULT))
    parser.add_argument("--cpu-time", action="store_true", help="time that the process was on the CPU, all threads")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(describe_machine(options.device), flush=True)
    print("Milliseconds: the first scoring; a pass, and scoring, least and median; least over least, median of ratios.")
    print(f"{'model':16s}{'first':>9s}{'pass':>9s}{'':9s}{'score':>9s}{'':9s}{'ratio':>9s}{'':9s}", end="")
    print(f"{'MB, pass':>9s}{'score':>9s}" if options.memory else "")
    for name in options.models:
        report(name, options)


if __name__ == "__main__":
    main()
