"""optuna-integration's TorchDistributedTrial: rank 0 suggests, and all ranks build the same network."""

from __future__ import annotations

import contextlib

import optuna
import pytest
import torch
import torch.distributed
from torch import nn

import optuna_aznas as az

integration = pytest.importorskip(
    "optuna_integration.pytorch_distributed", reason="optuna-integration is not installed"
)

pytestmark = pytest.mark.filterwarnings("default")  # those of optuna-integration are not this package's

_N_TRIALS = 5


def objective(single_trial):
    """The same on each rank; ``single_trial`` is ``None`` on all but rank 0."""
    trial = integration.TorchDistributedTrial(single_trial, torch.distributed.group.WORLD)
    widths = [trial.suggest_int(name, 8, 32, step=8) for name in ("width0", "width1")]
    network = nn.Sequential(
        nn.Linear(4, widths[0]), nn.ReLU(), nn.Linear(widths[0], widths[1]), nn.ReLU(), nn.Linear(widths[1], 2)
    )
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    az.record(trial, az.ProxyEvaluator(inputs=inputs)(network))
    if trial.should_prune():
        raise optuna.TrialPruned
    trial.suggest_float("lr", 0.0, 1.0)
    total = torch.tensor(float(sum(widths)))
    torch.distributed.all_reduce(total)
    return total.item()


def run_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    if rank == 0:
        study = optuna.create_study(
            study_name="ranks",
            storage=f"sqlite:///{folder}/nas.db",
            sampler=az.AZNASSampler(
                hyperparameter_sampler=optuna.samplers.RandomSampler(seed=0), n_candidates=10, seed=0
            ),
            pruner=az.AZNASPruner(n_startup_trials=2, keep_fraction=0.5),
        )
        study.optimize(objective, n_trials=_N_TRIALS)
    else:
        for _ in range(_N_TRIALS):
            with contextlib.suppress(optuna.TrialPruned):
                objective(None)
    torch.distributed.barrier()  # a rank that leaves first takes the connection along
    torch.distributed.destroy_process_group()


def test_two_ranks_share_each_trial(tmp_path):
    torch.multiprocessing.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    study = optuna.load_study(study_name="ranks", storage=f"sqlite:///{tmp_path}/nas.db")
    assert len({tuple(trial.params[name] for name in ("width0", "width1")) for trial in study.trials}) == _N_TRIALS
    assert all(trial.user_attrs["aznas:architecture"] == ["width0", "width1"] for trial in study.trials)
    trained = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    assert 0 < len(trained) < _N_TRIALS
    assert all(trial.value == 2 * (trial.params["width0"] + trial.params["width1"]) for trial in trained)
