"""Every argument and field of the public names has an entry of its own in the docstring, in order.

The linter checks functions only; this checks classes too.
"""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest

import optuna_aznas
from optuna_aznas import aggregation, dashboard, proxies, study, visualization

PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (optuna_aznas, proxies, aggregation, study, visualization, dashboard)
    for name in module.__all__
    if not inspect.ismodule(getattr(module, name))
}


def entries(docstring, section):
    if f"{section}:\n" not in docstring:
        return []
    body = docstring.split(f"{section}:\n")[1].split("\n\n")[0]
    return re.findall(r"^    \*{0,2}(\w+):", body, re.MULTILINE)


@pytest.mark.parametrize("name", PUBLIC)
def test_arguments_are_documented(name):
    thing = PUBLIC[name]
    docstring = inspect.getdoc(thing) or ""
    if dataclasses.is_dataclass(thing):
        own = inspect.get_annotations(thing)  # inherited fields are documented where they come from
        fields = [field.name for field in dataclasses.fields(thing) if field.name in own]
        assert entries(docstring, "Attributes") == fields
    elif "Args:" in docstring:
        assert entries(docstring, "Args") == list(inspect.signature(thing).parameters)
