"""Prints a leaderboard."""

from __future__ import annotations

import csv
import json
import math
import sys
from typing import Any

from optuna.study import Study

from optuna_aznas.study import leaderboard


def print_leaderboard(study: Study, n: int, form: str) -> None:
    """Print the best trials of a study to standard output.

    Args:
        study: The study.
        n: How many.
        form: ``"table"``; ``"json"``, a list of objects in which a score that is not finite is a string such as
            ``"-inf"``; or ``"csv"``.
    """
    board = leaderboard(study, n)
    if form == "table":
        print(board)
    else:
        rows = board.to_dicts()
        if len(study.directions) == 1:
            for row, entry in zip(rows, board, strict=True):
                row["value"] = entry.values[0]
        if form == "json":
            print(json.dumps([_plain(row) for row in rows], indent=2, default=str, allow_nan=False))
        else:
            columns = dict.fromkeys(name for row in rows for name in row)
            writer = csv.DictWriter(sys.stdout, list(columns), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    sys.stdout.flush()


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
