"""Results of an experiment on disk: each is computed once, and found again by what made it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import time
import warnings
from collections.abc import Callable, ItemsView, Mapping
from typing import Any

import filelock
import jax
import numpy as np

from regularized_lopt import provenance, serialization

_PART = re.compile(r"\['([^']*)'\]")


@dataclasses.dataclass(frozen=True)
class CacheKey:
    """The name of a result: everything that it depends on, and nothing else.

    Attributes:
      kind: of result: "runs", "surroundings", ...
      label: for people; part of the file's name.
      spec: JSON-serializable; a change of it is another key.
      lasting: another process gives the result this name, too; else it is kept in memory alone.
    """

    kind: str
    label: str
    spec: Mapping[str, Any]
    lasting: bool = True

    @functools.cached_property
    def digest(self) -> str:
        """Of kind and spec."""
        text = json.dumps([self.kind, self.spec], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def file_name(self) -> str:
        """Within the cache."""
        label = re.sub(r"[^\w.+-]+", "_", self.label)
        return f"{self.kind}/{label}-{self.digest}.npz"


class ResultCache:
    """A directory of results. Files are written aside and renamed: half a file is no result."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._in_memory: dict[str, Mapping[str, Any]] = {}

    def __contains__(self, key: CacheKey) -> bool:
        return self.find(key) is not None

    def save(self, key: CacheKey, tree: Mapping[str, Any]) -> None:
        """Stores a result: nested dicts (string keys) of arrays."""
        if not key.lasting:
            self._in_memory[key.digest] = jax.tree.map(np.asarray, tree)
            return
        metadata = {"kind": key.kind, "spec": key.spec, "made_with": provenance.versions()}
        serialization.save(self._path / key.file_name, tree, metadata, compress=True)

    def find(self, key: CacheKey) -> dict[str, Any] | None:
        """A result; None where there is none, or, with a warning, none to be trusted."""
        try:
            return self.load(key)
        except FileNotFoundError:
            return None
        except serialization.FileFormatError as error:
            warnings.warn(f"{error} It is taken as missing.", stacklevel=2)
            return None

    def load(self, key: CacheKey) -> dict[str, Any]:
        """Reads a result.

        Raises:
          FileNotFoundError: it is not there.
          serialization.FileFormatError: the file is damaged, or another result's; the message names
            it.
        """
        path = self._path / key.file_name
        if not key.lasting:
            if key.digest not in self._in_memory:
                raise FileNotFoundError(f"There is no {key.label!r} of kind {key.kind!r} here.")
            return jax.tree.map(lambda leaf: leaf, self._in_memory[key.digest])  # Dicts anew.
        flat, about = serialization.load_flat(path)
        if CacheKey(about.get("kind", ""), "", about.get("spec", {})).digest != key.digest:
            raise serialization.FileFormatError(f"{path} holds another result than its name says.")
        tree: dict[str, Any] = {}
        for keys, array in flat.items():
            *parents, last = _PART.findall(keys)
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = array
        return tree


class Numbers:
    """Numbers by name in a JSON file, to which several processes may write."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._numbers: dict[str, float] = read_json(path)

    def get(self, name: str) -> float | None:
        """The number, or None."""
        return self._numbers.get(name)

    def items(self) -> ItemsView[str, float]:
        """All of them."""
        return self._numbers.items()

    def __setitem__(self, name: str, value: float) -> None:
        self._numbers = update_json(self._path, lambda numbers: numbers.update({name: value}))

    def add(self, name: str, value: float) -> None:
        """Adds to a number, from 0."""
        self._numbers = update_json(
            self._path, lambda numbers: numbers.update({name: numbers.get(name, 0.0) + value})
        )


class TimedCache:
    """What a directory keeps: results, and the seconds that they took.

    Attributes:
      results: in cells/.
      timings: by result, in timings.json.
      spent: summed by kind of result, in spent.json.
    """

    def __init__(self, out_dir: pathlib.Path):
        self.results = ResultCache(out_dir / "cells")
        self.timings = Numbers(out_dir / "timings.json")
        self.spent = Numbers(out_dir / "spent.json")

    def keep(self, key: CacheKey, what: str, compute: Callable[[], Mapping[str, Any]]) -> None:
        """Computes a result and keeps it; `what` names it in the timings."""
        start = time.monotonic()
        self.results.save(key, compute())
        self.record_seconds(what, time.monotonic() - start)

    def record_seconds(self, what: str, seconds: float) -> None:
        """Notes what a result took; the first word of its name is its kind."""
        self.timings[what] = seconds
        self.spent.add(what.split(" ", maxsplit=1)[0], seconds)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """What the file holds; nothing where there is none. See `serialization.load_json`."""
    return serialization.load_json(path) if path.is_file() else {}


def update_json(path: pathlib.Path, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Changes what the file holds, which no other process does meanwhile.

    Returns:
      What it holds then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        value = read_json(path)
        change(value)
        text = json.dumps(value, indent=1, sort_keys=True)
        serialization.write_atomically(path, text.encode())
    return value


def digest(tree: Any) -> str:
    """Of the bits of all leaves: what a trained optimizer is called in a spec."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)}{array.shape}{array.dtype}".encode())
        total.update(array.tobytes())
    return total.hexdigest()[:16]
