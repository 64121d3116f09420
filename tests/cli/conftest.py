"""Running the command line in this process. Each module has a ``folder`` of its own to run it in."""

from __future__ import annotations

import pytest

from optuna_aznas import cli


@pytest.fixture
def run(folder, capsys):
    """Run a command in this process; returns exit status, standard output and standard error."""

    def call(*arguments):
        capsys.readouterr()
        status = cli.main(arguments)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
