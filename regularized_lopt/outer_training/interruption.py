"""Stopping in an orderly way when the process is told to."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from regularized_lopt.outer_training.checkpoint import Checkpoints


class Interrupted(RuntimeError):
    """Outer training was told to stop, and did, after a checkpoint.

    Attributes:
      exit_code: 128 + the signal, as shells have it.
    """

    def __init__(self, signum: int, when: str, checkpoints: Checkpoints):
        checkpoints.wait()
        super().__init__(
            f"Stopped by {signal.Signals(signum).name} {when}; the last checkpoint is "
            f"{checkpoints.last()}. The same command goes on from there."
        )
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
        if threading.current_thread() is threading.main_thread():  # Python allows it there alone.
            self._before = {one: signal.signal(one, self._note) for one in self.SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        for one in self.SIGNALS:
            signal.signal(one, signal.SIG_DFL)
