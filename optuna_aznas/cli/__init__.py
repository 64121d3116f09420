"""The command ``optuna-aznas``.

Results go to standard output and nothing else does; what happens meanwhile goes to standard error. The exit status is 0
if all went well, 1 for a failure, 2 for arguments that make no sense, 130 after an interrupt.
"""

from optuna_aznas.cli._main import main

__all__ = ["main"]
