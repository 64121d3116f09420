"""A study and its scored trials: what a trial stores, its history, its ranking. Imports optuna, never torch.

``__init__.pyi`` lists the public names. Each is loaded when it is first used: ``create_study`` imports the sampler and
the pruner, which themselves import modules of this package.
"""

from optuna_aznas import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
