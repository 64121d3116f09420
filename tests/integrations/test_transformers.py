"""transformers' Trainer: hyperparameter_search with architectures that a zero-cost ranking steers."""

from __future__ import annotations

import optuna
import pytest
import torch

import optuna_aznas as az

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate, which transformers' Trainer needs, is not installed")

pytestmark = pytest.mark.filterwarnings("default")  # those of transformers and accelerate are not this package's

ARCHITECTURE = ["depth", "heads"]


def suggest(trial):
    return {"depth": trial.suggest_int("depth", 2, 5), "heads": trial.suggest_categorical("heads", [2, 4])}


def build(depth=2, heads=2):
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=32,
        max_position_embeddings=8,
    )
    return transformers.BertForSequenceClassification(config)


def hp_space(trial):
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)}


@pytest.mark.parametrize("hyperparameters_first", [False, True])
def test_trainer_searches_architecture_and_hyperparameters(hyperparameters_first, tmp_path):
    """In one process this Trainer calls ``model_init`` before ``hp_space``, in distributed training after it."""
    token_ids = torch.randint(0, 50, (32, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": int(row[0] > 25)} for row in token_ids]
    evaluator = az.ProxyEvaluator(inputs=token_ids[:8])

    def model_init(trial=None):
        if trial is None:  # the Trainer makes one model before the search
            return build()
        if hyperparameters_first:
            hp_space(trial)
        model = build(**suggest(trial))
        az.record(trial, evaluator(model), architecture=ARCHITECTURE)
        if trial.should_prune():
            raise optuna.TrialPruned
        return model

    trainer = transformers.Trainer(
        args=transformers.TrainingArguments(
            tmp_path,
            max_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        model_init=model_init,
        train_dataset=data,
        eval_dataset=data,
    )
    storage = optuna.storages.InMemoryStorage()
    best = trainer.hyperparameter_search(
        backend="optuna",
        direction="minimize",
        hp_space=hp_space,
        n_trials=6,
        study_name="bert",
        storage=storage,
        sampler=az.AZNASSampler(hyperparameter_sampler=optuna.samplers.RandomSampler(seed=0), n_candidates=10, seed=0),
        pruner=az.AZNASPruner(n_startup_trials=2, keep_fraction=0.5),
    )
    study = optuna.load_study(study_name="bert", storage=storage)
    trained = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    assert 0 < len(trained) < 6
    assert {trial.state.name for trial in study.trials} == {"COMPLETE", "PRUNED"}
    assert all(not trial.intermediate_values for trial in study.trials if trial not in trained)
    assert all("learning_rate" in trial.params for trial in trained)
    assert all(trial.user_attrs["aznas:architecture"] == ARCHITECTURE for trial in study.trials)
    assert len({(trial.params["depth"], trial.params["heads"]) for trial in study.trials}) == 6
    assert best.hyperparameters.keys() == {"depth", "heads", "learning_rate"}
    assert az.rank_scores(study).keys() == set(range(6))
