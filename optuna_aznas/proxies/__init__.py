"""Proxy scores of untrained networks. Imports torch, never optuna."""

from optuna_aznas.proxies.diagnosis import BlockDiagnosis, Diagnosis, diagnose
from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.evaluator import ProxyEvaluator
from optuna_aznas.proxies.features.blocks import find_blocks
from optuna_aznas.proxies.registry import ALL_PROXIES, AZNAS, DEFAULT, EXTENDED
from optuna_aznas.proxies.scores import BlockScores, ProxyScores

__all__ = [
    "ALL_PROXIES",
    "AZNAS",
    "DEFAULT",
    "EXTENDED",
    "BlockDiagnosis",
    "BlockScores",
    "Diagnosis",
    "ProxyEvaluationError",
    "ProxyEvaluator",
    "ProxyScores",
    "diagnose",
    "find_blocks",
]
