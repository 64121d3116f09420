"""All proxies by name: the one place where a family of proxies is listed."""

from __future__ import annotations

from collections.abc import Mapping

from optuna_aznas.proxies import (
    activation,
    attention,
    aznas,
    gradient,
    jacobian_covariance,
    position,
    size,
    token_interaction,
    zen,
    zico,
)
from optuna_aznas.proxies.proxy import Proxy

#: The modules of all families, each with its ``PROXIES``; a new family is added here.
_FAMILIES = (
    aznas,
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

#: The proxies that are computed unless others are named: the four of AZ-NAS.
DEFAULT = aznas.AZNAS_PROXIES

#: The default four, and two more: the best assembly on NAS-Bench-201, at about three times the cost.
EXTENDED = (*DEFAULT, "jacobian_covariance", "zico")
