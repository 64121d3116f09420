"""Optuna's private names are used in one file only."""

from __future__ import annotations

import ast
from pathlib import Path

import optuna_aznas

PACKAGE = Path(optuna_aznas.__file__).parent
HOME = PACKAGE / "_optuna.py"


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_attributes(path):
    """Names of private attributes of anything but self."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and ast.unparse(node.value) not in ("self", "cls"):
            yield node.attr


def private_imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "optuna":
            yield from filter(is_private, [*node.module.split("."), *(alias.name for alias in node.names)])


def test_optunas_private_names_stand_in_one_file():
    private = set(private_attributes(HOME))
    assert {
        "_storage",
        "_study_id",
        "_trial_id",
        "_fixed_params",
        "_contains",
        "_cached_frozen_trial",
        "_redis",
    } == private
    assert list(private_imports(HOME))
    for path in PACKAGE.rglob("*.py"):
        if path != HOME:
            assert not private & set(private_attributes(path)), path
            assert list(private_imports(path)) == [], path
