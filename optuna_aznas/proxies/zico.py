"""The proxy zico: mean over standard deviation of the weights' gradients, over two batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from optuna_aznas.proxies.loss_pass import LossPass
from optuna_aznas.proxies.proxy import Proxy, Stage


def zico(batches: Sequence[Sequence[Tensor]]) -> float:
    """Return ``sum over layers of log(sum over weights of E|g| / sd|g|)`` (Li et al., ICLR 2023, equation 9).

    E and sd are the mean and standard deviation over batches.

    Args:
        batches: For each of two or more batches the gradients of the layers' weights.
    """
    total = 0.0
    for layer in zip(*batches, strict=True):
        magnitudes = torch.stack([g.detach().abs().double() for g in layer])
        mean, deviation = magnitudes.mean(dim=0), magnitudes.std(dim=0, unbiased=False)
        ratio = float((mean / deviation)[deviation > 0].sum())
        if ratio > 0:  # a layer that gets no gradient adds nothing
            total += math.log(ratio)
    return total


def _zico(loss: LossPass) -> float:
    return zico([loss.gradients, loss.second_gradients])


PROXIES = (Proxy("zico", Stage.LOSS, function=_zico),)
