"""Checkpoints of an outer training run, written while it goes on."""

from __future__ import annotations

import concurrent.futures
import pathlib
import warnings
from typing import Any

from regularized_lopt import errors, serialization

BEST = "best.npz"


class Checkpoints:
    """A directory of checkpoints: the last few, and the one at the best validation so far.

    A checkpoint appears under its name only when all of it is on the disk, so whatever happens
    meanwhile, those that are there load.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        keep: int = 2,
        writes: bool = True,
        config_hash: str = "",
    ):
        """Initializer.

        Args:
          directory: created when it is first needed.
          keep: how many of the last ones to keep, > 0.
          writes: False: only reads; saving does nothing.
          config_hash: of the experiment they belong to; one of another does not load.
        """
        errors.check_positive("checkpoints to keep", keep)
        self.directory = directory
        self._keep = keep
        self._writes = writes
        self._config_hash = config_hash
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._writing: concurrent.futures.Future[None] | None = None

    def save(self, step: int, tree: Any, metadata: dict[str, Any]) -> None:
        """Writes `tree` in the background.

        Args:
          step: the outer step it belongs to.
          tree: pytree of arrays on the host.
          metadata: JSON-serializable.

        Raises:
          OSError: the checkpoint before could not be written.
        """
        self._submit(f"checkpoint_{step:08d}.npz", tree, metadata)

    def save_best(self, tree: Any, metadata: dict[str, Any]) -> None:
        """The same into best.npz, which `restore` does not look at."""
        self._submit(BEST, tree, metadata)

    def wait(self) -> None:
        """Until everything is on the disk.

        Raises:
          OSError: it could not be written; the message names the last checkpoint that was.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except OSError as error:
            last = self.last()
            raise OSError(
                error.errno,
                f"A checkpoint could not be written ({error.strerror or error}). "
                + (f"The last one is {last}" if last else "There is none yet")
                + "; the same command goes on from there once there is room.",
                str(self.directory),
            ) from error

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint that loads, as (tree in the structure of `like`, metadata).

        A damaged one is passed over with a warning: the steps since the one before are repeated,
        with the same result. None: there is no checkpoint.

        Raises:
          serialization.FileFormatError: there are checkpoints and none loads.
        """
        self.wait()
        problem = None
        for path in reversed(self._all()):
            try:
                tree, about = serialization.load(path, like)
                if about["config_hash"] != self._config_hash:
                    raise serialization.FileFormatError(f"{path} is of another experiment.")
                return tree, about["metadata"]
            except serialization.FileFormatError as error:
                problem = error
                warnings.warn(f"{error} Trying the checkpoint before.", stacklevel=2)
        if problem is not None:
            raise serialization.FileFormatError(
                f"{problem} No checkpoint loads: restore one, or delete {self.directory} to begin "
                "anew."
            )
        return None

    def last(self) -> pathlib.Path | None:
        """The newest checkpoint's file, if there is any."""
        found = self._all()
        return found[-1] if found else None

    def _submit(self, name: str, tree: Any, metadata: dict[str, Any]) -> None:
        if self._writes:
            self.wait()
            self._writing = self._pool.submit(self._write, name, tree, metadata)

    def _write(self, name: str, tree: Any, metadata: dict[str, Any]) -> None:
        for scratch in self.directory.glob(f"{serialization.SCRATCH_PREFIX}*"):
            scratch.unlink(missing_ok=True)  # Of a process that was killed while it wrote.
        about = {"config_hash": self._config_hash, "metadata": metadata}
        serialization.save(self.directory / name, tree, about)
        for old in self._all()[: -self._keep]:
            old.unlink()

    def _all(self) -> list[pathlib.Path]:
        return sorted(self.directory.glob("checkpoint_*.npz"))
