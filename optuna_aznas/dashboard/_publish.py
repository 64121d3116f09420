"""publish: stores a study's figures, leaderboard and notes in the study, where optuna-dashboard reads them."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_aznas import visualization
from optuna_aznas._arguments import check_count
from optuna_aznas._optuna import get_study_system_attr, set_study_system_attr, storage, trial_id
from optuna_aznas.dashboard._lease import publishing
from optuna_aznas.dashboard._section import with_section
from optuna_aznas.dashboard._study_note import study_note
from optuna_aznas.dashboard._trial_note import trial_note
from optuna_aznas.study import leaderboard
from optuna_aznas.study.attributes import BUDGET_KEY, recorded_scores, values_are_scores
from optuna_aznas.study.numbers import recorded_numbers
from optuna_aznas.visualization._plotly import Figure, graph_objects
from optuna_aznas.visualization._rank_against_value import has_trained_values
from optuna_aznas.visualization._scored import ScoredTrials

#: System attribute of the study: numbers of the trials whose notes have a part that this module wrote.
NOTED_KEY = "aznas:noted"

#: Prefix of the figures' ids.
_PREFIX = "aznas-"


def publish(
    study: Study, *, n_best: int = 10, metric_names: Sequence[str] | None = None, budget: float | None = None
) -> tuple[str, ...]:
    """Publish a study's figures, leaderboard and notes to optuna-dashboard.

    In optuna-dashboard the study then has:

    * below optuna-dashboard's own plots, the figures of :mod:`optuna_aznas.visualization` for which it has data;
    * a note with the leaderboard and an explanation of its numbers;
    * on each of the best trials a note with its proxy scores, their parts of S, and what stands out.

    Publishing again replaces all of them. Your own notes are kept: this function changes only the part of a note
    between its marks, and no longer changes that part once you have edited it. Other workers may run or publish
    meanwhile.

    Args:
        study: The study, in any storage.
        n_best: Rows of the leaderboard, and trials with a note, at least 1.
        metric_names: Names of the objectives, for a study without metric names. By default the proxies' names, if the
            objective values of every completed trial are its recorded proxy scores.
        budget: Budget in multiply-accumulates, drawn as a line in the figure of complexity. By default that of the
            command ``optuna-aznas search --budget``, if any.

    Returns:
        The ids of the figures.

    Raises:
        ValueError: An argument is out of range, or the number of ``metric_names`` is not that of the objectives.
        ImportError: optuna-dashboard or plotly is not installed.

    Example:
        >>> import optuna_aznas as az
        >>> study = az.create_study(proxies=["expressivity", "complexity"])
        >>> study.optimize(lambda trial: (trial.suggest_int("x", 0, 99), trial.number), n_trials=10)
        >>> az.dashboard.publish(study)
        ('aznas-history', 'aznas-pairs', 'aznas-ranks', 'aznas-complexity')
    """
    check_arguments(n_best, budget)
    with publishing(study, wait=True):
        return publish_now(study, n_best=n_best, metric_names=metric_names, budget=budget)


def check_arguments(n_best: int, budget: float | None) -> None:
    """Check the arguments of :func:`publish`, and that optuna-dashboard and plotly are installed."""
    check_count("n_best", n_best)
    if budget is not None and not (math.isfinite(budget) and budget > 0):
        raise ValueError(f"budget must be a number above 0, in multiply-accumulates; got {budget!r}.")
    graph_objects()
    _optuna_dashboard()


def publish_now(
    study: Study, *, n_best: int, metric_names: Sequence[str] | None, budget: float | None
) -> tuple[str, ...]:
    """Publish without taking the lease."""
    library = _optuna_dashboard()
    _name_metrics(study, metric_names)
    figures = _figures(study, budget)
    for name, figure in figures.items():
        library.save_plotly_graph_object(study, figure, graph_object_id=_PREFIX + name)
    board, scored = leaderboard(study, n_best), ScoredTrials.of(study)
    _update_note(study, study_note(study, board, scored))
    rows = {trial.number: row for row, trial in enumerate(scored.trials)}
    direction = study.directions[0] if has_trained_values(study) else None
    notes = {
        entry.number: trial_note(scored, rows[entry.number], entry.place, rows[board[0].number], direction)
        for entry in board
        if entry.number in rows
    }
    _update_trial_notes(study, notes)
    return tuple(_PREFIX + name for name in figures)


def _figures(study: Study, budget: float | None) -> dict[str, Figure]:
    """Return the figures that the study has data for."""
    if budget is None:
        stored = study.user_attrs.get(BUDGET_KEY)
        if isinstance(stored, int | float) and not isinstance(stored, bool) and 0 < stored < math.inf:
            budget = float(stored)
    scored = ScoredTrials.of(study)
    figures = {"history": visualization.plot_rank_history(study)}
    if len(scored.names) > 1:
        figures["pairs"] = visualization.plot_proxy_pairs(study)
        figures["ranks"] = visualization.plot_parallel_coordinate(study)
    if "complexity" in scored.names:
        figures["complexity"] = visualization.plot_complexity(study, budget=budget)
    limited = (name for trial in scored.trials for name, number in recorded_numbers(trial).items() if number.limit)
    for i, name in enumerate(dict.fromkeys(limited)):
        if name != "complexity" or "complexity" not in figures:
            figures[f"number-{i}"] = visualization.plot_complexity(study, proxy=name)
    if has_trained_values(study):
        figures["trained"] = visualization.plot_rank_against_value(study)
        with contextlib.suppress(ValueError):  # too little has been trained
            figures["importance"] = visualization.plot_proxy_importance(study)
    return figures


def _name_metrics(study: Study, names: Sequence[str] | None) -> None:
    if study.metric_names is not None:
        return
    if names is None:
        names = _names_of_values(study)
    elif len(names) != len(study.directions):
        raise ValueError(f"metric_names must name each of the {len(study.directions)} objectives; got {list(names)}.")
    if names is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(names))


def _names_of_values(study: Study) -> list[str] | None:
    """Return the proxies' names, if every completed trial's values are the proxy scores that it recorded."""
    if not values_are_scores(study.directions):
        return None
    names: list[str] | None = None
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        scores = recorded_scores(trial)
        if scores is None or (names is not None and list(scores) != names) or list(scores.values()) != trial.values:
            return None
        names = list(scores)
    return names


def _update_note(where: Any, body: str | None) -> None:
    library = _optuna_dashboard()
    note = library.get_note(where)
    updated = with_section(note, body)
    if updated != note:
        library.save_note(where, updated)


def _update_trial_notes(study: Study, notes: dict[int, str]) -> None:
    trials = study.get_trials(deepcopy=False)
    before = _noted(study, len(trials))
    # A trial is listed before its note is written and until its note is removed. If this is interrupted, the next
    # publication still knows every trial that may have a note.
    set_study_system_attr(study, NOTED_KEY, sorted({*before, *notes}))
    for number in [*notes, *(number for number in before if number not in notes)]:
        _update_note(_with_note(study, trials[number]), notes.get(number))
    if set(before) - set(notes):
        set_study_system_attr(study, NOTED_KEY, sorted(notes))


def _noted(study: Study, n_trials: int) -> list[int]:
    """Return the numbers of the trials that have a note of ours; of a malformed list, those that can be read."""
    stored = get_study_system_attr(study, NOTED_KEY, default=[])
    numbers = stored if isinstance(stored, list) else []
    readable = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and 0 <= n < n_trials]
    if readable != stored:
        warnings.warn(
            f"The system attribute {NOTED_KEY!r} of study {study.study_name!r} is not a list of trial numbers. Notes "
            "of an earlier publication may remain on trials that are no longer among the best.",
            stacklevel=2,
        )
    return readable


def _with_note(study: Study, trial: FrozenTrial) -> SimpleNamespace:
    """Return an object with the attributes that optuna-dashboard needs to write a note; a FrozenTrial lacks them."""
    return SimpleNamespace(study=study, storage=storage(study), _trial_id=trial_id(trial))


def _optuna_dashboard() -> Any:
    try:
        import optuna_dashboard
    except ImportError as error:
        raise ImportError(
            "Publishing needs optuna-dashboard, which is not installed: pip install 'optuna-aznas[dashboard]'."
        ) from error
    return optuna_dashboard
