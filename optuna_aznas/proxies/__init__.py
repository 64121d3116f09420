"""A model becomes numbers. Imports torch, never optuna."""

from optuna_aznas.proxies.aznas import BlockScores
from optuna_aznas.proxies.blocks import find_blocks
from optuna_aznas.proxies.diagnose import BlockDiagnosis, Diagnosis, diagnose
from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.evaluator import DEFAULT, ProxyEvaluator, ProxyScores

__all__ = [
    "DEFAULT",
    "BlockDiagnosis",
    "BlockScores",
    "Diagnosis",
    "ProxyEvaluationError",
    "ProxyEvaluator",
    "ProxyScores",
    "diagnose",
    "find_blocks",
]
