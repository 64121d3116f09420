"""Claims: how several workers avoid proposing the same architecture at the same moment.

There is no lock. A worker *claims* its candidate: it writes the candidate into its own running trial, and then reads
the study again. Of two workers that write the same architecture, the one that writes second is certain to see the
other's claim and takes its next candidate. If both write before either reads, both see the other's and take another
candidate, which costs a draw and nothing else. A claim ends with its trial.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial

from optuna_aznas._optuna import queued_params, set_trial_system_attr
from optuna_aznas.sampler.duplicates import Description, describe
from optuna_aznas.study.attributes import ARCHITECTURE_KEY, architecture_params

if TYPE_CHECKING:
    from optuna_aznas.sampler.view import StudyView

#: System attribute of a trial: the architecture that it has claimed, which its objective has not suggested yet.
CLAIM_KEY = "aznas:proposal"

_MAX_CLAIMS = 10  # candidates that are claimed for one trial; the last is taken even if another trial has it


def first_unclaimed(
    view: StudyView, trial: FrozenTrial, candidates: Iterator[dict[str, Any]], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the first of some candidates that no other worker has claimed or evaluated, claimed for ``trial``.

    Args:
        view: The study.
        trial: The running trial.
        candidates: Architectures without the parameters in ``fixed``, the best first.
        fixed: Architecture parameters whose values the user has fixed.
    """
    candidate: dict[str, Any] = {}
    for candidate in itertools.islice(candidates, _MAX_CLAIMS):
        if _claim(view, trial, describe({**candidate, **fixed})):
            break
    return candidate


def expected_architecture(trial: FrozenTrial) -> Description:
    """Return the architecture that an unfinished trial has, or is expected to have, as far as it is known."""
    if ARCHITECTURE_KEY in trial.user_attrs:
        return describe(architecture_params(trial))
    claimed = trial.system_attrs.get(CLAIM_KEY, {})
    return {**claimed, **describe(queued_params(trial)), **describe(trial.params)}


def _claim(view: StudyView, trial: FrozenTrial, architecture: Description) -> bool:
    """Claim an architecture for ``trial``; return whether no other trial has claimed or newly evaluated it."""
    was_evaluated = view.is_evaluated(architecture)
    set_trial_system_attr(view.study, trial, CLAIM_KEY, architecture)
    view.update(trial)
    # Another trial may have claimed it, run and finished since this candidate was drawn. If it was evaluated before, it
    # was proposed knowingly, for want of a new one.
    return not view.is_pending(architecture) and (was_evaluated or not view.is_evaluated(architecture))
