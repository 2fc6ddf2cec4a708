"""Stopping in an orderly way when the process is told to."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax

from regularized_lopt import devices


class Interrupted(RuntimeError):
    """Outer training was told to stop, and did, after a checkpoint.

    Attributes:
      exit_code: 128 + the signal, as shells have it.
    """

    def __init__(self, signum: int, step: int, last: pathlib.Path | None):
        goes_on = f"the last checkpoint is {last}. The same command goes on from there."
        super().__init__(
            f"Stopped by {signal.Signals(signum).name} after outer step {step}; "
            + (goes_on if last else "there is no checkpoint yet.")
        )
        self.exit_code = 128 + signum


class Stopped(KeyboardInterrupt):
    """What goes no further than its launcher was told to stop, and does so where it stands.

    Attributes:
      exit_code: 128 + the signal, as shells have it.
    """

    def __init__(self, signum: int, advice: str):
        super().__init__(f"Stopped by {signal.Signals(signum).name}. {advice}")
        self.exit_code = 128 + signum


class StopRequest:
    """A context in which SIGTERM and Ctrl-C are noted, once; a second one acts at once.

    Attributes:
      signum: of the signal that came; None: none did.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = _handle(self.SIGNALS, self._note)
        return self

    def heard(self, together: bool) -> int | None:
        """The signal that came to this process, or to any of a job's processes.

        Args:
          together: now all processes ask; those of a job only find out then.
        """
        if jax.process_count() == 1:
            return self.signum
        return devices.agree(self.signum or 0) or None if together else None

    def __exit__(self, *error: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        for one in self.SIGNALS:
            signal.signal(one, signal.SIG_DFL)


@contextlib.contextmanager
def stops_at_once(advice: str) -> Iterator[None]:
    """A context in which SIGTERM and Ctrl-C raise `Stopped`, once what XLA is computing is done.

    Args:
      advice: what was kept, and what to do, in sentences.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(signum, advice)

    before = _handle(StopRequest.SIGNALS, stop)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _handle(
    signals: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], None]
) -> dict[int, Any]:
    """What handled them before."""
    if threading.current_thread() is not threading.main_thread():  # Python allows it there alone.
        return {}
    return {one: signal.signal(one, handler) for one in signals}
