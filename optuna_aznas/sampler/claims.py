"""Claims: how several workers avoid proposing the same architecture at the same moment.

There is no lock. A worker *claims* its candidate: it writes the candidate into its own running trial, and then reads
the study again. It takes the candidate only if that reading shows no other trial with it. Of two workers that write the
same architecture, the one that writes second reads the other's claim, so they never both take it. If both write before
either reads, both see the other's claim: then the trial with the higher number gives way, and the one with the lower
number reads again until it has. A worker that does not give way has taken the candidate before, or was killed; after
``_WAITS`` the other trial tries its next candidate. A claim ends with its trial.

Parameters that are drawn one by one, those of a study's first trials for example, are claimed one by one, each together
with those before it: nobody knows which of them will be the last. A value that no other unfinished trial has behind the
same values is preferred, then one that the fewest have, so that enough other values remain for the later parameters.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from optuna_aznas._optuna import queued_params, set_trial_system_attr
from optuna_aznas.study.attributes import recorded_names
from optuna_aznas.study.values import Description, describe

if TYPE_CHECKING:
    from optuna_aznas.sampler.admission import Examined
    from optuna_aznas.sampler.view import StudyView

#: System attribute of a trial: the architecture that it has claimed, which its objective has not suggested yet.
CLAIM_KEY = "aznas:proposal"

_MAX_CLAIMS = 100  # candidates claimed for one trial: each but the last was claimed by another trial at that moment
_WAITS = (0.002, 0.004, 0.008, 0.016, 0.032)  # seconds before each new reading, for another trial to give way


def first_unclaimed(view: StudyView, trial: FrozenTrial, candidates: Iterator[Examined]) -> Examined | None:
    """Return the first of some candidates that no other worker has claimed or evaluated, claimed for ``trial``.

    A candidate that is a duplicate already when it is drawn is taken as it is: nothing new was found.

    Args:
        view: The study.
        trial: The running trial.
        candidates: Architectures, the best first.
    """
    candidate: Examined | None = None
    reserved: list[Examined] = []
    for candidate in itertools.islice(candidates, _MAX_CLAIMS):
        architecture = view.describe(candidate.architecture)
        claimed = not view.is_reserved(architecture) and _claim(view, trial, architecture)
        if view.is_reserved(architecture):  # it may have become so before the study was read again
            reserved.append(candidate)
        elif claimed:
            return candidate
    for candidate in reserved:
        if _claim(view, trial, view.describe(candidate.architecture)):
            return candidate
    return candidate


def first_unclaimed_value(
    view: StudyView, trial: FrozenTrial, name: str, distribution: BaseDistribution, values: Iterable[Any]
) -> Any:
    """Return the first of some values of one parameter that no other unfinished trial has, claimed for ``trial``.

    If there is none, it is one that the fewest other trials have, of those that leave room for one more trial if there
    are any; the last if each makes an evaluated architecture.

    Args:
        view: The study.
        trial: The running trial.
        name: The parameter.
        distribution: Its distribution.
        values: Values drawn for it, at least one.
    """
    known = view.expected_architecture(trial)

    def extended(value: Any) -> Description:
        return {**known, **describe({name: value}, {name: distribution})}

    shared: dict[str, Any] = {}  # values that other trials have too, by their text
    for value in values:
        architecture = extended(value)
        if view.is_evaluated(architecture):
            continue
        if not view.rivals(architecture) and _claim(view, trial, architecture):
            return value
        shared.setdefault(architecture[name], value)
    for _ in range(_MAX_CLAIMS):
        possible = [other for other in shared.values() if not view.is_evaluated(extended(other))]
        if not possible:
            break
        value = min(possible, key=lambda other: _crowding(view, extended(other)))
        if _claim(view, trial, extended(value)):
            break
    return value


def expected_architecture(
    trial: FrozenTrial, space: Mapping[str, BaseDistribution], hyperparameters: Container[str]
) -> Description:
    """Return the architecture that an unfinished trial has, or is expected to have, as far as it is known.

    A database reads a trial in several statements. What was read of a trial that records at this moment may be its
    parameters without the last one, and then the names that it recorded, the last one's too: its claim has that one.

    Args:
        trial: The trial.
        space: Distributions of parameters that it has not suggested yet, as far as they are known.
        hyperparameters: Names of parameters that are no architecture's.
    """
    claimed = trial.system_attrs.get(CLAIM_KEY)
    readable = claimed.items() if isinstance(claimed, Mapping) else ()
    expected = {name: text for name, text in readable if isinstance(text, str)}
    expected |= describe(queued_params(trial), space)
    expected |= describe(trial.params, trial.distributions)
    names = recorded_names(trial)
    if names is not None:
        return {name: expected[name] for name in names if name in expected}
    return {name: text for name, text in expected.items() if name not in hyperparameters}


def _crowding(view: StudyView, architecture: Description) -> tuple[bool, int]:
    return not view.has_room(architecture), len(view.rivals(architecture))


def _claim(view: StudyView, trial: FrozenTrial, architecture: Description) -> bool:
    """Claim an architecture for ``trial``; return whether no other trial has claimed or newly evaluated it."""
    was_evaluated, before = view.is_evaluated(architecture), view.rivals(architecture)
    set_trial_system_attr(view.study, trial, CLAIM_KEY, architecture)
    for wait in (0.0, *_WAITS):
        if wait:  # sleeping for no time still lets every other process go first
            time.sleep(wait)
        view.update(trial)
        # Another trial may have claimed it, run and finished since this candidate was drawn. What others had before, it
        # was proposed knowingly, for want of something new.
        if view.is_evaluated(architecture) and not was_evaluated:
            return False
        rivals = view.rivals(architecture) - before
        if not rivals:
            return True
        if min(rivals) < trial.number:
            return False
    return False
