"""Studies with all that may happen in one, for the tests of what shows them."""

from __future__ import annotations

import math

import numpy as np
import optuna
from optuna.trial import TrialState

import optuna_aznas as az

#: Seconds after which a test that hangs ends with an error. No machine is so busy that a test reaches it.
NEVER = 3600

#: A study name and choices that would do something if they were taken for HTML, Markdown or mathematics.
NASTY_NAME = "<img src=x onerror=alert(1)>"
NASTY_CHOICES = ("<b>conv</b>", "a|b", "[x](javascript:alert(1))", "$x^2$ `code` **bold**", "%{x} {y}")


def stored(study, storage):
    """The same study in a storage: trial by trial it would take much longer to make it there."""
    if storage is None:
        return study
    optuna.copy_study(
        from_study_name=study.study_name,
        from_storage=study._storage,
        to_storage=storage,
        to_study_name=study.study_name,
    )
    return optuna.load_study(study_name=study.study_name, storage=storage)


def four_objectives(storage=None, *, name=NASTY_NAME, n=60, seed=0):
    """A search without training: scores of -inf, pruned, failed and infeasible trials, and one that still runs."""
    rng = np.random.default_rng(seed)
    proxies = ["expressivity", "progressivity", "trainability", "complexity"]
    study = az.create_study(study_name=name, proxies=proxies, sampler=optuna.samplers.RandomSampler(seed=seed))
    for number in range(n):
        trial = study.ask()
        trial.suggest_categorical("op", NASTY_CHOICES)
        trial.suggest_int("width", 8, 64)
        if number % 10 == 3:
            study.tell(trial, state=TrialState.PRUNED)
        elif number % 10 == 5:
            study.tell(trial, state=TrialState.FAIL)
        else:
            quality = rng.normal()
            values = [60 + 5 * quality, quality + rng.normal(), -abs(rng.normal()), 1e7 * math.exp(quality)]
            if number % 10 == 7:
                values[0] = values[2] = -math.inf
            study.tell(trial, values)
    study.ask().suggest_int("width", 8, 64)
    return stored(study, storage)


def trained(storage=None, *, name="trained", n=60, seed=0, direction="maximize"):
    """Architecture and training in one study: recorded scores, pruned and failed trials, values that are not finite."""
    rng = np.random.default_rng(seed)
    study = optuna.create_study(study_name=name, direction=direction, sampler=optuna.samplers.RandomSampler(seed=seed))
    for number in range(n):
        trial = study.ask()
        trial.suggest_int("width", 8, 64)
        quality = rng.normal()
        if number % 20 != 19:
            az.record(
                trial,
                {"expressivity": quality + 0.3 * rng.normal(), "<i>own</i>": -math.inf if number % 9 == 8 else quality},
            )
        trial.suggest_float("lr", 1e-4, 1.0, log=True)
        if number % 7 == 3:
            study.tell(trial, state=TrialState.PRUNED)
        elif number % 17 == 5:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, math.inf if number == 12 else 90 + quality + 0.3 * rng.normal())
    return stored(study, storage)
