"""Claims: how several workers avoid proposing the same architecture at the same moment.

There is no lock. A worker *claims* its candidate: it writes the candidate into its own running trial, and then reads
the study again. Of two workers that write the same architecture, the one that writes second is certain to see the
other's claim and takes its next candidate. If both write before either reads, both see the other's and take another
candidate, which costs a draw and nothing else. A claim ends with its trial.

Parameters that are drawn one by one, those of a study's first trials for example, are claimed one by one, each together
with those before it: nobody knows which of them will be the last.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from optuna_aznas._optuna import queued_params, set_trial_system_attr
from optuna_aznas.study.attributes import architecture_params, recorded_architecture
from optuna_aznas.study.values import Description, describe

if TYPE_CHECKING:
    from optuna_aznas.sampler.admission import Examined
    from optuna_aznas.sampler.view import StudyView

#: System attribute of a trial: the architecture that it has claimed, which its objective has not suggested yet.
CLAIM_KEY = "aznas:proposal"

_MAX_CLAIMS = 10  # candidates (or values) claimed for one trial; the last is taken even if another trial has it


def first_unclaimed(view: StudyView, trial: FrozenTrial, candidates: Iterator[Examined]) -> Examined | None:
    """Return the first of some candidates that no other worker has claimed or evaluated, claimed for ``trial``.

    Args:
        view: The study.
        trial: The running trial.
        candidates: Architectures, the best first.
    """
    candidate: Examined | None = None
    for candidate in itertools.islice(candidates, _MAX_CLAIMS):
        if _claim(view, trial, view.describe(candidate.architecture)):
            break
    return candidate


def first_unclaimed_value(
    view: StudyView, trial: FrozenTrial, name: str, distribution: BaseDistribution, values: Iterable[Any]
) -> Any:
    """Return the first of some values of one parameter with which the architecture of ``trial`` is no duplicate.

    It is claimed. If there is no such value, the last is returned.

    Args:
        view: The study.
        trial: The running trial.
        name: The parameter.
        distribution: Its distribution.
        values: Values drawn for it, at least one.
    """
    known = view.expected_architecture(trial)
    n_claims = 0
    for value in values:
        architecture = {**known, **describe({name: value}, {name: distribution})}
        if n_claims < _MAX_CLAIMS and not view.holds(architecture):
            n_claims += 1
            if _claim(view, trial, architecture):
                break
    return value


def expected_architecture(
    trial: FrozenTrial, space: Mapping[str, BaseDistribution], hyperparameters: Container[str]
) -> Description:
    """Return the architecture that an unfinished trial has, or is expected to have, as far as it is known.

    Args:
        trial: The trial.
        space: Distributions of parameters that it has not suggested yet, as far as they are known.
        hyperparameters: Names of parameters that are no architecture's.
    """
    if recorded_architecture(trial) is not None:
        return describe(architecture_params(trial), trial.distributions)
    claimed = trial.system_attrs.get(CLAIM_KEY)
    readable = claimed.items() if isinstance(claimed, Mapping) else ()
    expected = {name: text for name, text in readable if isinstance(text, str)}
    expected |= describe(queued_params(trial), space)
    expected |= describe(trial.params, trial.distributions)
    return {name: text for name, text in expected.items() if name not in hyperparameters}


def _claim(view: StudyView, trial: FrozenTrial, architecture: Description) -> bool:
    """Claim an architecture for ``trial``; return whether no other trial has claimed or newly evaluated it."""
    was_evaluated = view.is_evaluated(architecture)
    set_trial_system_attr(view.study, trial, CLAIM_KEY, architecture)
    view.update(trial)
    # Another trial may have claimed it, run and finished since this candidate was drawn. If it was evaluated before, it
    # was proposed knowingly, for want of a new one.
    return not view.is_pending(architecture) and (was_evaluated or not view.is_evaluated(architecture))
