"""Worker processes: call one function on many arguments, several at a time, and survive the death of a worker.

``concurrent.futures``, ``multiprocessing.Pool`` and loky take all calls back, or hang, when one worker dies, and do not
say which call it was at. So each worker here is a process with a pipe of its own, and one thread waits for it.

* A worker is a new interpreter (``subprocess``): forking is unsafe once CUDA or threads are in use, and the ``spawn``
  and ``forkserver`` methods of ``multiprocessing`` run the user's script again unless its last lines are guarded.
* What is sent is pickled by cloudpickle, so that functions of a script or a notebook, lambdas and closures go through.
* A worker has a session of its own, so that Ctrl-C reaches the caller alone. It ends as soon as its pipe does, which
  is when its caller ends, however that ends.
* A worker that has nothing to do waits a minute for the next call, since importing torch takes seconds.

Imports neither torch nor optuna; the workers import torch.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import gc
import itertools
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, BinaryIO, NoReturn

_IDLE = 60.0  # seconds that a worker waits for another call
_MOST_CAUSES = 10  # errors of a chain that travel back

_is_worker = False  # whether this process is one


class WorkerDiedError(RuntimeError):
    """A worker process ended while it was at a call."""


class NotSentError(TypeError):
    """Something could not be pickled for a worker process."""


class _EndedIdleError(Exception):
    """A worker process had ended before it took the call."""


def default_n_workers() -> int:
    """Return the number of cores that this process may use (affinity and cgroup quota); 1 inside a worker."""
    import joblib  # type: ignore[import-untyped]

    return 1 if _is_worker else int(joblib.cpu_count())


def attempt(function: Callable[[Any], Any], argument: Any) -> Any:
    """Return what a function returns, or the exception that it raises; ``sys.exit`` is one, Ctrl-C is not."""
    try:
        return function(argument)
    except (Exception, SystemExit) as error:
        return error


def call_each(
    function: Callable[[Any], Any],
    arguments: Iterable[Any],
    *,
    n_workers: int,
    n_ahead: int,
    in_order: bool = True,
) -> Generator[Any, None, None]:
    """Yield for each argument what a function returns, or the exception that it raises, from worker processes.

    Arguments are drawn in this thread, one by one, while fewer than ``n_ahead`` of them are drawn and not yielded. If
    the generator is closed or interrupted, the workers that are at a call are killed.

    Args:
        function: It is sent to each worker once.
        arguments: They may be without end.
        n_workers: Number of processes.
        n_ahead: Most arguments that are drawn and whose outcome is not yielded.
        in_order: Whether outcomes come in the order of the arguments; otherwise as they come.

    Raises:
        NotSentError: ``function`` cannot be pickled. For an argument, this is its outcome.
        RuntimeError: A worker could not be started.
        Exception: What drawing an argument raised.
    """
    crew = _Crew(_sendable(function))
    threads = ThreadPoolExecutor(n_workers, thread_name_prefix="optuna_aznas")
    pending: collections.deque[Future[Any]] = collections.deque()

    def outcomes(n_most: int) -> Iterator[Any]:
        """Yield the outcomes that are there, and wait for one while more than this many calls are pending."""
        while pending:
            first = [pending[0]] if in_order else list(pending)
            if len(pending) > n_most:
                wait(first, return_when=FIRST_COMPLETED)
            done = next((future for future in first if future.done()), None)
            if done is None:
                return
            pending.remove(done)
            yield done.result()

    try:
        for argument in arguments:
            pending.append(_submitted(threads, crew, argument))
            yield from outcomes(n_ahead - 1)
        yield from outcomes(0)
    finally:
        crew.stop()
        threads.shutdown(cancel_futures=True)


def _submitted(threads: ThreadPoolExecutor, crew: _Crew, argument: Any) -> Future[Any]:
    """Have a worker called on an argument; one that cannot be pickled has its error as the outcome."""
    try:
        return threads.submit(crew.call, _sendable(argument))
    except NotSentError as error:
        refused: Future[Any] = Future()
        refused.set_result(error)
        return refused


class _Crew:
    """The workers that are at calls of one function.

    Args:
        function: The pickled function.
    """

    def __init__(self, function: bytes) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._busy: set[_Worker] = set()
        self._stopped = False

    def call(self, argument: bytes) -> Any:
        """Return the outcome of one call: what the function returned or raised, or that its worker died."""
        while True:
            worker = _take_idle()
            is_new = worker is None
            worker = worker or _Worker()
            if not self._enlist(worker):
                return None
            try:
                outcome = worker.call(self._function, argument)
            except _EndedIdleError as error:
                end = worker.end()
                if is_new:
                    raise RuntimeError(
                        f"A worker process could not start ({end}); its own message is on standard error. "
                        "n_workers=1 works without other processes."
                    ) from error
            except WorkerDiedError as error:
                return error
            else:
                _idle.append(worker)
                return outcome
            finally:
                with self._lock:
                    self._busy.discard(worker)

    def _enlist(self, worker: _Worker) -> bool:
        """Count a worker among the busy ones; ``False`` where no more calls are made."""
        with self._lock:
            if self._stopped:
                _idle.append(worker)
            else:
                self._busy.add(worker)
            return not self._stopped

    def stop(self) -> None:
        """Kill the workers that are at a call, and make no more calls."""
        with self._lock:
            self._stopped = True
            for worker in self._busy:
                worker.kill()


class _Worker:
    """One worker process, as its caller sees it."""

    def __init__(self) -> None:
        self.surroundings = _surroundings()
        folder, path = self.surroundings
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import _serve; _serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self._function: bytes | None = None  # the last one sent

    def call(self, function: bytes, argument: bytes) -> Any:
        """Return the outcome of a call.

        Raises:
            _EndedIdleError: The process ended before it took the call.
            WorkerDiedError: It ended during the call.
        """
        try:
            pickle.dump((None if function is self._function else function, argument), self._stdin)
            self._stdin.flush()
            self._receive()  # it has taken the call
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise _EndedIdleError from error
        self._function = function
        try:
            reply = self._receive()
        except (EOFError, OSError, pickle.UnpicklingError):
            raise WorkerDiedError(f"its worker process died ({self.end()})") from None
        return attempt(_outcome, reply)

    def kill(self) -> None:
        """Kill the process, without waiting for its end."""
        self._process.kill()

    def end(self) -> str:
        """End the process; return how it ended, in words."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        self._process.kill()
        code = self._process.wait()
        self._stdout.close()
        if code >= 0:
            return f"exit status {code}"
        reason = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{reason}"

    @property
    def _stdin(self) -> Any:
        return self._process.stdin

    @property
    def _stdout(self) -> Any:
        return self._process.stdout

    def _receive(self) -> Any:
        return pickle.load(self._stdout)


# --- Workers that wait for the next call -----------------------------------------------------------------------------

_idle: list[_Worker] = []  # those that were used last are at the end


def _surroundings() -> tuple[str, str]:
    """Return the folder and the search path in which a worker that is started now looks for modules."""
    folder = os.getcwd()
    return folder, os.pathsep.join(path or folder for path in sys.path)


def _take_idle() -> _Worker | None:
    """Return a worker that waits for a call; those that look for modules elsewhere are ended."""
    while True:
        try:
            worker = _idle.pop()
        except IndexError:
            return None
        if worker.surroundings == _surroundings():
            return worker
        worker.end()


@atexit.register
def _end_idle() -> None:
    while _idle:
        _idle.pop().end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # they are the parent's


# --- In the worker ---------------------------------------------------------------------------------------------------


def _serve() -> None:
    """Answer calls until the caller ends, or has none for a minute. This is the program of a worker process."""
    global _is_worker
    _is_worker = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what the user's code prints must not get into the replies
    sys.stdout = sys.stderr
    calls: queue.Queue[tuple[bytes | None, bytes]] = queue.Queue()
    threading.Thread(target=_read, args=(requests, calls), daemon=True).start()
    import torch

    torch.set_num_threads(1)
    function: Callable[[Any], Any] = _pickled
    with contextlib.suppress(queue.Empty, BrokenPipeError):
        while True:
            pickled_function, argument = calls.get(timeout=_IDLE)
            _send(replies, b"")
            if pickled_function is not None:
                function = _Unpickling(pickled_function)
            # A call makes many objects that live until its end, such as a network's modules. To search them again and
            # again for cycles takes half of the time of building one.
            gc.disable()
            reply = _reply(attempt(function, argument))
            gc.enable()
            _send(replies, reply)
    os._exit(0)  # threads of the user's code may be running


class _Unpickling:
    """A function from pickled arguments; it is itself unpickled at the first call, so that an error is that call's."""

    def __init__(self, function: bytes) -> None:
        self._pickled: bytes | None = function
        self._function: Callable[[Any], Any]

    def __call__(self, argument: bytes) -> Any:
        if self._pickled is not None:
            self._function, self._pickled = pickle.loads(self._pickled), None
        return self._function(pickle.loads(argument))


def _read(requests: BinaryIO, calls: queue.Queue[tuple[bytes | None, bytes]]) -> NoReturn:
    """Put calls into the queue as they come, and end the process as soon as the caller has ended."""
    try:
        while True:
            calls.put(pickle.load(requests))
    except BaseException:
        os._exit(1)


def _send(replies: BinaryIO, reply: bytes) -> None:
    pickle.dump(reply, replies)
    replies.flush()


def _reply(outcome: Any) -> bytes:
    """Return the outcome of a call pickled: what the function returned, and a chain of errors or nothing."""
    if isinstance(outcome, BaseException):
        return _pickled((None, _links(outcome)))
    reply = attempt(_pickled, (outcome, []))
    return reply if isinstance(reply, bytes) else _pickled((None, _links(reply)))


def _outcome(reply: bytes) -> Any:
    """Return the outcome of a call from a worker's reply; an error has its causes again."""
    returned, links = pickle.loads(reply)
    for error, cause in itertools.pairwise(links):
        error.__cause__ = cause
    return links[0] if links else returned


def _links(error: BaseException) -> list[BaseException]:
    """Return an error and its causes, each as it can be pickled; the first has the worker's traceback as a note."""
    note = "In the worker process:\n" + "".join(traceback.format_exception(error))
    links: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(links) < _MOST_CAUSES:
        links.append(_portable(cause))
        cause = cause.__cause__
    links[0].add_note(note)
    return links


def _portable(error: BaseException) -> BaseException:
    """Return an error that survives pickling: itself, or else one that has its type in the message."""
    try:
        return pickle.loads(_pickled(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _sendable(value: Any) -> bytes:
    try:
        return _pickled(value)
    except Exception as error:
        raise NotSentError(f"{type(error).__name__}: {error}") from error


def _pickled(value: Any) -> bytes:
    import cloudpickle  # type: ignore[import-untyped]

    return cloudpickle.dumps(value)
