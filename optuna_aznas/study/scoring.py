"""How a trial's proxy scores were made: settings of the evaluator, and how its blocks were found.

Scores compare only where the same settings made them. So each trial stores its evaluator's fingerprint beside its proxy
scores, and trials of another fingerprint than the study's are left out of the ranking, as those of other proxies are.
The study's is the one that :func:`~optuna_aznas.create_study` was given, or else that of the finished trial with the
lowest number that has one.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from optuna.study import Study
from optuna.trial import BaseTrial, FrozenTrial

from optuna_aznas.study.graph import graph_attributes

#: User attribute of a trial: how its proxy scores were made, as :meth:`Scoring.to_json` has it.
SCORING_KEY = "aznas:scoring"

#: User attribute of a study: the same of its evaluator, without blocks.
EVALUATOR_KEY = "aznas:evaluator"

_MOST_NAMED = 5  # trials that a warning names


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How proxy scores were made.

    Attributes:
        fingerprint: Of the evaluator's settings: scores compare only where it is the same.
        settings: The settings.
        block_source: How blocks were found, in words; empty where no proxy looks at blocks.
        n_blocks: The number of features, the stem's included.
    """

    fingerprint: str
    settings: Mapping[str, Any]
    block_source: str = ""
    n_blocks: int = 0

    @classmethod
    def of(cls, made: Any) -> Scoring | None:
        """Return how a :class:`~optuna_aznas.ProxyScores` was made, or how a :class:`~optuna_aznas.ProxyEvaluator`
        makes them; ``None`` for scores that no evaluator has made.
        """
        fingerprint, settings = getattr(made, "fingerprint", ""), getattr(made, "settings", None)
        if not isinstance(fingerprint, str) or not fingerprint or not isinstance(settings, Mapping):
            return None
        return cls(fingerprint, settings, getattr(made, "block_source", ""), len(getattr(made, "blocks", None) or ()))

    @classmethod
    def read(cls, stored: Any) -> Scoring | None:
        """Return what :meth:`to_json` has returned; ``None`` for anything else."""
        if not isinstance(stored, Mapping) or not isinstance(stored.get("settings"), Mapping):
            return None
        fingerprint, source, n = (stored.get(key) for key in ("fingerprint", "block_source", "n_blocks"))
        if not isinstance(fingerprint, str) or not isinstance(source, str) or not isinstance(n, int):
            return None
        return cls(fingerprint, stored["settings"], source, n)

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as plain JSON."""
        return {**dataclasses.asdict(self), "settings": dict(self.settings)}

    def differences(self, other: Scoring) -> str:
        """Say which settings are others than those of ``other``."""
        names = [name for name in {**self.settings, **other.settings} if self._value(name) != other._value(name)]
        shown = (f"{name}={self._value(name)!r} instead of {other._value(name)!r}" for name in names)
        return ", ".join(shown) or f"fingerprint {self.fingerprint} instead of {other.fingerprint}"

    def _value(self, name: str) -> Any:
        value = self.settings.get(name)
        return tuple(value) if isinstance(value, list) else value


def scoring_attributes(proxy_scores: Any) -> dict[str, Any]:
    """Return the user attributes of a trial that say how its proxy scores were made, and describe the network's graph,
    as far as the proxy scores say it.
    """
    scoring = Scoring.of(proxy_scores)
    return ({} if scoring is None else {SCORING_KEY: scoring.to_json()}) | graph_attributes(proxy_scores)


def store_scoring(trial: BaseTrial, proxy_scores: Any) -> None:
    """Store :func:`scoring_attributes` on a running trial."""
    for key, value in scoring_attributes(proxy_scores).items():
        trial.set_user_attr(key, value)


def recorded_scoring(trial: FrozenTrial) -> Scoring | None:
    """Return how a trial's proxy scores were made; ``None`` where it does not say."""
    return Scoring.read(trial.user_attrs.get(SCORING_KEY))


def study_scoring(study: Study) -> Scoring | None:
    """Return how the proxy scores of a study are made by what :func:`~optuna_aznas.create_study` was given."""
    return Scoring.read(study.user_attrs.get(EVALUATOR_KEY))


def check_scoring(study: Study, evaluator: Any) -> Scoring | None:
    """Return how a study's proxy scores are made, as far as it says so, if it is how an evaluator makes them.

    Raises:
        ValueError: They are made otherwise.
    """
    stored = study_scoring(study)
    if stored is None:
        recorded = map(recorded_scoring, study.get_trials(deepcopy=False))
        stored = next((scoring for scoring in recorded if scoring is not None), None)
    own = Scoring.of(evaluator)
    if own is not None and stored is not None and own.fingerprint != stored.fingerprint:
        raise ValueError(
            f"The networks of study {study.study_name!r} are scored otherwise, and scores compare only where the same "
            f"settings made them; here: {own.differences(stored)}. Choose another study, or an evaluator with this "
            "study's settings."
        )
    return stored


def declare(study: Study, evaluator: Any) -> None:
    """Store how an evaluator scores as how the proxy scores of a study are made.

    Raises:
        ValueError: Those of the study are made otherwise, or ``evaluator`` is none.
    """
    own = Scoring.of(evaluator)
    if own is None:
        raise ValueError(f"evaluator must be a ProxyEvaluator; got {type(evaluator).__name__}.")
    if check_scoring(study, evaluator) is None:
        study.set_user_attr(EVALUATOR_KEY, own.to_json())


class Yardstick:
    """Watches whether the trials of a study were scored alike, and warns once of each way in which they were not."""

    def __init__(self) -> None:
        self._asked = False  # whether the study's own settings have been read
        self._common: Scoring | None = None
        self._of = math.inf  # the number of the trial that it is from, -1 where it is the study's own
        self._warned: set[str] = set()  # fingerprints
        self._found: dict[str, list[int]] = {}  # how blocks were found -> numbers of the first trials
        self._mixed = False  # whether it has been warned that blocks were found in several ways

    def settle(self, study: Study, finished: Iterable[FrozenTrial]) -> bool:
        """Look for the study's settings among trials that have finished; return whether they are others than before."""
        before = self._common
        if not self._asked:
            self._common, self._asked = study_scoring(study), True
            self._of = math.inf if self._common is None else -1
        for trial in finished:
            scoring = recorded_scoring(trial) if trial.number < self._of else None
            if scoring is not None:
                self._common, self._of = scoring, trial.number
        return before is not None and self._common is not None and before.fingerprint != self._common.fingerprint

    def measures(self, trial: FrozenTrial) -> bool:
        """Whether a trial was scored with the study's settings; a trial that does not say is taken to be."""
        scoring = recorded_scoring(trial)
        if scoring is None or self._common is None or scoring.fingerprint == self._common.fingerprint:
            return True
        if scoring.fingerprint not in self._warned:
            self._warned.add(scoring.fingerprint)
            warnings.warn(
                f"Trial {trial.number} was scored otherwise than the study's other trials: "
                f"{scoring.differences(self._common)}. Such scores do not compare, so it is left out of the ranking, "
                "and so are others like it. Use one evaluator in a study, or another study for the new settings.",
                stacklevel=2,
            )
        return False

    def see_blocks(self, trials: list[FrozenTrial]) -> None:
        """Warn once if the blocks of these trials' networks and of those before were found in several ways."""
        for trial in trials:
            scoring = recorded_scoring(trial)
            if scoring is not None and scoring.block_source:
                numbers = self._found.setdefault(scoring.block_source, [])
                if len(numbers) <= _MOST_NAMED and trial.number not in numbers:
                    numbers.append(trial.number)
        if len(self._found) > 1 and not self._mixed:
            self._mixed = True
            ways = "; ".join(f"{source} ({_listed(numbers)})" for source, numbers in self._found.items())
            warnings.warn(
                f"The blocks of this study's networks were found in several ways, which can move their scores: {ways}. "
                "Say which modules are the blocks with ProxyEvaluator(blocks=...), such as a pattern 'layers.*' that "
                "all networks of the space have, in a new study.",
                stacklevel=2,
            )


def _listed(numbers: list[int]) -> str:
    more = ", ..." if len(numbers) > _MOST_NAMED else ""
    return f"trial{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:_MOST_NAMED]))}{more}"
