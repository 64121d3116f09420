"""
Look at a model of your own
===========================

Any ``torch.nn.Module`` can be scored. :func:`~optuna_aznas.diagnose` shows block by block where it loses expressivity
or gradients, and says what is conspicuous and by which rule.
"""

from torch import nn

import optuna_aznas as az


def conv(c_in, c_out, stride=1):
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1), nn.BatchNorm2d(c_out), nn.ReLU())


def network(width):
    return nn.Sequential(
        conv(3, 32),
        conv(32, 32),
        conv(32, width),
        conv(width, 64, stride=2),
        conv(64, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


# %%
# A network with a bottleneck of four channels:

evaluator = az.ProxyEvaluator(input_shape=(3, 32, 32), seed=0)
narrow = az.diagnose(network(4), evaluator)
print(narrow)

# %%
# The same with 48 channels in that place, beside it:

wide = az.diagnose(network(48), evaluator)
az.visualization.plot_block_profile(narrow, wide, labels=["4 channels", "48 channels"])

# %%
# The proxy scores of the two. Bigger is better for each.

for name in narrow.scores.names:
    print(f"{name:18} {getattr(narrow.scores, name):14.4g} {getattr(wide.scores, name):14.4g}")

# %%
# The blocks are found automatically in models of repeated units and in plain chains of layers. Where that fails, or to
# look at others, name them: ``ProxyEvaluator(..., blocks=["layer1", "layer2"])``, a pattern such as ``"layer*.*"``, or
# a function ``(name, module) -> bool``. For several inputs, token ids or real data give a batch instead of a shape:
# ``ProxyEvaluator(inputs=batch)``. ``init=None`` keeps the model's own weights.

by_name = az.ProxyEvaluator(input_shape=(3, 32, 32), blocks=["0", "2", "4"], seed=0)
print([block.name for block in by_name(network(48)).blocks])
