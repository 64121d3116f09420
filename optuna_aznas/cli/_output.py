"""Results of a command: the text for standard output and the exit status."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from typing import TYPE_CHECKING

from optuna_aznas._text import for_csv, for_json

if TYPE_CHECKING:
    from optuna.study import Study


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command returns.

    Attributes:
        text: What is printed to standard output.
        status: The exit status.
    """

    text: str = ""
    status: int = 0


def leaderboard_text(study: Study, n: int, form: str) -> str:
    """Return the leaderboard of a study as text.

    Args:
        study: The study.
        n: Number of trials.
        form: ``"table"``; ``"json"``, a list of objects in which a number that is not finite is a string such as
            ``"-inf"``; or ``"csv"``, in which no cell is a formula (see :func:`~optuna_aznas._text.for_csv`).
    """
    from optuna_aznas.study import leaderboard

    board = leaderboard(study, n)
    if form == "table":
        return f"{board}\n"
    rows = board.to_dicts()
    if form == "json":
        plain = [{name: for_json(value) for name, value in row.items()} for row in rows]
        return json.dumps(plain, indent=2, default=str, allow_nan=False) + "\n"
    columns = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(for_csv, columns))
    writer.writerows([for_csv(row.get(name)) for name in columns] for row in rows)
    return file.getvalue()
