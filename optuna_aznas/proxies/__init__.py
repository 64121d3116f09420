"""A model becomes numbers. Imports torch, never optuna."""

from optuna_aznas.proxies.aznas import BlockScores
from optuna_aznas.proxies.diagnosis import BlockDiagnosis, Diagnosis, diagnose
from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.evaluator import ALL_PROXIES, DEFAULT, EXTENDED, ProxyEvaluator
from optuna_aznas.proxies.features.blocks import find_blocks
from optuna_aznas.proxies.scores import ProxyScores

__all__ = [
    "ALL_PROXIES",
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
