"""Importing the package is light, and its layers look one way only."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
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
    for package in (optuna_aznas, optuna_aznas.study):
        assert dir(package) == package.__all__
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = package.nothing
    assert {"ProxyEvaluator", "create_study", "study", "proxies", "aggregation"} <= set(optuna_aznas.__all__)
    assert not {"Any", "importlib", "annotations"} & set(dir(optuna_aznas))


@pytest.mark.parametrize("path", ["proxies.find_blocks", "study.Leaderboard", "aggregation.aggregate"])
def test_modules_are_attributes_without_an_import_of_their_own(path):
    loaded_by(f"import optuna_aznas as az; az.{path}")


def test_no_public_name_shadows_a_module():
    modules = sorted(PACKAGE.rglob("*.py"))
    for path in modules:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[-1] == "__main__":  # runs the command
            continue
        module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
        if parts[-1] == "__init__":
            continue
        assert getattr(importlib.import_module(".".join(parts[:-1])), parts[-1]) is module
    assert optuna_aznas.spaces.nas_bench_201.to_arch


def test_stubs_are_packaged():
    with (PACKAGE.parent / "pyproject.toml").open("rb") as file:
        settings = tomllib.load(file)["tool"]["setuptools"]
    assert settings["packages"]["find"] == {"include": ["optuna_aznas*"]}
    packaged = {path for pattern in settings["package-data"]["optuna_aznas"] for path in PACKAGE.glob(pattern)}
    assert packaged == {*PACKAGE.rglob("*.pyi"), PACKAGE / "py.typed"}


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
