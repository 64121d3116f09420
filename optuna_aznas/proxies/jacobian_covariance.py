"""The proxy jacobian_covariance: how different the samples' Jacobians are. It adds a backward pass to the input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.loss_pass import LossPass
from optuna_aznas.proxies.proxy import Needs, Proxy, Stage

#: Added to the correlation matrix's eigenvalues (Mellor et al., 2020).
_EPS_COVARIANCE = 1e-5


def jacobian_covariance(gradients: Sequence[Tensor | None]) -> float:
    """Return how little the samples' Jacobians resemble each other (Mellor et al., arXiv:2006.04647v1).

    With J_b the gradient of the sum of sample b's outputs with respect to that sample and s_b the eigenvalues of the
    matrix of their correlation coefficients: ``- sum over b of (log(s_b + k) + 1 / (s_b + k))``, k = 1e-5.

    Args:
        gradients: The gradient (B, ...) for each input; ``None`` where there is none.

    Returns:
        The score; NaN where a sample's Jacobian is constant or not finite.
    """
    rows = torch.cat([g.flatten(1) for g in gradients if g is not None] or [torch.zeros(2, 1)], dim=1).double()
    rows = rows - rows.mean(dim=1, keepdim=True)
    norms = rows.norm(dim=1)
    if not bool(torch.isfinite(norms).all()) or not bool((norms > 0).all()):
        return math.nan
    rows = rows / norms[:, None]
    eigenvalues = torch.linalg.eigvalsh(rows @ rows.T).clamp_min(0.0) + _EPS_COVARIANCE
    return -float((eigenvalues.log() + 1 / eigenvalues).sum())


def _jacobian_covariance(loss: LossPass) -> float:
    if not loss.input_gradients:
        raise ProxyEvaluationError(
            "jacobian_covariance needs a floating-point input to differentiate by; this model's are all integers. "
            "Leave it out of proxies."
        )
    return jacobian_covariance(loss.input_gradients)


PROXIES = (Proxy("jacobian_covariance", Stage.LOSS, Needs.INPUT_GRADIENTS, _jacobian_covariance),)
