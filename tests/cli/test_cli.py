"""The command, as a shell user runs it."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import os
import signal
import subprocess
import sys

import optuna
import pytest

import optuna_aznas as az
from optuna_aznas import cli
from tests import studies

#: What the space ``announced`` prints before it builds the network of a trial.
ANNOUNCED = "building network {}"

SPACE = (
    f"ANNOUNCED = {ANNOUNCED!r}"
    + """
import os
import sys

from torch import nn

def build(trial):
    layers, channels = [], 3
    for i in range(trial.suggest_int("depth", 2, 3)):
        width = trial.suggest_int(f"width{i}", 4, 16, step=4)
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))

def announced(trial):
    print(ANNOUNCED.format(trial.number), file=sys.stderr, flush=True)
    return build(trial)

def make():
    return build(type("T", (), {"suggest_int": lambda self, name, low, high, step=1: high})())

model = make()

def deadly(trial):
    if trial.number == 2:
        os._exit(3)
    if trial.number == 4:
        raise ArithmeticError("the fifth one")
    return build(trial)

def broken(trial):
    raise ArithmeticError("no such network")

number = 3
"""
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a user's module in it, to run commands in."""
    (tmp_path / "my_nets.py").write_text(SPACE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    yield tmp_path
    sys.modules.pop("my_nets", None)


def search(run, *more, trials=6):
    options = ["--input-shape", "3,8,8", "--trials", str(trials), "--device", "cpu", "--seed", "0"]
    return run("search", "my_nets:build", *options, *more)


def study_of(folder, name="build"):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/aznas.db")


def test_help_is_quick_and_light():
    code = "import sys\nfrom optuna_aznas.cli import main\nmain(['--help'])\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"torch", "optuna", "plotly"} & set(done.stderr.split())
    assert "optuna-aznas search nas_bench_201" in done.stdout


@pytest.mark.parametrize("command", ["search", "score", "top", "dashboard"])
def test_each_command_has_help_with_examples(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    assert f"examples:\n  optuna-aznas {command}" in out


def test_search_help_lists_the_built_in_spaces(run):
    _, out, _ = run("search", "--help")
    for name, space in az.spaces.BUILT_IN.items():
        assert name in out
        assert ",".join(map(str, space.input_shape)) in out


@pytest.mark.parametrize("name", az.spaces.BUILT_IN)
def test_built_in_spaces_can_be_scored(name):
    space = az.spaces.BUILT_IN[name]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    model = space.build(study.ask(), space.input_shape)
    scores = az.ProxyEvaluator(space.input_shape, batch_size=1 if "autoformer" in name else 2, device="cpu")(model)
    assert scores.complexity > 0


def test_search_and_go_on(run, folder):
    status, out, err = search(run)
    assert status == 0
    assert out.splitlines()[0].split()[:3] == ["place", "trial", "S"]
    assert len([line for line in out.splitlines() if not line.startswith("(")]) == 7
    assert "New study 'build', in sqlite:///aznas.db" in err
    assert "6/6" in err
    status, out, err = search(run, "--quiet", "-n", "2", trials=4)
    assert status == 0
    rows = [line for line in out.splitlines()[1:] if not line.startswith("(")]
    assert "Continuing study 'build': 6 trials so far" in err
    assert "4/4" not in err
    study = study_of(folder)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 10
    assert [int(line.split()[1]) for line in rows] == [t.number for t in az.best_trials(study, 2)]


def test_networks_of_one_study_are_scored_alike(run, folder):
    search(run, "--batch-size", "4")
    status, out, err = search(run, "--batch-size", "8")
    assert (status, out) == (1, "")
    assert "study 'build' was searched with --batch-size 4, not --batch-size 8" in err
    status, _, err = run("search", "my_nets:build", "--trials", "1", "--device", "cpu", "--budget", "1M")
    assert "was searched with no --budget, not --budget 1000000" in err
    status, _, _ = run("search", "my_nets:build", "--trials", "1", "--device", "cpu")  # what is left out is as before
    assert status == 0
    assert len(study_of(folder).trials) == 7


def test_all_that_is_printed_is_within_the_budget(run, folder):
    status, out, _ = search(run, "--budget", "0.06M", "--format", "json", "-n", "100", trials=25)
    assert status == 0
    printed = json.loads(out)
    assert all(row["complexity"] <= 60_000 for row in printed)
    study = study_of(folder)
    assert len(study.trials) == 25
    for trial in study.trials:
        assert trial.user_attrs["aznas:number:complexity"]["median"] == trial.values[-1] <= 60_000
    assert study.user_attrs["aznas:budget"] == 60_000
    assert json.loads(run("top", "-n", "100", "--format", "json")[1]) == printed


def test_a_study_made_otherwise_has_no_budget(run, folder):
    study = az.create_study(study_name="build", storage=f"sqlite:///{folder}/aznas.db")
    study.optimize(lambda trial: (1.0, 1.0, 1.0, 1.0), n_trials=1)
    status, _, err = search(run, "--budget", "1M")
    assert status == 1
    assert "was not created by this command" in err


def test_other_proxies(run, folder):
    status, out, _ = search(run, "--proxies", "trainability,complexity")
    assert status == 0
    assert out.splitlines()[0].split() == ["place", "trial", "S", "trainability", "complexity", "params"]
    status, out, _ = search(run, "--proxies", "trainability,expressivity", "--budget", "1M", "--study-name", "other")
    assert status == 0
    assert "complexity" in out.splitlines()[0].split()  # it is limited, though it is no proxy


def test_limits(run, folder):
    limits = ("--limit", "parameters=1.5k", "--limit", "latency=10s", "--limit", "peak_memory=1GB")
    status, out, _ = search(run, *limits, "--format", "json", "-n", "100", trials=8)
    assert status == 0
    printed = json.loads(out)
    assert len(printed) == len(study_of(folder).trials) == 8
    assert all(0 < row["number_latency"] < 10_000 and row["number_parameters"] <= 1500 for row in printed)
    status, _, err = search(run, "--limit", "parameters=2k")
    assert status == 1
    assert (
        "study 'build' was searched with --limit latency=10000 --limit parameters=1500 --limit peak_memory=1000000000, "
        "not --limit parameters=2000" in err
    )
    status, _, _ = search(run, trials=2)  # what is left out is as before
    assert status == 0
    assert len(study_of(folder).trials) == 10
    assert all(trial.user_attrs["aznas:number:parameters"]["median"] <= 1500 for trial in study_of(folder).trials)


def test_a_space_that_fails(run, folder):
    status, out, err = run("search", "my_nets:broken", "--input-shape", "3,8,8", "--trials", "50")
    assert status == 1
    assert out == ""
    assert "5 networks in a row could not be scored" in err
    assert "ArithmeticError: no such network" in err
    assert optuna.get_all_study_names(f"sqlite:///{folder}/aznas.db") == []


@pytest.mark.parametrize("storage", ["sqlite:///nas.db", "journal:nas.log"])
def test_several_workers_share_a_study_and_one_may_die(run, folder, storage):
    options = ["--input-shape", "3,8,8", "--device", "cpu", "--storage", storage, "--workers", "2", "--quiet"]
    status, out, err = run("search", "my_nets:deadly", *options, "--trials", "9")
    assert status == 0, err
    assert "A trial failed: its worker process died (exit status 3), and another one takes its place" in err
    assert "Trial 4 failed: ArithmeticError: the fifth one" in err
    assert "Scored 7 networks." in err
    trials = optuna.load_study(study_name="deadly", storage=az.open_storage(storage)).trials
    states = [trial.state.name for trial in trials]
    assert len(states) == 9
    assert (states[2], states[4]) == ("RUNNING", "FAIL")
    assert states.count("COMPLETE") == 7
    assert len([line for line in out.splitlines() if not line.startswith("(")]) == 1 + 7


def test_workers_need_a_storage_that_they_share(run):
    for storage in ("sqlite://", "sqlite:///:memory:"):
        status, _, err = search(run, "--workers", "2", "--storage", storage)
        assert status == 2
        assert "--workers needs a storage that several processes can open" in err


def test_networks_that_fail_in_workers_end_the_search(run, folder):
    assert search(run, "--trials", "1")[0] == 0
    (folder / "my_nets.py").write_text("def build(trial):\n    raise ArithmeticError('no such network')\n")
    status, out, err = search(run, "--workers", "2", "--trials", "1000")
    assert status == 1
    assert "5 networks in a row could not be scored. The last one: ArithmeticError: no such network" in err
    assert out == ""


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted(workers, folder):
    command = [sys.executable, "-m", "optuna_aznas", "search", "my_nets:announced", "--input-shape", "3,8,8"]
    with subprocess.Popen(
        [*command, "--trials", "100000", "--device", "cpu", "--workers", str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # several threads compete with other processes for the cores
        # A test run in the background ignores interrupts, and its children would inherit that.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            # The search has handled three networks once it builds the fourth. If it ends early, its output ends.
            err = ""
            while ANNOUNCED.format(3) not in err:
                line = process.stderr.readline()
                err += line
                assert line, f"the search ended with status {process.wait()} before the fourth network: {err}"
            process.send_signal(signal.SIGINT)
            err += process.stderr.read()
            out = process.stdout.read()
            process.wait()
        finally:
            process.kill()
    assert process.returncode == 130, err
    assert "the same command continues the search" in err
    assert "Traceback" not in err
    assert out.startswith("place  trial")
    trials = study_of(folder, "announced").trials
    assert len(trials) >= 4
    assert {trial.state.name for trial in trials} == {"COMPLETE"}


def test_score(run, folder):
    status, table, err = run("score", "my_nets:make", "--input-shape", "3,8,8", "--device", "cpu")
    assert (status, err) == (0, "")
    evaluator = az.ProxyEvaluator((3, 8, 8), device="cpu")
    import my_nets

    assert table == f"{az.diagnose(my_nets.make(), evaluator)}\n"
    assert run("score", "my_nets:model", "--input-shape", "3x8x8", "--device", "cpu")[1] == table
    status, out, _ = run("score", "my_nets:make", "--input-shape", "3,8,8", "--device", "cpu", "--format", "json")
    report = json.loads(out)
    assert report["scores"] == pytest.approx(evaluator(my_nets.make()).to_dict())
    assert len(report["blocks"]) == 3
    assert report["findings"]


def test_top(run, folder):
    study = studies.four_objectives(f"sqlite:///{folder}/aznas.db")
    board = az.leaderboard(study, 40)
    assert run("top", "-n", "40")[1] == f"{board}\n"
    rows = json.loads(run("top", "-n", "40", "--format", "json")[1])
    assert [row["number"] for row in rows] == [entry.number for entry in board]
    assert [row["params_op"] for row in rows] == [entry.params["op"] for entry in board]
    dead = {entry.number for entry in board if math.isinf(entry.proxy_scores["expressivity"])}
    assert {row["number"] for row in rows if row["expressivity"] == "-inf"} == dead
    table = list(csv.DictReader(io.StringIO(run("top", "-n", "40", "--format", "csv")[1])))
    assert [int(row["number"]) for row in table] == [entry.number for entry in board]
    assert [float(row["rank_score"]) for row in table] == [entry.rank_score for entry in board]
    assert [row["params_op"] for row in table] == [entry.params["op"] for entry in board]


def test_top_of_a_study_with_trainings(run, folder):
    study = studies.trained("sqlite:///other.db")
    studies.trained("sqlite:///other.db", name="second")
    options = ["--storage", "sqlite:///other.db", "--format", "json"]
    status, _, err = run("top", *options)
    assert status == 1
    assert "has 2 studies: second, trained. Name one with --study-name." in err
    rows = json.loads(run("top", *options, "--study-name", "trained", "-n", "1")[1])
    assert rows[0]["value"] == az.best_trials(study, 1)[0].value


@pytest.mark.parametrize("storage", ["sqlite:///nas.db", "journal:nas.log"])
def test_dashboard_publishes(run, folder, storage):
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed (extra 'dashboard')")
    search(run, "--storage", storage)
    optuna.create_study(study_name="empty", storage=cli._storage.open_storage(storage, must_exist=True))
    status, out, err = run("dashboard", "--storage", storage, "--publish-only")
    assert (status, out) == (0, "")
    assert "Published study 'build': 4 figures and notes, at http://127.0.0.1:8080/dashboard/studies/" in err
    assert "Study 'empty' has no scored trial" in err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "arguments are required: command"),
        (["serach"], 2, "invalid choice"),
        (["search"], 2, "arguments are required: space"),
        (["search", "nothing"], 2, "there is no built-in space 'nothing'; there is nas_bench_201"),
        (["search", "my_nets:build"], 2, "--input-shape is needed"),
        (["search", "my_nets.py:build", "--input-shape", "3,8,8"], 2, "must name a module, not a file: my_nets:build"),
        (["search", "no_such:build", "--input-shape", "3,8,8"], 1, "there is no module 'no_such'"),
        (["search", "my_nets:nothing", "--input-shape", "3,8,8"], 1, "module 'my_nets' has no 'nothing'"),
        (["search", "my_nets:number", "--input-shape", "3,8,8"], 1, "is a int, not a function"),
        (["search", "nas_bench_201", "--trials", "0"], 2, "whole number of at least 1"),
        (["search", "nas_bench_201", "--timeout", "soon"], 2, "a time above 0 such as 90, 15m or 2h"),
        (["search", "nas_bench_201", "--budget", "-4"], 2, "a number above 0 such as 450M"),
        (["search", "nas_bench_201", "--budget", "4Q"], 2, "a number above 0 such as 450M"),
        (["search", "nas_bench_201", "--limit", "speed=4"], 2, "one of parameters, complexity, peak_memory, latency"),
        (["search", "nas_bench_201", "--limit", "latency"], 2, "one of parameters, complexity, peak_memory, latency"),
        (["search", "nas_bench_201", "--limit", "latency=15M"], 2, "such as parameters=2M, latency=15ms"),
        (["search", "nas_bench_201", "--limit", "parameters=-2M"], 2, "such as parameters=2M, latency=15ms"),
        (["search", "nas_bench_201", "--device", "tpu9"], 2, "device 'tpu9' is not usable"),
        (["search", "nas_bench_201", "--proxies", "magic,complexity"], 2, "proxies must be"),
        (["search", "nas_bench_201", "--storage", "nas.db"], 2, "--storage must be a URL"),
        (["search", "nas_bench_201", "--storage", "nosql://x"], 1, "storage nosql://x cannot be opened"),
        (["score", "my_nets:make"], 2, "--input-shape is needed"),
        (["score", "my_nets:make", "--input-shape", "3,a"], 2, "positive whole numbers such as 3,32,32"),
        (["score", "my_nets", "--input-shape", "3,8,8"], 2, "must be given as module:name"),
        (["score", "my_nets:broken", "--input-shape", "3,8,8"], 1, "my_nets:broken() failed: TypeError"),
        (["score", "my_nets:number", "--input-shape", "3,8,8"], 1, "neither a torch.nn.Module nor a function"),
        (["score", "my_nets:make", "--input-shape", "5,8,8"], 1, "Sequential"),
        (["top"], 1, "there is no file 'aznas.db'"),
        (["top", "--format", "xml"], 2, "invalid choice: 'xml'"),
        (["search", "nas_bench_201", "--seed", "-1"], 2, "whole number from 0 to 4294967295, not '-1'"),
        (["search", "nas_bench_201", "--evaluator-seed", "-1"], 2, "whole number from 0 to 4294967295, not '-1'"),
        (["dashboard", "--port", "x"], 2, "whole number from 1 to 65535"),
        (["dashboard", "--port", "70000"], 2, "whole number from 1 to 65535"),
    ],
)
def test_what_goes_wrong(run, arguments, status, message):
    got, out, err = run(*arguments)
    assert got == status, err
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_passwords_are_not_shown(run):
    _, _, err = run("top", "--storage", "postgresql+nodriver://me:secret@host/db")
    assert "secret" not in err


def test_as_a_module_and_into_a_pipe(folder):
    studies.four_objectives(f"sqlite:///{folder}/aznas.db", n=30)
    command = f"{sys.executable} -m optuna_aznas top --format csv | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    first, status = done.stdout.splitlines()
    assert first.startswith("place,number,rank_score,expressivity")
    assert status == "0"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("parameters=2M", ("parameters", 2e6)),
        ("complexity=450m", ("complexity", 450e6)),
        ("latency=15ms", ("latency", 15.0)),
        ("latency=1.5 s", ("latency", 1500.0)),
        ("latency=15", ("latency", 15.0)),
        ("peak_memory=100MB", ("peak_memory", 1e8)),
        (" parameters = 1e6 ", ("parameters", 1e6)),
    ],
)
def test_limit_values(text, limit):
    assert cli._options.limit(text) == limit


@pytest.mark.parametrize(
    ("text", "value"), [("450M", 4.5e8), ("1.5g", 1.5e9), ("200k", 2e5), ("4.5e8", 4.5e8), ("1000", 1000.0)]
)
def test_budgets(text, value):
    assert cli._options.budget(text) == value


@pytest.mark.parametrize(("text", "value"), [("90", 90.0), ("90s", 90.0), ("1.5m", 90.0), ("2h", 7200.0)])
def test_times(text, value):
    assert cli._options.seconds(text) == value


def test_python_continues_a_search_of_the_command_line_only_with_its_evaluator(run, folder):
    url = f"sqlite:///{folder}/scoring.db"
    options = ("--input-shape", "3,8,8", "--batch-size", "2", "--trials", "2", "--storage", url, "--quiet")
    status, _, _ = run("search", "my_nets:build", *options)
    assert status == 0
    arguments = {"input_shape": (3, 8, 8), "batch_size": 2, "device": "cpu"}
    study = az.create_study(
        study_name="build", storage=url, evaluator=az.ProxyEvaluator(**arguments), load_if_exists=True
    )
    assert all(trial.user_attrs["aznas:scoring"]["n_blocks"] >= 2 for trial in study.trials)
    with pytest.raises(ValueError, match="seed=1 instead of 0"):
        az.create_study(
            study_name="build", storage=url, evaluator=az.ProxyEvaluator(**arguments, seed=1), load_if_exists=True
        )
