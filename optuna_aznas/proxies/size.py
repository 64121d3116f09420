"""Proxies that count: parameters, trainable_layers. Nothing is run."""

from __future__ import annotations

from torch import nn

from optuna_aznas.proxies.context import FeaturePass, ScoringContext
from optuna_aznas.proxies.model.weights import WEIGHTED
from optuna_aznas.proxies.proxy import Needs, Proxy, Stage


def parameters(model: nn.Module) -> float:
    """Return the number of the model's parameters."""
    return float(sum(parameter.numel() for parameter in model.parameters()))


def trainable_layers(model: nn.Module) -> float:
    """Return the number of layers with a weight matrix or kernel."""
    return float(sum(isinstance(module, WEIGHTED) for module in model.modules()))


def _parameters(context: ScoringContext) -> float:
    return parameters(context.model)


def _trainable_layers(context: ScoringContext) -> float:
    return trainable_layers(context.model)


def _activations(seen: FeaturePass) -> float:
    return seen.report.activations / seen.context.samples


PROXIES = (
    Proxy("parameters", Stage.MODEL, function=_parameters),
    Proxy("trainable_layers", Stage.MODEL, function=_trainable_layers),
    Proxy("activations", Stage.FEATURES, Needs.MACS, _activations),
)
