"""create_study: an Optuna study whose objectives are zero-cost proxies."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study, StudyDirection

from optuna_aznas.pruner import AZNASPruner
from optuna_aznas.sampler import AZNASSampler
from optuna_aznas.study.scoring import declare

if TYPE_CHECKING:
    from optuna_aznas.proxies import ProxyEvaluator

#: The names in ``optuna_aznas.proxies.DEFAULT``, repeated here because importing them from there loads torch.
DEFAULT_PROXIES = (
    "expressivity",
    "entropy_retention",
    "isometry",
    "jacobian_rank",
    "activations",
    "complexity",
)


def create_study(
    *,
    storage: str | optuna.storages.BaseStorage | None = None,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    study_name: str | None = None,
    proxies: Sequence[str] | None = None,
    evaluator: ProxyEvaluator | None = None,
    load_if_exists: bool = False,
    seed: int | None = None,
) -> Study:
    """Create a study whose objectives are zero-cost proxies.

    Calls :func:`optuna.create_study`. Each proxy is an objective to maximise, named after it. The sampler is an
    :class:`~optuna_aznas.AZNASSampler`.

    Args:
        storage: As in :func:`optuna.create_study`.
        sampler: Replaces the default sampler.
        pruner: Replaces the default pruner, :class:`~optuna_aznas.AZNASPruner`.
        study_name: As in :func:`optuna.create_study`.
        proxies: Names of the proxies that the objective returns, in that order. By default those of ``evaluator``, or
            else :data:`optuna_aznas.proxies.DEFAULT`.
        evaluator: The evaluator whose scores the objective returns. Its settings are stored in the study. Optuna keeps
            plain numbers of what an objective returns, so this is how a study that is continued can tell that they are
            others.
        load_if_exists: As in :func:`optuna.create_study`: continue the study of that name.
        seed: Seed of the default sampler.

    Raises:
        ValueError: ``proxies`` has fewer than two or repeated names, or is not what ``evaluator`` names; or the study
            that exists has other directions or metric names, or is scored with other settings than those of
            ``evaluator``. In that case the study is left as it was.

    Example:
        >>> study = create_study(study_name="demo")
        >>> study.metric_names
        ['expressivity', 'entropy_retention', 'isometry', 'jacobian_rank', 'activations', 'complexity']
    """
    if proxies is None:
        proxies = DEFAULT_PROXIES if evaluator is None else evaluator.proxies
    names = [proxies] if isinstance(proxies, str) else list(proxies)
    if evaluator is not None and names != list(evaluator.proxies):
        raise ValueError(f"proxies must be those of evaluator, {list(evaluator.proxies)}, in that order; got {names}.")
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"proxies must be two or more different names, one for each objective; got {names}.")
    study = optuna.create_study(
        storage=storage,
        sampler=AZNASSampler(seed=seed) if sampler is None else sampler,
        pruner=AZNASPruner() if pruner is None else pruner,
        study_name=study_name,
        directions=["maximize"] * len(names),
        load_if_exists=load_if_exists,
    )
    if study.directions != [StudyDirection.MAXIMIZE] * len(names):
        raise ValueError(
            f"Study {study.study_name!r} exists with directions {[d.name.lower() for d in study.directions]}; "
            f"{len(names)} proxies need as many objectives, all of them maximised. Choose another study_name, "
            "or open the study with optuna.load_study and record the proxy scores."
        )
    if study.metric_names not in (None, names):
        raise ValueError(
            f"Study {study.study_name!r} exists with metric names {study.metric_names}, not {names}. "
            "Choose another study_name, or pass those names as proxies."
        )
    if evaluator is not None:
        declare(study, evaluator)
    if study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(names)
    return study
