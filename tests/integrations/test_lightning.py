"""Lightning: a study whose trials a zero-cost ranking prunes first, and PyTorchLightningPruningCallback afterwards."""

from __future__ import annotations

import optuna
import pytest
import torch
from torch import nn

import optuna_aznas as az

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
integration = pytest.importorskip(
    "optuna_integration.pytorch_lightning", reason="optuna-integration or lightning is not installed"
)

pytestmark = pytest.mark.filterwarnings("default")  # Lightning's own are not this package's

_X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
_Y = (_X[:, 0] > 0).long()
_DATA = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(_X, _Y), batch_size=32)


class Classifier(lightning.LightningModule):
    """A LightningModule around any network."""

    def __init__(self, network, lr=0.01):
        super().__init__()
        self.network, self.lr = network, lr

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def build(trial):
    layers, width = [], 8
    for i in range(trial.suggest_int("depth", 2, 4)):
        units = trial.suggest_int(f"units{i}", 8, 32, step=8)
        layers += [nn.Linear(width, units), nn.ReLU()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 2))


def trainer(epochs, folder, **options):
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


class _AfterOneEpoch(optuna.pruners.BasePruner):
    """Prunes each trial when it has reported once: a pruner that leaves no doubt who pruned."""

    def prune(self, study, trial):
        return len(trial.intermediate_values) > 0


@pytest.mark.parametrize("scored", ["network", "module"])
def test_both_pruners_decide_each_at_its_time(scored, tmp_path):
    evaluator = az.ProxyEvaluator(inputs=_X[:32])

    def objective(trial):
        network = build(trial)
        module = Classifier(network)
        az.record(trial, evaluator(network if scored == "network" else module))
        if trial.should_prune():
            raise optuna.TrialPruned
        module.lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
        callback = integration.PyTorchLightningPruningCallback(trial, monitor="loss")
        run = trainer(3, tmp_path, callbacks=[callback])
        run.fit(module, _DATA, _DATA)
        return run.callback_metrics["loss"].item()

    study = optuna.create_study(
        sampler=az.AZNASSampler(n_candidates=10, seed=0),
        pruner=az.AZNASPruner(n_startup_trials=2, keep_fraction=0.5, training_pruner=_AfterOneEpoch()),
    )
    study.optimize(objective, n_trials=8)
    assert all(trial.state.name == "PRUNED" for trial in study.trials)
    reported = [list(trial.intermediate_values) for trial in study.trials]
    assert reported.count([0]) + reported.count([]) == 8
    assert reported.count([0]) > 0
    assert reported.count([]) > 0
    assert all(("lr" in trial.params) == (len(trial.intermediate_values) > 0) for trial in study.trials)


def test_a_module_scores_as_its_network_does():
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    evaluator = az.ProxyEvaluator(inputs=_X[:32])
    assert evaluator(Classifier(network)).to_dict() == evaluator(network).to_dict()


def test_one_process_suggests_and_two_train(tmp_path):
    """With ``ddp_spawn`` the objective runs once, in the process that asked, and the callback takes the study along."""
    evaluator = az.ProxyEvaluator(inputs=_X[:32])

    def objective(trial):
        module = Classifier(build(trial))
        az.record(trial, evaluator(module.network))
        if trial.should_prune():
            raise optuna.TrialPruned
        callback = integration.PyTorchLightningPruningCallback(trial, monitor="loss")
        run = trainer(2, tmp_path, callbacks=[callback], strategy="ddp_spawn", devices=2)
        run.fit(module, _DATA, _DATA)
        callback.check_pruned()
        return run.callback_metrics["loss"].item()

    study = optuna.create_study(
        storage=az.open_storage(f"sqlite:///{tmp_path}/nas.db"),
        sampler=az.AZNASSampler(n_candidates=10, seed=0),
        pruner=az.AZNASPruner(training_pruner=_AfterOneEpoch()),
    )
    study.optimize(objective, n_trials=1)
    assert [trial.state.name for trial in study.trials] == ["PRUNED"]
    assert list(study.trials[0].intermediate_values) == [0]
    assert study.trials[0].user_attrs["aznas:architecture"] == list(study.trials[0].params)
