"""Runs a search from the command line."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from torch import nn

import optuna_aznas as az
from optuna_aznas.cli._errors import CommandError, UsageError
from optuna_aznas.cli._loading import load_object
from optuna_aznas.cli._output import Result, leaderboard_text
from optuna_aznas.cli._settle import settle, stored_settings
from optuna_aznas.cli._storage import is_in_memory, open_storage
from optuna_aznas.cli._trials import MOST_FAILURES, TrialReport, Trials, too_many_failures
from optuna_aznas.proxies import DEFAULT
from optuna_aznas.storage import redact_url
from optuna_aznas.study.scoring import store_scoring

_Build = Callable[[Any], nn.Module]


def search(options: argparse.Namespace) -> Result:
    """Search; return the leaderboard and the exit status."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if options.workers > 1 and is_in_memory(options.storage):
        raise UsageError("--workers needs a storage that several processes can open, such as sqlite:///aznas.db.")
    built_in, own = _space(options.space)
    default_shape = built_in.input_shape if built_in else None
    storage = open_storage(options.storage, must_exist=False)
    name = options.study_name or options.space.partition(":")[2] or options.space
    stored = stored_settings(storage, name)
    settings = _settings(options, default_shape, stored, name)
    evaluator, sampler = _prepare(options, built_in, own, settings)
    created = False
    try:
        if not stored:
            if own is not None and stored is None:
                _check_space(own, evaluator)
            first = built_in.first() if built_in and built_in.first else None
            stored, created = settle(storage, name, settings, first)
            agreed = _settings(options, default_shape, stored, name)
            if agreed != settings:
                settings = agreed
                evaluator, sampler = _prepare(options, built_in, own, settings)
        study = az.create_study(
            study_name=name, storage=storage, sampler=sampler, evaluator=evaluator, load_if_exists=True
        )
    except ValueError as error:
        raise CommandError(str(error)) from error
    n_before = len(study.get_trials(deepcopy=False))
    say = f"New study {name!r}" if created else f"Continuing study {name!r}: {n_before} trials so far"
    print(f"{say}, in {redact_url(options.storage, options.storage)}", file=sys.stderr)
    run_trial: Callable[[None], TrialReport] = (
        _Search(study, _builder(built_in, own, settings), evaluator, options.storage)
        if options.workers == 1
        else _SearchInWorker(options, settings, name)
    )
    trials = Trials(
        study,
        run_trial,
        n_trials=options.trials or (None if options.timeout else 300),
        timeout=options.timeout,
        n_workers=options.workers,
        quiet=options.quiet,
    )
    status = trials.run()
    return Result(leaderboard_text(study, options.n, options.format), status)


def _prepare(
    options: argparse.Namespace, built_in: az.spaces.BuiltIn | None, own: _Build | None, settings: dict[str, Any]
) -> tuple[az.ProxyEvaluator, az.AZNASSampler]:
    """Return the evaluator and the sampler for these settings."""
    try:
        evaluator = az.ProxyEvaluator(
            settings["input_shape"],
            batch_size=settings["batch_size"],
            proxies=settings["proxies"],
            device=options.device,
            seed=settings["evaluator_seed"],
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    maxima = dict(settings["limits"] or {})
    if settings["budget"] is not None:
        maxima["complexity"] = min(settings["budget"], maxima.get("complexity", settings["budget"]))
    build = _builder(built_in, own, settings)
    try:
        limits = az.Limits(build, settings["input_shape"], device=evaluator.device, **maxima) if maxima else None
        accept = None
        if "complexity" in maxima and built_in is not None and built_in.within_budget is not None:
            # A closed form of the multiply-accumulates rejects candidates without building them.
            accept = built_in.within_budget(maxima["complexity"], settings["input_shape"])
    except ValueError as error:
        raise UsageError(f"--limit or --budget: {error}") from error
    return evaluator, az.AZNASSampler(seed=options.seed, limits=limits, candidate_filter=accept)


def _builder(built_in: az.spaces.BuiltIn | None, own: _Build | None, settings: dict[str, Any]) -> _Build:
    """Return the function that builds the network of a trial."""
    if built_in is not None:
        return functools.partial(_build_for, built_in, settings["input_shape"])
    assert own is not None
    return own


def _build_for(space: az.spaces.BuiltIn, input_shape: tuple[int, ...], trial: Any) -> nn.Module:
    return space.build(trial, input_shape)


def _space(name: str) -> tuple[az.spaces.BuiltIn | None, _Build | None]:
    """Return the built-in space of this name, or the user's function ``module:function``."""
    built_in = az.spaces.BUILT_IN
    if name in built_in:
        return built_in[name], None
    if ":" not in name:
        raise UsageError(
            f"there is no built-in space {name!r}; there is {', '.join(built_in)}, or give module:function."
        )
    build = load_object(name, "a space")
    if not callable(build):
        raise CommandError(f"{name} is a {type(build).__name__}, not a function that takes a trial.")
    return None, build


def _settings(
    options: argparse.Namespace, default_shape: tuple[int, ...] | None, stored: dict[str, Any] | None, name: str
) -> dict[str, Any]:
    """Return the settings of the evaluator: from the options, else from the study, else the defaults."""
    asked = {
        "space": options.space,
        "input_shape": options.input_shape,
        "batch_size": options.batch_size,
        "proxies": options.proxies,
        "evaluator_seed": options.evaluator_seed,
        "budget": options.budget,
        "limits": None if options.limit is None else tuple(sorted(options.limit)),
    }
    defaults: dict[str, Any] = {
        "input_shape": default_shape,
        "batch_size": None,
        "proxies": DEFAULT,
        "evaluator_seed": 0,
        "budget": None,
        "limits": None,
    }
    if stored == {} and (options.budget is not None or options.limit is not None):
        raise CommandError(
            f"study {name!r} was not created by this command, so its networks have no budget and no limits. Choose "
            "another --study-name."
        )
    stored = {key: _as_tuples(value) for key, value in (stored or {}).items()}
    settings = {}
    for key, value in asked.items():
        settings[key] = value if value is not None else stored.get(key, defaults.get(key))
        if stored and settings[key] != stored.get(key):
            raise CommandError(
                f"study {name!r} was searched with {_words(key, stored.get(key))}, not {_words(key, settings[key])}: "
                "the networks of one study are compared with each other. Choose another --study-name, or leave the "
                "option out."
            )
    if settings["input_shape"] is None:
        raise UsageError(f"--input-shape is needed for {options.space}: one sample without the batch, such as 3,32,32.")
    return settings


def _as_tuples(value: Any) -> Any:
    """Return JSON with its lists as tuples, as the options have them."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _words(key: str, value: Any) -> str:
    if key == "limits":
        return " ".join(f"--limit {name}={maximum:.10g}" for name, maximum in value) if value else "no --limit"
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
    if key == "budget" and value is not None:
        return f"--budget {value:.10g}"
    option = "space" if key == "space" else f"--{key.replace('_', '-')}"
    return f"no {option}" if value is None else f"{option} {shown}"


def _score(build: _Build, evaluator: az.ProxyEvaluator, trial: Trial) -> az.ProxyScores:
    """Build and score the network of a trial. ``sys.exit`` in the user's space is an error of this network."""
    try:
        return evaluator(build(trial))
    except SystemExit as error:
        raise RuntimeError(f"the space called sys.exit({error.code!r})") from error


def _check_space(build: _Build, evaluator: az.ProxyEvaluator) -> None:
    """Score a random network before a study is created, so that a space that never works leaves no study behind.

    Raises:
        CommandError: No network could be scored in as many attempts as end a search.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler())
    for _ in range(MOST_FAILURES):
        try:
            _score(build, evaluator, study.ask())
        except optuna.TrialPruned:  # raised by the user's space
            return
        except Exception as error:
            last = error
        else:
            return
    raise too_many_failures(_described(last)) from last


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class _Search:
    """Runs one trial of a search at a time, in one process.

    Args:
        study: The study.
        build: Builds the network of a trial.
        evaluator: Scores it.
        storage: URL of the storage, whose password is hidden in messages.
    """

    def __init__(self, study: Study, build: _Build, evaluator: az.ProxyEvaluator, storage: str) -> None:
        self._study, self._build, self._evaluator, self._storage = study, build, evaluator, storage
        self._report: TrialReport | None = None
        self._not_stored: Exception | None = None

    def __call__(self, _: None) -> TrialReport:
        """Run a trial."""
        self._study.optimize(self._objective, n_trials=1, callbacks=[self._after_trial], catch=(Exception,))
        if self._not_stored is not None:  # the storage's error, and not this network's
            raise self._not_stored
        assert self._report is not None
        return self._report

    def _objective(self, trial: Trial) -> tuple[float, ...]:
        self._error: Exception | None = None
        try:
            scores = _score(self._build, self._evaluator, trial)
        except optuna.TrialPruned:  # raised by the user's space
            raise
        except Exception as error:
            self._error = error
            raise
        try:
            store_scoring(trial, scores)
        except Exception as error:
            self._not_stored = error
            raise
        return scores

    def _after_trial(self, study: Study, trial: FrozenTrial) -> None:
        error = None
        if trial.state == TrialState.FAIL:  # the reason may be the storage's, and name its URL
            error = redact_url(_described(self._error), self._storage) if self._error else "it could not be finished"
        self._report = TrialReport(f"Trial {trial.number}", error)


class _SearchInWorker:
    """Runs one trial of a search at a time, in a worker process, which opens the storage when it begins.

    Args:
        options: Those of the command.
        settings: Those of the study's evaluator.
        name: Name of the study.
    """

    def __init__(self, options: argparse.Namespace, settings: dict[str, Any], name: str) -> None:
        self._options, self._settings, self._name = options, settings, name
        self._search: _Search | None = None

    def __call__(self, _: None) -> TrialReport:
        """Run a trial."""
        if self._search is None:
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            built_in, own = _space(self._options.space)
            evaluator, sampler = _prepare(self._options, built_in, own, self._settings)
            storage = open_storage(self._options.storage, must_exist=False)
            study = optuna.load_study(study_name=self._name, storage=storage, sampler=sampler)
            build = _builder(built_in, own, self._settings)
            self._search = _Search(study, build, evaluator, self._options.storage)
        return self._search(None)
