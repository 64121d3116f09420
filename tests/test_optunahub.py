"""The OptunaHub package: it loads as the registry's do, is complete, and its example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml

import optuna_aznas as az

optunahub = pytest.importorskip("optunahub", reason="optunahub is not installed")

REGISTRY = Path(__file__).parents[1] / "examples" / "optunahub" / "package"
PACKAGE = REGISTRY / "samplers" / "az_nas"
README = (PACKAGE / "README.md").read_text()


@pytest.fixture
def module():
    yield optunahub.load_local_module("samplers/az_nas", registry_root=str(REGISTRY))
    sys.modules.pop("optunahub_registry.package.samplers.az_nas")


def test_it_loads_and_searches(module):
    study = optuna.create_study(directions=["maximize"] * 2, sampler=module.AZNASSampler(seed=0, n_startup_trials=5))
    study.optimize(lambda trial: (trial.suggest_int("x", 0, 99), -trial.params["x"]), n_trials=20)
    assert len({trial.params["x"] for trial in study.trials}) == 20
    assert len(az.rank_scores(study)) == 20


def test_what_the_readme_lists_is_there(module):
    listed = re.findall(r"^- `(\w+)\(", README, re.MULTILINE)
    assert sorted(listed) == sorted(module.__all__)
    for name in listed:
        assert getattr(module, name) is getattr(az, name)


def test_front_matter():
    header = yaml.safe_load(README.split("---")[1])
    assert set(header) == {"author", "title", "description", "tags", "optuna_versions", "license"}
    assert "sampler" in header["tags"]
    assert header["license"] == "MIT License"
    assert all(isinstance(header[key], str) for key in ("author", "title", "description"))
    sections = re.findall(r"^## (.*)$", README, re.MULTILINE)
    assert sections == ["Abstract", "APIs", "Installation", "Example", "Others"]


def test_the_folder_is_complete():
    assert {path.name for path in PACKAGE.iterdir()} >= {"__init__.py", "README.md", "LICENSE", "example.py"}
    assert (PACKAGE / "LICENSE").read_text() == (REGISTRY.parents[2] / "LICENSE").read_text()


def test_its_example_runs(tmp_path):
    done = subprocess.run([sys.executable, str(PACKAGE / "example.py")], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if not line.startswith("(")]) == 6


def test_the_readmes_example_runs(module, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.setattr(optunahub, "load_module", lambda package: module)
    exec(compile(example.replace("n_trials=100", "n_trials=2"), "README", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.startswith("place  trial")
