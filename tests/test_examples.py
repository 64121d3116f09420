"""The examples, as a user runs them, for a few trials."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(folder, *arguments):
    command = [sys.executable, str(EXAMPLES / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("storage", ["sqlite:///nas.db", "journal:nas.log"])
def test_workers_one_after_the_other(storage, tmp_path):
    assert "op_0_1=" in run(tmp_path, "worker.py", storage, "--trials", "2")
    table = run(tmp_path, "worker.py", storage, "--trials", "2")
    assert len([line for line in table.splitlines()[1:] if not line.startswith("(")]) == 4


def test_architecture_and_hyperparameters(tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    printed = run(tmp_path, "architecture_and_hyperparameters.py", "--trials", "5")
    assert "5 architectures scored, 5 trained." in printed
    assert "'lr': " in printed


def test_refine_by_hand(tmp_path):
    printed = run(tmp_path, "refine_by_hand.py")
    assert "loses expressivity" in printed
    changes = {line.split()[0]: line.split()[1::2] for line in printed.splitlines() if " -> " in line}
    for proxy in ("expressivity", "entropy_retention"):
        before, after = map(float, changes[proxy])
        assert after > before, proxy
    assert float(changes["complexity"][1]) <= float(changes["complexity"][0])
    assert changes["findings"][1] == "0"


def test_rank_backbones(tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    lines = run(tmp_path, "rank_backbones.py").splitlines()[1:]
    names = [line[:16].strip() for line in lines]
    assert {"plain", "bottleneck", "residual"} <= set(names)
    ranks = [float(line[16:].split()[0]) for line in lines]
    assert ranks == sorted(ranks, reverse=True)
    assert names.index("residual") < names.index("bottleneck")


def test_watch_in_dashboard(tmp_path):
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    printed = run(tmp_path, "watch_in_dashboard.py", "--trials", "26")
    assert "optuna-dashboard sqlite:///watch.db" in printed
    study = optuna.load_study(study_name="my_nets", storage=f"sqlite:///{tmp_path}/watch.db")
    assert len(study.trials) == 26
    attrs = study._storage.get_study_system_attrs(study._study_id)
    assert "dashboard:plot_data:aznas-history:0" in attrs


def test_limits(tmp_path):
    printed = run(tmp_path, "limits.py", "--trials", "4", "--latency", "1000")
    table = printed.splitlines()
    assert "latency (ms)" in table[0]
    assert "parameters" in table[0]
    assert ", measured again: " in printed
    exported = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    assert ("onnxruntime: " in printed) if exported else ("No export to ONNX: " in printed)
