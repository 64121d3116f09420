"""Ctrl-C while scoring: signals are held back while something of the model or the process is changed or restored.

Python calls the handler of a signal between any two instructions of the main thread, and the handler of Ctrl-C raises
``KeyboardInterrupt`` there. No ``with`` and no ``finally`` is safe against that: the exception may come after a change
and before the block that would undo it. So while a model is scored, the handlers are replaced by one that calls the
original

* at once, if the code of the model was interrupted (:func:`run_interruptible`), or a layer of torch that it called;
* at the next safe point, if our own code was (:func:`call_held_handlers`), and after everything is restored at the
  latest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

#: Signals whose handlers are held back, where Python has one: Ctrl-C first, then those used for timeouts.
_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep

#: Code of torch that changes nothing global: layers and functions.
_LAYERS = (os.path.join(_TORCH, "nn", "modules", ""), os.path.join(_TORCH, "nn", "functional.py"))

#: The guards that hold signals back, the innermost last. Only the main thread has any.
_active: list[HeldSignals] = []


def run_interruptible(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return ``function(*args, **kwargs)``; handlers of signals may run and raise anywhere in it."""
    return function(*args, **kwargs)


def call_held_handlers() -> None:
    """Call the handlers of the signals that came since: a point where an exception does no harm."""
    if _active and threading.current_thread() is threading.main_thread():
        _active[-1].call_handlers()


class HeldSignals:
    """Run the body of a ``with`` with signals held back; in other threads than the main one this does nothing."""

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._replaced: dict[int, None] = {}
        self._came: list[int] = []

    def __enter__(self) -> HeldSignals:
        if threading.current_thread() is threading.main_thread():
            try:
                for number in _SIGNALS:  # from the first one on no KeyboardInterrupt can come in here
                    handler = signal.getsignal(number)
                    if callable(handler):
                        self._handlers[number] = handler
                        self._replaced[number] = None
                        signal.signal(number, self._handle)
                _active.append(self)
            except ValueError:  # not the main interpreter: there are no signals
                self._replaced.clear()
            except BaseException:
                self._restore()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self in _active:
            _active.remove(self)
        self._restore()
        self.call_handlers()

    def call_handlers(self) -> None:
        """Call the original handlers of the signals that came, in their order. They may raise."""
        while self._came:
            number = self._came.pop(0)
            self._handlers[number](number, sys._getframe())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if _is_in_model(frame):
            self._handlers[number](number, frame)
        elif number not in self._came:
            self._came.append(number)

    def _restore(self) -> None:
        try:
            while self._replaced:  # Ctrl-C last
                number = next(reversed(self._replaced))
                if signal.getsignal(number) == self._handle:  # else the model has set its own
                    signal.signal(number, self._handlers[number])
                self._replaced.pop(number, None)
        finally:
            if self._replaced:  # the handler of another signal raised
                self._restore()


def _is_in_model(frame: FrameType | None) -> bool:
    """Whether the model's code, or a layer that it called, was interrupted: no frame on the way there is ours, and none
    is of those parts of torch that change global state, such as its modes.
    """
    while frame is not None:
        if frame.f_code is run_interruptible.__code__:
            return True
        file = frame.f_code.co_filename
        if file.startswith(_OURS) or file == contextlib.__file__:
            return False
        if file.startswith(_TORCH) and not file.startswith(_LAYERS):
            return False
        frame = frame.f_back
    return False
