"""Progress, as a bar on a terminal and as some lines in a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TextIO

import tqdm

_SECONDS = 60.0


class _Bar(tqdm.tqdm):  # type: ignore[misc]
    """The time left goes by all steps but the first, which compiles."""

    _first: tuple[int, float] | None = None
    """Where the first step ended: steps and seconds."""

    def update(self, n: float | None = 1) -> bool | None:
        """As in tqdm."""
        if self._first is None and not self.disable:
            self._first = (self.n + n, self._time())
        return super().update(n)  # type: ignore[no-any-return]

    @property
    def format_dict(self) -> Any:
        """As in tqdm; a rate of 0 is shown as unknown."""
        shown, rate = super().format_dict, 0.0
        if self._first is not None:
            steps, since = self.n - self._first[0], self._time() - self._first[1]
            rate = max(0.0, steps / since) if since > 0 else 0.0
        return {**shown, "rate": rate}


class _Lines(_Bar):
    """A line at the start, every minute, and at the end, where a bar would leave thousands."""

    disable: bool

    def __init__(self, **options: Any):
        super().__init__(mininterval=_SECONDS, miniters=1, **options)

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        """As in tqdm, but nothing is written over."""

        def write(line: str) -> None:
            file.write(f"{line}\n")
            file.flush()

        return write

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """As in tqdm, without moving the cursor."""
        del pos
        self.sp(str(self) if msg is None else msg)

    def clear(self, nolock: bool = False) -> None:
        """A line stays."""

    def close(self) -> None:
        """Writes the last line."""
        if not self.disable:
            if self.n != self.last_print_n:
                self.refresh()
            self.disable = True
            self._decr_instances(self)


def bar(total: int, label: str, show: bool, **options: Any) -> tqdm.tqdm:
    """A context with tqdm's `update` and `set_postfix`, on stderr.

    Args:
      total: steps.
      label: of the bar.
      show: False: nothing is written.
      **options: others of tqdm's.
    """
    options = {"total": total, "desc": label, "unit": "step", "disable": not show, **options}
    if sys.stderr.isatty():
        return _Bar(**options)
    line = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    return _Lines(bar_format=line, **options)


class Shared:
    """A bar of several runs: their steps together, their mean loss."""

    def __init__(self, bar: tqdm.tqdm):
        """Initializer."""
        self.bar = bar
        self.begun = 0
        self.losses: dict[int, float] = {}

    def part(self) -> Part:
        """For one more run."""
        return Part(self)


class Part:
    """One run's part of a bar."""

    def __init__(self, of: Shared):
        """Initializer."""
        self._of = of
        self._step = 0

    def begin(self, step: int) -> None:
        """The run goes on from there."""
        self._of.begun += step
        self._of.bar.initial = self._of.begun

    def to(self, step: int) -> None:
        """The run has come so far, or went back."""
        self._of.bar.update(step - self._step)
        self._step = step

    def say(self, loss: float, **more: str) -> None:
        """What stands behind the bar, of the run that said so last; the loss is all runs' mean."""
        self._of.losses[id(self)] = loss
        mean = sum(self._of.losses.values()) / len(self._of.losses)
        self._of.bar.set_postfix(loss=loss_text(mean), **more, refresh=False)

    def tell(self, text: str) -> None:
        """A line beside the bar, if that is shown."""
        if not self._of.bar.disable:
            say(text)


def loss_text(loss: float) -> str:
    """Four digits, however small it is."""
    return f"{loss:.4g}"


def say(text: str) -> None:
    """A line on stdout, beside a bar."""
    tqdm.tqdm.write(text)
