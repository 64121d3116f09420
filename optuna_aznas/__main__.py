"""``python -m optuna_aznas``: the command ``optuna-aznas``."""

from optuna_aznas.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
