"""The directory of an outer training run: whose it is, its checkpoints and its curves."""

from __future__ import annotations

import contextlib
import csv
import difflib
import functools
import hashlib
import io
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, TextIO

import filelock
from tensorboardX import event_file_writer
from tensorboardX.proto import event_pb2, summary_pb2

from regularized_lopt import devices, run_files, serialization
from regularized_lopt.outer_training.checkpoint import Checkpoints

_CHECKPOINTS = "checkpoints"
_LOCK = ".lock"


class OtherExperimentError(RuntimeError):
    """The directory holds another experiment, or something that is none; nothing was written."""


class InUseError(RuntimeError):
    """Another process writes to the directory; nothing was written."""


class RunDir:
    """Files of one experiment, for one process at a time; a context that ends with all on the disk.

    experiment.json has the configuration the directory belongs to, config.gin the same in full,
    with defaults; checkpoints/ everything that resuming needs; metrics.csv and TensorBoard events
    have the curves; .lock is held while a process writes, and let go when it ends, however it does.

    Attributes:
      path: of the directory.
      checkpoints: in it.
      digest: SHA-256 of experiment.json.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        experiment: Mapping[str, Any],
        keep_checkpoints: int = 2,
        overwrite: bool = False,
        writes: bool | None = None,
    ):
        """Claims the directory for `experiment`.

        Args:
          path: created if needed.
          experiment: JSON-serializable description; a directory with another one is refused.
          keep_checkpoints: see `Checkpoints`.
          overwrite: delete another experiment of ours instead of refusing.
          writes: False: another process of the same job writes; this one claims nothing and only
            reads. Default: as `devices.is_writer` says.

        Raises:
          OtherExperimentError: the directory is taken; the message has the differences.
          InUseError: another process holds its lock.
          OSError: it cannot be written to.
        """
        self.path = pathlib.Path(path)
        writes = devices.is_writer() if writes is None else writes
        description = json.dumps(experiment, indent=1, sort_keys=True)
        self.digest = hashlib.sha256(description.encode()).hexdigest()
        self.checkpoints = Checkpoints(
            self.path / _CHECKPOINTS, keep_checkpoints, writes, self.digest
        )
        self.writes = writes
        self._log: MetricsLog | None = None
        self._claim = contextlib.ExitStack()
        if writes:
            self._claim.enter_context(
                claimed(self.path, functools.partial(self._take, description, overwrite))
            )

    def _take(self, description: str, overwrite: bool) -> None:
        file = self.path / run_files.EXPERIMENT_FILE
        found = file.read_text() if file.is_file() else None
        if found == description:
            return
        if found is None:
            check_empty(self.path, "experiment of ours", run_files.EXPERIMENT_FILE)
        elif not overwrite:
            raise OtherExperimentError(_difference(self.path, found, description))
        else:
            self._delete()
        self.write(run_files.EXPERIMENT_FILE, description)

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._log is not None:
                self._log.close()
            if error is None:  # Else that error is what there is to say.
                self.checkpoints.wait()
        finally:
            self._claim.close()

    def write(self, name: str, text: str) -> None:
        """Writes a file in the directory, as a whole or not at all."""
        if self.writes:
            serialization.write_atomically(self.path / name, text.encode())

    def open_log(self, resume_step: int) -> MetricsLog:
        """The curves up to `resume_step`, to be continued; closed with the directory."""
        self._log = MetricsLog(self, resume_step)
        return self._log

    def _delete(self) -> None:
        """What an experiment leaves, and nothing else."""
        shutil.rmtree(self.path / _CHECKPOINTS, ignore_errors=True)
        for file in self.path.glob("events.out.tfevents.*"):
            file.unlink()
        for name in (
            run_files.METRICS_FILE,
            run_files.CONFIG_FILE,
            run_files.THETA_FILE,
            run_files.EXPERIMENT_FILE,
        ):
            (self.path / name).unlink(missing_ok=True)


class MetricsLog:
    """Scalars by outer step, in metrics.csv and in TensorBoard."""

    def __init__(self, run_dir: RunDir, resume_step: int):
        """Opens the log and drops entries later than the checkpoint at `resume_step`."""
        self._run_dir = run_dir
        self._file: TextIO | None = None
        self._tensorboard: _Events | None = None
        self.rewind(resume_step)

    def rewind(self, step: int) -> None:
        """Drops entries later than `step`."""
        self.close()
        self.seconds_before = 0.0
        if not self._run_dir.writes:
            return
        # As they were written: 1 is not to become 1.0.
        rows = [
            row
            for row in run_files.metrics_as_written(self._run_dir.path)
            if float(row["outer_step"]) <= step
        ]
        text = io.StringIO()
        writer = csv.DictWriter(text, run_files.METRICS)
        writer.writeheader()
        writer.writerows(rows)
        self._run_dir.write(run_files.METRICS_FILE, text.getvalue())
        self._file = (self._run_dir.path / run_files.METRICS_FILE).open("a", newline="")
        self._tensorboard = _Events(self._run_dir.path, step + 1)
        if rows:
            self.seconds_before = float(rows[-1]["seconds"] or 0)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the scalars of one outer step."""
        if self._file is None or self._tensorboard is None:
            return
        csv.DictWriter(self._file, run_files.METRICS).writerow({"outer_step": step, **scalars})
        self._file.flush()
        self._tensorboard.write(step, {f"outer_train/{k}": v for k, v in scalars.items()})

    def close(self) -> None:
        """Flushes and closes both logs, if they are open."""
        if self._file is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


class _Events:
    """TensorBoard's event file, written at once.

    tensorboardX's own writer has a thread that a clock set back by a month kills; ten events later
    it then blocks for ever.
    """

    def __init__(self, directory: pathlib.Path, purge_step: int):
        """Begins a file; TensorBoard forgets what other files have from `purge_step` on."""
        self._file = event_file_writer.EventsWriter(str(directory / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(step=purge_step, session_log=start))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        values = [summary_pb2.Summary.Value(tag=k, simple_value=v) for k, v in scalars.items()]
        self._write(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=values)))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)
        self._file.flush()


@contextlib.contextmanager
def claimed(path: pathlib.Path, take: Callable[[], None]) -> Iterator[None]:
    """A directory for one process at a time, created if needed.

    Args:
      path: of the directory.
      take: looks whose it is and writes that, under the lock: another process may have been about
        to begin. Where it raises, nothing of ours stays in what is not ours.

    Raises:
      InUseError: another process holds its lock.
      OSError: it cannot be written to.
    """
    lock = filelock.FileLock(path / _LOCK)
    was_there = (path / _LOCK).exists()
    _acquire(lock, path)
    try:
        try:
            take()
        except BaseException:
            if not was_there:
                (path / _LOCK).unlink()
            raise
        yield
    finally:
        lock.release()


def _acquire(lock: filelock.BaseFileLock, path: pathlib.Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise InUseError(
            f"Another process is writing to {path}; nothing was written. Wait for it, "
            "stop it, or choose another --train_log_dir."
        ) from error
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path} cannot be written to ({error.strerror or error}). Choose another "
            "--train_log_dir",
        ) from error


def check_empty(path: pathlib.Path, what: str, file: str) -> None:
    """Refuses a directory that has something in it, but no `file`, so that it holds no `what`.

    What a process leaves that is killed as it begins is nothing.
    """
    passing = (_LOCK, serialization.SCRATCH_PREFIX)
    if path.is_dir() and not all(one.name.startswith(passing) for one in path.iterdir()):
        raise OtherExperimentError(
            f"{path} is not empty and holds no {what} ({file} is missing). Choose another "
            "--train_log_dir; nothing was written."
        )


def _difference(path: pathlib.Path, found: str, given: str) -> str:
    lines = difflib.unified_diff(
        found.splitlines(), given.splitlines(), "in the directory", "given", lineterm="", n=0
    )
    difference = "\n".join(line for line in lines if not line.startswith("@@"))
    return (
        f"{path} holds another experiment; nothing was written. Give the same configuration to "
        "resume it, choose another --train_log_dir (with --warm_start to begin with this one's "
        f"theta), or delete it with --overwrite. The difference:\n{difference}"
    )
