"""Several processes, on one machine or more, at the work of one directory."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import filelock

_T = TypeVar("_T")

_POLL_SECONDS = 5.0


def share(work: Mapping[str, Callable[[], _T]], locks: pathlib.Path) -> dict[str, _T]:
    """Does every piece of work, those that another process is at last of all.

    Args:
      work: by name; doing a piece that is done already only reads what came of it.
      locks: directory, seen by all processes, for a lock per piece. A process that dies lets go of
        its own.

    Returns:
      What each piece returned, in the order of `work`.
    """
    locks.mkdir(parents=True, exist_ok=True)
    found: dict[str, _T] = {}
    waiting = list(work)
    while waiting:
        busy = []
        for name in waiting:
            try:
                with filelock.FileLock(locks / f"{name}.lock", timeout=0):
                    found[name] = work[name]()
            except filelock.Timeout:
                busy.append(name)
        if len(busy) == len(waiting):
            time.sleep(_POLL_SECONDS)
        waiting = busy
    return {name: found[name] for name in work}
