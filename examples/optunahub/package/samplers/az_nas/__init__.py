"""AZNASSampler for OptunaHub: the package ``optuna-aznas`` does the work."""

from optuna_aznas import AZNASPruner, AZNASSampler, create_study, record, should_prune

__all__ = ["AZNASPruner", "AZNASSampler", "create_study", "record", "should_prune"]
