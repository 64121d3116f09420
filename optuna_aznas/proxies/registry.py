"""All proxies by name: the one place where a family of proxies is listed."""

from __future__ import annotations

from collections.abc import Mapping

from optuna_aznas.proxies import (
    activation,
    attention,
    aznas,
    gradient,
    isometry,
    jacobian_covariance,
    position,
    retention,
    size,
    token_interaction,
    zen,
    zico,
)
from optuna_aznas.proxies.proxy import Proxy

#: The modules of all families, each with its ``PROXIES``; a new family is added here.
_FAMILIES = (
    aznas,
    retention,
    isometry,
    attention,
    position,
    token_interaction,
    size,
    gradient,
    activation,
    jacobian_covariance,
    zen,
    zico,
)

#: All proxies by name, in the order in which those of one stage are computed.
REGISTRY: Mapping[str, Proxy] = {proxy.name: proxy for family in _FAMILIES for proxy in family.PROXIES}

#: All names that ``ProxyEvaluator(proxies=...)`` accepts.
ALL_PROXIES = tuple(REGISTRY)

#: The four proxies of the paper, under the paper's definitions.
AZNAS = aznas.AZNAS_PROXIES

#: The proxies that are computed unless others are named. All come from the same forward and backward pass as AZNAS.
DEFAULT = ("expressivity", "entropy_retention", "isometry", "jacobian_rank", "activations", "complexity")

#: The default proxies, and two more that need passes of their own: about three times the cost.
EXTENDED = (*DEFAULT, "jacobian_covariance", "zico")
