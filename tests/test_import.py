"""Importing the package is light, and its layers look one way only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import optuna_aznas

PACKAGE = Path(optuna_aznas.__file__).parent


def loaded_by(statement):
    code = f"{statement}\nimport sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_importing_the_package_is_light():
    assert not {"torch", "plotly", "sklearn", "optuna"} & loaded_by("import optuna_aznas")
    for name in ("AZNASSampler", "AZNASPruner", "create_study", "record", "aggregate"):
        assert not {"torch", "plotly", "sklearn"} & loaded_by(f"from optuna_aznas import {name}")
    assert not {"torch", "plotly", "optuna_dashboard"} & loaded_by(
        "import optuna_aznas.visualization, optuna_aznas.dashboard"
    )
    assert not {"torch", "optuna", "plotly", "tqdm"} & loaded_by("import optuna_aznas.cli")
    assert "torch" in loaded_by("from optuna_aznas import ProxyEvaluator")


def test_public_names():
    for name in optuna_aznas.__all__:
        assert getattr(optuna_aznas, name) is not None
    assert set(optuna_aznas.__all__) <= set(dir(optuna_aznas))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = optuna_aznas.nothing


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        (
            "proxies",
            (
                "optuna.",
                "transformers.",
                "optuna_aznas.study",
                "optuna_aznas.sampler",
                "optuna_aznas.pruner",
                "optuna_aznas.aggregation",
            ),
        ),
        ("aggregation", ("torch.", "optuna.", "optuna_aznas.proxies", "optuna_aznas.study")),
        # What looks on is used by nothing that is looked at; torch is loaded for a model only.
        ("visualization", ("torch.", "optuna_aznas.proxies", "optuna_aznas.sampler", "optuna_aznas.dashboard")),
        ("dashboard", ("torch.", "optuna_aznas.proxies", "optuna_aznas.sampler", "optuna_aznas.cli")),
        ("sampler", ("torch.", "optuna_aznas.proxies", "optuna_aznas.spaces")),
    ],
)
def test_layers_look_one_way(folder, forbidden):
    files = list((PACKAGE / folder).rglob("*.py"))
    assert files
    for path in files:
        for module in imports_of(path):
            assert not f"{module}.".startswith(forbidden), f"{path.name} imports {module}"
