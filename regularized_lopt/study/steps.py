"""Steps of a study: running does those whose results are missing, a dry run lists them all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from regularized_lopt.study.cache import CacheKey, TimedCache

if TYPE_CHECKING:
    from regularized_lopt.study.rates import Rates

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Step(Generic[_T]):
    """One result of a study: how it is found, how it is computed, and what that costs.

    Attributes:
      stage: "meta-train", "tune", "train", "measure", "match", "slice", "update curves" or "early
        evidence".
      label: of the result, for people.
      timing: what its seconds are called in timings.json. Steps alike share one.
      find: reads the result; None: it is not there.
      compute: computes it, and keeps it and its seconds. What it depends on must be there.
      estimate: its seconds, from the rates of its parts.
    """

    stage: str
    label: str
    timing: str
    find: Callable[[], _T | None]
    compute: Callable[[], None]
    estimate: Callable[[Rates], float]

    def result(self) -> _T:
        """Reads the result, which is computed first if it is not there."""
        found = self.find()
        if found is None:
            self.compute()
            found = self.find()
            assert found is not None, self.label
        return found


def cached_step(
    cache: TimedCache,
    stage: str,
    label: str,
    timing: str,
    key: Callable[[], CacheKey | None],
    compute: Callable[[], Mapping[str, Any]],
    read: Callable[[dict[str, Any]], _T],
    estimate: Callable[[Rates], float],
) -> Step[_T]:
    """A step whose result the cache keeps.

    Args:
      cache: which.
      stage, label, timing, estimate: see `Step`.
      key: of the result; None: it depends on another that is not there.
      compute: what the cache is to keep.
      read: makes the result of that.
    """

    def find() -> _T | None:
        found = None if (name := key()) is None else cache.results.find(name)
        return None if found is None else read(found)

    def compute_and_keep() -> None:
        name = key()
        assert name is not None, label
        cache.keep(name, timing, compute)

    return Step(stage, label, timing, find, compute_and_keep, estimate)
