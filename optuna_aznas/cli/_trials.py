"""Runs the trials of a search, in this process or in several, with one progress bar, until they are enough."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from optuna.study import Study
from tqdm import tqdm

from optuna_aznas._text import for_terminal
from optuna_aznas._workers import WorkerDiedError, call_each
from optuna_aznas.cli._errors import CommandError
from optuna_aznas.study.history import StudyHistory

MOST_FAILURES = 5  # networks in a row that fail before the search ends


@dataclasses.dataclass(frozen=True)
class TrialReport:
    """What a process says of a trial that it has run.

    Attributes:
        trial: The trial in words, such as ``"Trial 7"``.
        error: Why its network could not be scored, on one line; ``None`` where it was.
    """

    trial: str
    error: str | None = None


class Trials:
    """Runs trials and shows their progress.

    Args:
        study: The study, for the progress bar.
        run_trial: Runs one trial of the study; its argument says nothing. Worker processes are sent this function.
        n_trials: Number of trials; ``None`` for no end.
        timeout: Seconds after which no trial is begun; ``None`` for no end.
        n_workers: Number of processes; with 1 the trials run in this one.
        quiet: Show no progress bar.
    """

    def __init__(
        self,
        study: Study,
        run_trial: Callable[[Any], TrialReport],
        *,
        n_trials: int | None,
        timeout: float | None,
        n_workers: int,
        quiet: bool,
    ) -> None:
        self._study, self._run_trial = study, run_trial
        self._n_trials, self._timeout, self._n_workers = n_trials, timeout, n_workers
        self._history = StudyHistory()
        self._failures: list[str] = []  # since the last network that was scored
        self._finished = 0
        self._interrupted = False
        self._bar = tqdm(total=n_trials, unit="net", file=sys.stderr, disable=quiet, dynamic_ncols=True)

    def run(self) -> int:
        """Run the trials; return the exit status.

        Raises:
            CommandError: Too many networks in a row could not be scored.
            Exception: What a storage raises.
        """
        try:
            with self._interruptible(), contextlib.closing(self._outcomes()) as outcomes:
                for outcome in outcomes:
                    self._count(outcome)
        except KeyboardInterrupt:
            self._interrupted = True
        finally:
            self._bar.close()
        if self._interrupted:
            print(
                f"Interrupted after {self._finished} networks; the same command continues the search.", file=sys.stderr
            )
            return 130
        if len(self._failures) >= MOST_FAILURES:
            raise too_many_failures(self._failures[-1])
        print(f"Scored {self._finished} networks.", file=sys.stderr)
        return 0

    def _outcomes(self) -> Any:
        """Return a generator of what trials report, or of the errors that ended them."""
        if self._n_workers == 1:
            return (self._run_trial(None) for _ in self._permits())
        return call_each(
            self._run_trial, self._permits(), n_workers=self._n_workers, n_ahead=self._n_workers, in_order=False
        )

    def _permits(self) -> Iterator[None]:
        """Yield each time that a trial may begin."""
        end = None if self._timeout is None else time.monotonic() + self._timeout
        n_begun = 0
        while not (
            self._interrupted
            or len(self._failures) >= MOST_FAILURES
            or n_begun == self._n_trials
            or (end is not None and time.monotonic() >= end)
        ):
            yield
            n_begun += 1

    def _count(self, outcome: Any) -> None:
        if isinstance(outcome, WorkerDiedError):
            outcome = TrialReport("A trial", f"{outcome}, and another one takes its place; the trial stays running")
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome.error is None:
            self._failures.clear()
            self._finished += 1
        else:
            self._failures.append(outcome.error)
            self._bar.write(for_terminal(f"{outcome.trial} failed: {outcome.error}"), file=sys.stderr)
        self._bar.update()
        self._history.update(self._study)
        if len(self._history):
            self._bar.set_postfix_str(f"best: trial {self._history.best(1)[0].number}")

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let the first Ctrl-C finish the networks at work, so that no trial stays running; the second ends all.

        It is held back from worker processes, which have a session of their own.
        """

        def finish(number: int, frame: FrameType | None) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            at_work = "this network" if self._n_workers == 1 else "the networks at work"
            # print is not reentrant, and the signal may have interrupted it
            os.write(2, f"\nFinishing {at_work}; Ctrl-C again to stop at once.\n".encode())

        before = signal.getsignal(signal.SIGINT)
        # Only the main thread may set handlers. If interrupts are ignored, as under nohup, they stay ignored.
        if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
            yield
            return
        signal.signal(signal.SIGINT, finish)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def too_many_failures(last: str) -> CommandError:
    """Return the error that ends a search.

    Args:
        last: Why the last network could not be scored.
    """
    return CommandError(f"{MOST_FAILURES} networks in a row could not be scored. The last one: {last}")
