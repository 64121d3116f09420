"""load_object: imports the object that ``module:name`` refers to."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from optuna_aznas.cli._errors import CommandError, UsageError


def load_object(reference: str, kind: str) -> Any:
    """Import ``module:name``. The current directory is searched first, as by ``python -m``.

    Args:
        reference: A module and a name in it, such as ``my_nets:build`` or ``package.module:Class.method``.
        kind: What the object should be, for messages.

    Raises:
        UsageError: ``reference`` is not of that form.
        CommandError: The module cannot be imported, or has no such name.
    """
    module_name, colon, path = reference.partition(":")
    if not (colon and module_name and path):
        raise UsageError(f"{kind} must be given as module:name, such as my_nets:build; got {reference!r}.")
    if module_name.endswith(".py") or "/" in module_name:
        raise UsageError(f"{kind} must name a module, not a file: {module_name.removesuffix('.py')}:{path} instead?")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise CommandError(
                f"there is no module {error.name!r}, neither in {here} nor among the installed packages."
            ) from error
        raise CommandError(f"module {module_name!r} could not be imported: {error}.") from error
    except Exception as error:
        raise CommandError(f"module {module_name!r} could not be imported: {type(error).__name__}: {error}") from error
    except SystemExit as error:
        raise CommandError(f"module {module_name!r} called sys.exit({error.code!r}) when it was imported.") from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise CommandError(f"module {module_name!r} has no {path!r}.") from error
    return found
