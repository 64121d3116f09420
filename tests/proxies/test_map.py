"""ProxyEvaluator.map: many models, with worker processes and without."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import optuna_aznas as az
from optuna_aznas import _workers
from optuna_aznas.proxies import many
from tests import studies

ROOT = Path(__file__).parents[2]


def build(width):
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(c, width, 3), nn.ReLU()) for c in (3, width, width)))


def builders(widths):
    return [functools.partial(build, width) for width in widths]


def exits():
    os._exit(3)


def is_killed():
    os.kill(os.getpid(), signal.SIGKILL)


class TwoArgumentsError(Exception):
    """Cannot be unpickled: its arguments are not those of its constructor."""

    def __init__(self, what, why):
        super().__init__(f"{what}, {why}")


def raises_from():
    try:
        raise KeyError("the cause")
    except KeyError as error:
        raise LookupError("no such layer") from error


def raises_what_cannot_be_pickled():
    raise TwoArgumentsError("this", "that")


@pytest.fixture
def evaluator():
    return az.ProxyEvaluator((3, 10, 10), device="cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def no_idle_workers():
    yield
    _workers._end_idle()


@pytest.mark.parametrize("n_workers", [0, 1, 2])
def test_results_are_those_of_single_calls(n_workers, evaluator):
    widths = [24, 2, 8, 16, 4, 3]
    models = [build(width) if width == 8 else functools.partial(build, width) for width in widths]
    results = list(evaluator.map(models, n_workers=n_workers))
    assert results == [evaluator(build(width)) for width in widths]
    assert [result.names for result in results] == [evaluator.proxies] * len(widths)
    assert repr(results[0].blocks) == repr(evaluator(build(24)).blocks)  # NaN is equal to NaN in text


def test_results_wait_for_those_before_them(evaluator, tmp_path):
    def after_the_third():
        while not (tmp_path / "third").exists():
            threading.Event().wait(0.01)
        return build(8)

    def third():  # the worker that takes it has answered for the second
        (tmp_path / "third").touch()
        return build(6)

    results = list(evaluator.map([after_the_third, lambda: build(4), third], n_workers=2))
    assert results == [evaluator(build(width)) for width in (8, 4, 6)]


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_model_that_fails_has_its_error_in_its_place(n_workers, evaluator):
    models = [*builders([4]), raises_from, nn.Linear(3, 3), lambda: 7, lambda: sys.exit(4), *builders([8])]
    results = list(evaluator.map(models, n_workers=n_workers))
    kinds = [type(result) for result in results]
    assert kinds == [az.ProxyScores, LookupError, az.ProxyEvaluationError, TypeError, SystemExit, az.ProxyScores]
    assert str(results[1]) == "no such layer"
    assert isinstance(results[1].__cause__, KeyError)
    if n_workers > 1:
        assert "in raises_from" in "".join(results[1].__notes__)


def test_an_error_that_cannot_be_pickled_arrives_in_words(evaluator):
    (result,) = evaluator.map([raises_what_cannot_be_pickled], n_workers=2)
    assert isinstance(result, RuntimeError)
    assert str(result) == "TwoArgumentsError: this, that"


def test_an_error_that_only_the_worker_knows_costs_one_model(evaluator, tmp_path):
    (tmp_path / "only_there.py").write_text("class OddError(Exception):\n    pass\n")

    def raises():
        sys.path.insert(0, str(tmp_path))
        import only_there

        raise only_there.OddError

    results = list(evaluator.map([raises, *builders([4])], n_workers=2))
    assert isinstance(results[0], ModuleNotFoundError)
    assert isinstance(results[1], az.ProxyScores)


@pytest.mark.parametrize(("dies", "how"), [(exits, "exit status 3"), (is_killed, "killed by SIGKILL")])
def test_a_worker_that_dies_costs_one_model(dies, how, evaluator):
    results = list(evaluator.map([*builders([4, 5]), dies, *builders([6, 7, 8])], n_workers=2))
    assert isinstance(results[2], az.ProxyEvaluationError)
    assert f"model 2 could not be scored: its worker process died ({how}" in str(results[2])
    assert [type(result) for result in results[:2] + results[3:]] == [az.ProxyScores] * 5


def test_workers_that_ended_while_they_waited_are_replaced(evaluator):
    (first,) = evaluator.map(builders([4]), n_workers=2)
    ended = list(_workers._idle)
    assert ended
    for worker in ended:
        worker._process.kill()
        worker._process.wait()
    assert list(evaluator.map(builders([4, 4]), n_workers=2)) == [first, first]
    assert not set(ended) & set(_workers._idle)


def test_workers_are_used_again_with_another_evaluator(evaluator):
    list(evaluator.map(builders([4, 5, 6]), n_workers=2))
    before = set(_workers._idle)
    other = evaluator.replace(seed=1, proxies=["expressivity", "complexity"])
    assert list(other.map(builders([4]), n_workers=2)) == list(other.map(builders([4]), n_workers=1))
    assert set(_workers._idle) == before


class Counted:
    """A function that leaves a line in a file each time that it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __setstate__(self, state):
        self.__dict__.update(state)
        with self.file.open("a") as file:
            file.write("unpickled\n")

    def __call__(self, number):
        return number


def test_the_function_is_sent_to_a_worker_once(tmp_path):
    function = Counted(tmp_path / "log")
    assert list(_workers.call_each(function, range(5), n_workers=1, n_ahead=2)) == [0, 1, 2, 3, 4]
    assert function.file.read_text() == "unpickled\n"


def test_workers_look_for_modules_where_the_caller_does(evaluator, tmp_path, monkeypatch):
    list(evaluator.map(builders([4]), n_workers=2))
    (tmp_path / "just_written.py").write_text("def width():\n    return 6\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def imports():
        import just_written

        assert os.getcwd() == str(tmp_path)
        return build(just_written.width())

    assert list(evaluator.map([imports], n_workers=2)) == [evaluator(build(6))]


def test_what_cannot_be_sent_is_said(evaluator):
    locked = build(4)
    locked.lock = threading.Lock()
    results = list(evaluator.map([*builders([4]), locked, *builders([8])], n_workers=2))
    assert isinstance(results[1], az.ProxyEvaluationError)
    assert "model 1 could not be sent to a worker process: TypeError: cannot pickle '_thread.lock'" in str(results[1])
    assert "n_workers=1" in str(results[1])
    assert isinstance(results[2], az.ProxyScores)
    lock = threading.Lock()
    chosen = evaluator.replace(blocks=lambda model: [str(lock), *model])
    with pytest.raises(TypeError, match=r"what the workers need could not be sent .*inputs and blocks"):
        list(chosen.map(builders([4]), n_workers=2))


@pytest.mark.parametrize("n_workers", [1, 3])
def test_read_ahead_is_bounded_and_generators_may_be_endless(n_workers, evaluator):
    drawn = 0

    def endless():
        nonlocal drawn
        for width in itertools.cycle([4, 6, 8]):
            drawn += 1
            yield functools.partial(build, width)

    results = evaluator.map(endless(), n_workers=n_workers)
    for taken in range(1, 30):
        assert isinstance(next(results), az.ProxyScores)
        assert drawn <= taken + 2 * n_workers
    results.close()


def waits_for_ever(folder):
    (folder / f"worker{os.getpid()}").touch()
    threading.Event().wait()


def workers_of(folder):
    """Process ids of the workers that have left a file in a folder."""
    return [int(path.name.removeprefix("worker")) for path in folder.glob("worker*")]


def wait_until_gone(pids):
    assert pids
    while any(is_running(pid) for pid in pids):
        threading.Event().wait(0.01)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_closing_ends_the_workers_that_are_at_work(evaluator, tmp_path):
    waits = functools.partial(waits_for_ever, tmp_path)
    results = evaluator.map([*builders([4]), waits, waits, waits], n_workers=2)
    next(results)
    while len(workers_of(tmp_path)) < 2:
        threading.Event().wait(0.01)
    results.close()
    wait_until_gone(workers_of(tmp_path))
    assert len(workers_of(tmp_path)) == 2


def test_an_error_of_the_generator_passes_through(evaluator):
    def broken():
        yield from builders([4])
        raise FileNotFoundError("checkpoint.pt")

    with pytest.raises(FileNotFoundError, match=r"checkpoint\.pt"):
        list(evaluator.map(broken(), n_workers=2))


def test_a_process_that_cannot_start_is_said(evaluator, monkeypatch):
    _workers._end_idle()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"A worker process could not start \(exit status 1\)"):
        list(evaluator.map(builders([4]), n_workers=2))


def test_arguments_are_checked_at_once(evaluator):
    with pytest.raises(TypeError, match="got one Sequential"):
        evaluator.map(build(4))
    with pytest.raises(TypeError, match="iterable of models; got int"):
        evaluator.map(3)
    for n_workers in (-1, 2.0, True, "2"):
        with pytest.raises(ValueError, match="n_workers must be an integer of at least 0"):
            evaluator.map([], n_workers=n_workers)


def test_default_number_of_workers(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1000000")
    assert many._default_n_workers(torch.device("cpu")) == len(os.sched_getaffinity(0))
    monkeypatch.setattr(_workers, "default_n_workers", lambda: 16)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (9 * 2**30, 80 * 2**30))
    assert many._default_n_workers(torch.device("cuda", 0)) == 4
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**20, 80 * 2**30))
    assert many._default_n_workers(torch.device("cuda", 0)) == 1


def test_a_worker_has_one_thread_and_does_not_start_others():
    def look():
        return [torch.get_num_threads(), _workers.default_n_workers(), os.getsid(0) == os.getpid()]

    (seen,) = _workers.call_each(lambda function: function(), [look], n_workers=1, n_ahead=1)
    assert seen == [1, 1, True]


def test_in_a_worker_the_garbage_collector_rests_during_a_call():
    """And finds what the call has left before the next."""

    class Node:
        pass

    def leave_cycles():
        nodes = [Node() for _ in range(5000)]
        for node in nodes:
            node.itself = node
        sys.left = weakref.ref(nodes[0])
        return gc.isenabled(), sys.left() is not None

    def look():
        return gc.isenabled(), sys.left() is not None

    def fail():
        raise RuntimeError("no such layer")

    calls = [leave_cycles, look, fail, leave_cycles, look]
    first, second, failed, third, last = _workers.call_each(lambda call: call(), calls, n_workers=1, n_ahead=1)
    assert first == third == (False, True)
    assert second == last == (False, False)
    assert isinstance(failed, RuntimeError)


def test_progress_bar(evaluator, capsys):
    list(evaluator.map(builders([4, 5, 6]), n_workers=1, show_progress_bar=True))
    assert "3/3" in capsys.readouterr().err
    list(evaluator.map(builders([4]), n_workers=1))
    assert capsys.readouterr().err == ""


#: A script without ``if __name__ == "__main__"``, with a class, a function and a lambda of its own.
SCRIPT = """
import os, pathlib, time
from torch import nn
import optuna_aznas as az

class Block(nn.Module):
    def __init__(self, c, width):
        super().__init__()
        self.conv = nn.Conv2d(c, width, 3)
    def forward(self, x):
        return self.conv(x).relu()

def build(width):
    pathlib.Path(f"worker{os.getpid()}").touch()
    return nn.Sequential(*(Block(c, width) for c in (3, width, width)))

evaluator = az.ProxyEvaluator((3, 10, 10), device="cpu")
"""


def script(folder, ending):
    (folder / "script.py").write_text(SCRIPT + textwrap.dedent(ending))
    return subprocess.Popen(
        [sys.executable, "script.py"], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A test run in the background ignores interrupts, and its children would inherit that.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def test_a_script_without_a_guard_runs_once_and_leaves_nothing(tmp_path):
    process = script(
        tmp_path,
        """
        print("once")
        models = [build(4), lambda: build(5), lambda: build(6)]
        print([type(result).__name__ for result in evaluator.map(models, n_workers=2)])
        """,
    )
    out, errors = process.communicate(timeout=studies.NEVER)
    assert process.returncode == 0, errors
    assert out.splitlines() == ["once", str(["ProxyScores"] * 3)]
    wait_until_gone(workers_of(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_nothing_is_left_of_a_script_that_is_ended(number, tmp_path):
    process = script(
        tmp_path,
        """
        def endless(width):
            build(width)
            time.sleep(100000)

        list(evaluator.map([lambda: endless(4), lambda: endless(5)], n_workers=2))
        """,
    )
    while len(workers_of(tmp_path)) < 2:
        assert process.poll() is None, process.stderr.read()
        threading.Event().wait(0.01)
    process.send_signal(number)
    process.communicate(timeout=studies.NEVER)
    wait_until_gone(workers_of(tmp_path))
