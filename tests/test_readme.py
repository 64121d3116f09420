"""Every Python example of the README runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_there_are_the_three_uses():
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("number", range(3))
@pytest.mark.filterwarnings("ignore::UserWarning")  # the progress bar's
def test_example(number, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    optimize = optuna.Study.optimize

    def a_few_trials(self, *args, n_trials, **kwargs):
        return optimize(self, *args, n_trials=min(n_trials, 3), **kwargs)

    monkeypatch.setattr(optuna.Study, "optimize", a_few_trials)
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[number], f"README example {number + 1}", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert printed.strip()
    if number == 0:
        assert (tmp_path / "nas.db").exists()
        assert "expressivity" in printed
    if number == 2:
        assert printed.startswith("ProxyScores(expressivity=")
        assert "loses expressivity" in printed
