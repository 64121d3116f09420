from optuna_aznas import aggregation as aggregation
from optuna_aznas import dashboard as dashboard
from optuna_aznas import proxies as proxies
from optuna_aznas import pruner as pruner
from optuna_aznas import sampler as sampler
from optuna_aznas import spaces as spaces
from optuna_aznas import study as study
from optuna_aznas import visualization as visualization
from optuna_aznas.aggregation import aggregate as aggregate
from optuna_aznas.proxies import ProxyEvaluationError as ProxyEvaluationError
from optuna_aznas.proxies import ProxyEvaluator as ProxyEvaluator
from optuna_aznas.proxies import ProxyScores as ProxyScores
from optuna_aznas.proxies import diagnose as diagnose
from optuna_aznas.pruner import AZNASPruner as AZNASPruner
from optuna_aznas.pruner import should_prune as should_prune
from optuna_aznas.sampler import AZNASSampler as AZNASSampler
from optuna_aznas.sampler import CandidateScorer as CandidateScorer
from optuna_aznas.storage import open_storage as open_storage
from optuna_aznas.study import ProxyImportance as ProxyImportance
from optuna_aznas.study import backfill as backfill
from optuna_aznas.study import best_trials as best_trials
from optuna_aznas.study import create_study as create_study
from optuna_aznas.study import leaderboard as leaderboard
from optuna_aznas.study import proxy_importance as proxy_importance
from optuna_aznas.study import rank_scores as rank_scores
from optuna_aznas.study import record as record

__version__: str
