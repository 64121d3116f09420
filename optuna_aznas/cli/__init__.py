"""The command ``optuna-aznas``.

Only results go to standard output; progress and messages go to standard error. The exit status is 0 for success, 1 for
a failure, 2 for invalid arguments, 130 after an interrupt.
"""

from optuna_aznas.cli._main import main

__all__ = ["main"]
