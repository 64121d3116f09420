"""PerStudy: an object for each study, kept as long as the study is."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from optuna.study import Study

from optuna_aznas._optuna import whole_study

_T = TypeVar("_T")


class PerStudy(Generic[_T]):
    """Caches by study, for samplers and pruners that serve several. A pickle or copy of it is empty.

    The objects must not refer to their study, other than weakly, or neither is ever freed.
    """

    def __init__(self) -> None:
        self._objects: weakref.WeakKeyDictionary[Study, _T] = weakref.WeakKeyDictionary()

    def get(self, study: Study, make: Callable[[Study], _T]) -> _T:
        """Return the object of a study; ``make`` is called with the study where there is none yet."""
        study = whole_study(study)
        if study not in self._objects:
            self._objects[study] = make(study)
        return self._objects[study]

    def __iter__(self) -> Iterator[_T]:
        return iter(list(self._objects.values()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()
