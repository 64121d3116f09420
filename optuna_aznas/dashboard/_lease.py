"""One worker at a time publishes a study."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from optuna.study import Study

from optuna_aznas._optuna import get_study_system_attr, set_study_system_attr

#: System attribute of the study: who publishes, and until when that is to be believed.
LEASE_KEY = "aznas:publishing"

#: Seconds after which a worker that has not given its lease back is taken to be dead.
_LASTS = 60.0

#: Seconds that a write may take to become visible to others.
_SETTLES = 0.1


@contextmanager
def publishing(study: Study, *, wait: bool) -> Iterator[bool]:
    """Hold the lease on publishing; yields whether it was to be had.

    optuna-dashboard keeps a figure in many attributes of 2 KB. Two workers that write at the same time would leave a
    mixture that is no figure at all. Storages know no locks, so this is Fischer's algorithm: write one's name where
    there is none, wait until everyone else's write must have been seen, and go on if the name is still there. Should a
    write take longer, the figures are mended when they are next published.

    Args:
        study: The study.
        wait: Whether to wait for another one to finish; otherwise nothing is done while it does.
    """
    owner = uuid.uuid4().hex
    held = _try_to_take(study, owner)
    while wait and not held:
        time.sleep(2 * _SETTLES)
        held = _try_to_take(study, owner)
    try:
        yield held
    finally:
        if held:
            _write(study, None)


def _try_to_take(study: Study, owner: str) -> bool:
    if _owner(study) is not None:
        return False
    _write(study, {"owner": owner, "until": time.time() + _LASTS})
    time.sleep(_SETTLES)
    return _owner(study) == owner


def _owner(study: Study) -> str | None:
    lease: dict[str, Any] | None = get_study_system_attr(study, LEASE_KEY)
    return lease["owner"] if lease and time.time() < lease["until"] else None


def _write(study: Study, lease: dict[str, Any] | None) -> None:
    set_study_system_attr(study, LEASE_KEY, lease)
