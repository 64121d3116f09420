"""
Transformers
============

Models of the package ``transformers`` can be scored as they are. Attention and layer normalisation make a model a
transformer for the evaluator: it runs in eval mode, with truncated-normal weights.
"""

import optuna
import torch
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

import optuna_aznas as az

optuna.logging.set_verbosity(optuna.logging.WARNING)


def build(trial):
    heads = trial.suggest_categorical("heads", [2, 4, 8])
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=trial.suggest_int("hidden_size", 32, 96, step=32),
        num_hidden_layers=trial.suggest_int("layers", 2, 6),
        num_attention_heads=heads,
        intermediate_size=trial.suggest_int("mlp_size", 64, 256, step=64),
    )
    return ViTModel(config, add_pooling_layer=False)


# %%
# A search over width, depth, heads and the size of the feed-forward layers of a vision transformer:

evaluator = az.ProxyEvaluator(input_shape=(3, 32, 32), batch_size=4, seed=0)
study = az.create_study(sampler=az.AZNASSampler(seed=0))
study.optimize(lambda trial: evaluator(build(trial)), n_trials=40)
az.leaderboard(study, n=5)

# %%
# A model that takes token ids gets a batch of them. A dict holds the keyword arguments of ``forward``.

generator = torch.Generator().manual_seed(0)
tokens = torch.randint(0, 1000, (4, 24), generator=generator)
inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
bert = BertModel(
    BertConfig(vocab_size=1000, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128)
)
print(az.diagnose(bert, az.ProxyEvaluator(inputs=inputs, seed=0)))
