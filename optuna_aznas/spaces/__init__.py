"""Search spaces. Each module has a ``build`` that suggests an architecture to a trial and returns its network.

``__init__.pyi`` lists the public names. Each is loaded when it is first used, so that the names of the built-in spaces
can be listed without importing torch.
"""

from optuna_aznas import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
