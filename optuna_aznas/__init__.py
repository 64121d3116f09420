"""Training-free architecture search for Optuna: zero-cost proxies, rank aggregation, a sampler and a pruner.

``__init__.pyi`` lists the public names. Each is loaded when it is first used, so importing this package imports neither
torch nor optuna.
"""

from optuna_aznas import _lazy

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
