"""Lazy loading of a package's public names, which its type stub ``__init__.pyi`` lists."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names are loaded on first use.

    The stub beside the package's ``__init__.py`` is the only list of the names. Type checkers and editors read it, and
    so does this function: ``from optuna_aznas.pruner import AZNASPruner as AZNASPruner`` says where a name is found.

    Args:
        package: The package's ``__name__``.
    """
    stub = Path(str(sys.modules[package].__file__)).with_suffix(".pyi")
    home = {
        alias.name: statement.module
        for statement in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.ImportFrom) and statement.module
        for alias in statement.names
    }

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if home[name] == package:
            return importlib.import_module(f"{package}.{name}")
        value = getattr(importlib.import_module(home[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted(home)

    return load, names, names()
