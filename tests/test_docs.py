"""What documentation, README and help texts print to be run does run: Python, and the project's own commands."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import textwrap
from pathlib import Path

import optuna
import pytest

import optuna_aznas as az
from optuna_aznas import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.rst"))
RST_BLOCK = re.compile(r"^( *)\.\. code-block:: (\w+)\n((?:\1 +:.*\n)*)((?:\1 +.*\n|\n)+)", re.MULTILINE)
COMMANDS = ("search", "score", "top", "dashboard")


def blocks(page, language):
    found = RST_BLOCK.findall(page.read_text() + "\n")
    return [textwrap.dedent(code) for _, name, options, code in found if name == language and "no-run" not in options]


def commands_in(text):
    """Lines that call the command, without what the shell does with their output."""
    lines = (line.strip() for line in text.splitlines())
    calls = [re.split(r" [|>] |   +", line)[0] for line in lines if re.match(r"optuna-aznas( |$)", line)]
    return [call for call in calls if call.removeprefix("optuna-aznas").strip()]


def shortened(command):
    """The same command for a few networks, and without a server that never ends."""
    arguments = shlex.split(command)[1:]
    if arguments[0] == "search":
        return [
            *re.sub(r"--timeout \S+|--trials \S+", "", shlex.join(arguments)).split(),
            "--trials",
            "2",
            "--device",
            "cpu",
        ]
    if arguments[0] == "score":
        return [*arguments, "--device", "cpu"]
    if arguments[0] == "dashboard" and "--publish-only" not in arguments:
        return [*arguments, "--publish-only"]
    return arguments


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the examples' own module in it."""
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    shutil.copy(ROOT / "examples" / "my_nets.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_nets", None)


@pytest.fixture
def few_trials(monkeypatch):
    optimize = optuna.Study.optimize

    def a_few(self, *args, n_trials, **kwargs):
        return optimize(self, *args, n_trials=min(n_trials, 3), **kwargs)

    monkeypatch.setattr(optuna.Study, "optimize", a_few)


def run_all(text, capsys):
    commands = commands_in(text)
    for command in commands:
        status = cli.main(shortened(command))
        captured = capsys.readouterr()
        assert status == 0, f"{command}: {captured.err}"
        assert captured.out or " dashboard" in command
    return commands


@pytest.mark.parametrize("page", [page.stem for page in PAGES])
def test_page(page, folder, few_trials, capsys):
    path = ROOT / "docs" / f"{page}.rst"
    namespace = {"__name__": "__main__"}
    for code in blocks(path, "python"):
        exec(compile(code, path.name, "exec"), namespace)
    capsys.readouterr()
    run_all("\n".join(blocks(path, "shell")), capsys)


def test_readme_commands(folder, capsys):
    text = "\n".join(re.findall(r"```shell\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
    assert len(run_all(text, capsys)) >= 5


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_examples(command, folder, capsys):
    if command in ("top", "dashboard"):
        for storage, name in (("sqlite:///aznas.db", "only"), ("sqlite:///nas.db", "nb201")):
            study = az.create_study(study_name=name, storage=storage)
            study.optimize(lambda trial: (trial.suggest_int("x", 0, 9), 1, 1, 1), n_trials=1)
    assert cli.main([*filter(None, [command]), "--help"]) == 0
    text = capsys.readouterr().out
    assert len(run_all(text.split("examples:")[1], capsys)) >= 3


def test_every_make_target_that_is_mentioned_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [(ROOT / "README.md").read_text(), *(page.read_text() for page in PAGES)]
    mentioned = {name for text in texts for name in re.findall(r"(?:``|`|^ *)make ([a-z][a-z-]*)", text, re.MULTILINE)}
    assert "test" in mentioned
    assert mentioned <= targets
