"""A lease in the study, so that one worker at a time publishes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from optuna.study import Study

from optuna_aznas._optuna import get_study_system_attr, set_study_system_attr

#: System attribute of the study: the worker that publishes, and the time at which its lease ends.
LEASE_KEY = "aznas:publishing"

_LASTS = 60.0  # seconds after which a lease that was not returned ends, as its worker has died
_CLOCKS_DIFFER = 60.0  # seconds by which the clocks of two machines may differ
_SETTLES = 0.1  # seconds after which a write is visible to all workers


@contextmanager
def publishing(study: Study, *, wait: bool) -> Iterator[bool]:
    """Take the lease on publishing for the time of a ``with`` block; yields whether this worker holds it.

    optuna-dashboard stores a figure in many attributes of 2 KB. Two workers that write one figure at the same time
    leave a mixture of both, which cannot be drawn.

    Optuna's storages have no locks, so this is Fischer's algorithm. A worker writes its name if no other name is there,
    waits until the writes of all other workers are visible, and holds the lease if its name is still there. If a write
    takes longer than that, two workers may publish at once. The next publication then replaces what they wrote.

    Args:
        study: The study.
        wait: Whether to wait while another worker holds the lease.
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
    """Return the worker that holds the lease, if any.

    A malformed lease is ignored. So is one that ends too far in the future for clocks that differ by
    ``_CLOCKS_DIFFER``: a worker would wait for it without bound.
    """
    lease = get_study_system_attr(study, LEASE_KEY)
    if not isinstance(lease, dict):
        return None
    owner, until = lease.get("owner"), lease.get("until")
    if not isinstance(owner, str) or isinstance(until, bool) or not isinstance(until, int | float):
        return None
    return owner if 0.0 < until - time.time() <= _LASTS + _CLOCKS_DIFFER else None


def _write(study: Study, lease: dict[str, Any] | None) -> None:
    set_study_system_attr(study, LEASE_KEY, lease)
