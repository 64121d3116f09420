"""Whatever goes wrong outside of the command ends it with one line of message and an exit status."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import optuna
import pytest

import optuna_aznas as az
from optuna_aznas.spaces import BUILT_IN, BuiltIn
from tests import studies

NETS = """
import sys

import optuna
from torch import nn

print("imported")

def layers():
    return [
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
    ]

def build(trial):
    print("building")
    trial.suggest_int("width", 1, 10**6)
    return Chatty(*layers(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

class Chatty(nn.Sequential):
    def forward(self, x):
        print("running")
        return super().forward(x)

def make():
    print("making")
    return Chatty(*layers(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def pruned(trial):
    network = build(trial)
    if trial.number % 2:
        raise optuna.TrialPruned
    return network

def leaves(trial):
    sys.exit(7)

def make_and_leave():
    sys.exit()

CALLS = 0

def first_only(trial):
    global CALLS
    CALLS += 1
    if CALLS > 1:
        raise ArithmeticError("only the first succeeds")
    return build(trial)

def flaky(trial):
    global CALLS
    CALLS += 1
    if CALLS % 5 != 1:
        raise ArithmeticError("four of five fail")
    return build(trial)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "talkative.py").write_text(NETS)
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(5)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("talkative", "leaving"):
        sys.modules.pop(name, None)


def shell(command, **env):
    """Run a shell command in which ``aznas`` stands for the program."""
    program = f'aznas() {{ {sys.executable} -m optuna_aznas "$@"; }}; {command}'
    done = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **env}
    )
    return done.returncode, done.stdout, done.stderr


def search(run, space, *more, trials=4):
    options = ["--input-shape", "3,8,8", "--trials", str(trials), "--device", "cpu", "--seed", "0", "--quiet"]
    return run("search", f"talkative:{space}", *options, *more)


def study_names(folder, file="aznas.db"):
    return optuna.get_all_study_names(f"sqlite:///{folder}/{file}")


def test_what_a_module_prints_is_no_result(run):
    status, out, err = search(run, "build", "--format", "json")
    assert status == 0
    assert len(json.loads(out)) == 4
    assert {"imported", "building", "running"} <= set(err.split("\n"))
    status, out, err = run("score", "talkative:make", "--input-shape", "3,8,8", "--device", "cpu", "--format", "json")
    assert status == 0
    assert json.loads(out)["blocks"]
    assert "making" in err


def test_a_space_may_prune_under_a_budget(run, folder):
    status, out, err = search(run, "pruned", "--budget", "1M", "--format", "json", trials=6)
    assert status == 0, err
    study = optuna.load_study(study_name="pruned", storage=f"sqlite:///{folder}/aznas.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"] * 3
    assert {row["number"] for row in json.loads(out)} == {0, 2, 4}


def test_failures_in_a_row_are_counted_anew_after_a_success(run, folder):
    status, _, err = search(run, "flaky", trials=20)
    assert status == 0, err
    study = optuna.load_study(study_name="flaky", storage=f"sqlite:///{folder}/aznas.db")
    assert [trial.state.name for trial in study.trials].count("FAIL") == 16


def test_five_failures_in_a_row_end_a_search(run, folder):
    status, _, err = search(run, "first_only", trials=20)
    assert status == 1
    assert "5 networks in a row could not be scored. The last one: ArithmeticError" in err.splitlines()[-1]
    study = optuna.load_study(study_name="first_only", storage=f"sqlite:///{folder}/aznas.db")
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * 5


def test_the_first_network_is_enqueued_once(run, folder, monkeypatch):
    def build(trial, input_shape):
        import talkative

        return talkative.build(trial)

    sys.path.insert(0, str(folder))
    monkeypatch.setitem(BUILT_IN, "tiny", BuiltIn(build, (3, 8, 8), first=lambda: {"width": 77}))
    for _ in range(3):
        status, _, err = run("search", "tiny", "--trials", "1", "--device", "cpu")
        assert status == 0, err
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{folder}/aznas.db")
    assert study.trials[0].params == {"width": 77}
    assert [trial.system_attrs.get("fixed_params") for trial in study.trials] == [{"width": 77}, None, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "math:sin", "--input-shape", "3,8,8"], "5 networks in a row could not be scored"),
        (["search", "talkative:leaves", "--input-shape", "3,8,8"], "the space called sys.exit(7)"),
        (["search", "talkative:build", "--input-shape", "5,8,8"], "5 networks in a row could not be scored"),
        (["search", "leaving:build", "--input-shape", "3,8,8"], "'leaving' called sys.exit(5) when it was imported"),
    ],
)
def test_a_space_that_never_works_leaves_no_study(run, folder, arguments, message):
    status, out, err = run(*arguments, "--device", "cpu")
    assert (status, out) == (1, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (folder / "aznas.db").exists() or study_names(folder) == []


def test_a_factory_may_leave(run):
    status, _, err = run("score", "talkative:make_and_leave", "--input-shape", "3,8,8")
    assert status == 1
    assert err.splitlines()[-1].endswith("error: talkative:make_and_leave() called sys.exit(None).")


@pytest.mark.parametrize("query", ["?timeout=5", "?timeout=5&check_same_thread=false"])
def test_a_file_with_options_in_its_url(run, folder, query):
    studies.four_objectives(f"sqlite:///{folder}/aznas.db", n=5)
    status, out, err = run("top", "--storage", f"sqlite:///aznas.db{query}")
    assert status == 0, err
    assert out == run("top")[1]
    status, _, err = run("top", "--storage", f"sqlite:///other.db{query}")
    assert status == 1
    assert "there is no file 'other.db'" in err
    assert not (folder / "other.db").exists()


def one_line(err):
    """Return the last line of standard error, before which a warning may stand, but no traceback."""
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("optuna-aznas")
    assert ": error: " in last
    return last


def test_a_server_that_is_not_there(run):
    pytest.importorskip("grpc", reason="grpcio is not installed")
    status, out, err = run("top", "--storage", "grpc://localhost:1")
    assert (status, out) == (1, "")
    assert "grpc://localhost:1" in one_line(err)


def test_a_storage_that_cannot_be_written(run, folder):
    az.create_study(study_name="build", storage=f"sqlite:///{folder}/aznas.db")
    status, out, err = search(run, "build", "--storage", "sqlite:///file:aznas.db?mode=ro&uri=true")
    assert (status, out) == (1, "")
    assert "attempt to write a readonly database" in one_line(err)


@pytest.mark.parametrize("storage", ["sqlite:///nas.db", "journal:nas.log"])
def test_a_full_disk(folder, storage):
    options = "--input-shape 3,8,8 --device cpu --quiet"
    status, _, err = shell(f"aznas search talkative:build {options} --trials 2 --storage {storage}")
    assert status == 0, err
    size = (folder / ("nas.db" if "sqlite" in storage else "nas.log")).stat().st_size
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {resource.RLIM_INFINITY})); "
        "from optuna_aznas.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *f"search talkative:build {options} --trials 500 --storage {storage}".split()],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert storage in one_line(done.stderr)


def test_standard_output_that_takes_nothing(folder):
    studies.four_objectives(f"sqlite:///{folder}/aznas.db", n=5)
    status, _, err = shell("aznas top > /dev/full")
    assert status == 1
    assert one_line(err) == "optuna-aznas: error: standard output: No space left on device"
    status, _, err = shell("aznas top >&-")
    assert status == 1
    assert one_line(err) == "optuna-aznas: error: standard output is closed."
    for command in ("top", "--help", "search --help"):
        assert shell(f"aznas {command} | true; exit ${{PIPESTATUS[0]}}") == (0, "", "")


def test_standard_error_that_is_closed(folder):
    studies.four_objectives(f"sqlite:///{folder}/aznas.db", n=5)
    assert shell("aznas top --storage sqlite:///nothing.db 2>&-") == (1, "", "")


def test_an_encoding_that_cannot_express_a_choice(folder):
    study = az.create_study(study_name="é", storage=f"sqlite:///{folder}/aznas.db", proxies=["p", "q"])
    study.optimize(lambda trial: (trial.suggest_categorical("größe", ["früh"]) == "früh", 1.0), n_trials=1)
    for form in ("table", "csv", "json"):
        status, out, err = shell(f"aznas top --format {form}", PYTHONIOENCODING="ascii")
        assert (status, err) == (0, "")
        assert out.isascii()
        assert "fr" in out


def test_search_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom optuna_aznas import cli\ncli.main(['search', '--help'])\nprint(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"torch", "optuna", "plotly", "numpy", "tqdm"} & set(done.stderr.split())
    assert "mobilenet_v2" in done.stdout


def test_a_message_is_one_line_that_a_terminal_cannot_misread(run, folder):
    optuna.create_study(study_name="\x1b[2J\nall is well", storage=f"sqlite:///{folder}/aznas.db")
    status, _, err = run("top", "--study-name", "other")
    assert status == 1
    assert err.count("\n") == 1
    assert "\x1b" not in err
