"""Pytrees of arrays in one file: npz without pickle, written atomically, with a checksum.

Nothing in such a file can execute code. Each leaf is stored under its path in the tree; metadata is
JSON. The checksum covers both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import tempfile
from typing import Any

import jax
import ml_dtypes
import numpy as np

FORMAT_VERSION = 1
SCRATCH_PREFIX = ".writing-"
"""Of what a killed process may leave beside a file."""
_META = "__metadata__"


class FileFormatError(ValueError):
    """A file that is damaged, foreign, of a newer format, or of another structure than expected."""


class OtherPrecisionError(ValueError):
    """A file of a process with `jax_enable_x64`, read without it, or the other way round."""


def save(
    path: str | os.PathLike[str],
    tree: Any,
    metadata: dict[str, Any] | None = None,
    compress: bool = False,
) -> None:
    """Writes `tree` and `metadata` to `path`: aside, flushed to disk, then renamed over it.

    Args:
      path: the file; an old one is replaced as a whole or not at all.
      tree: pytree of arrays (numpy, JAX, Python scalars).
      metadata: JSON-serializable.
      compress: smaller, a second or so per 30 MB slower.
    """
    path = pathlib.Path(path)
    arrays, dtypes = {}, {}
    for key, leaf in _flatten(tree).items():
        array = np.asarray(leaf)
        dtypes[key] = array.dtype.name
        # npz has no bfloat16 and its kin: store their bits.
        arrays[key] = (
            array if array.dtype.kind in "biufc" else array.view(f"u{array.dtype.itemsize}")
        )
    about = json.dumps({"dtypes": dtypes, "metadata": metadata or {}})
    header = {
        "format_version": FORMAT_VERSION,
        "digest": _digest(about, arrays),
        "about": about,
    }
    buffer = io.BytesIO()
    contents: dict[str, Any] = {_META: np.array(json.dumps(header)), **arrays}
    (np.savez_compressed if compress else np.savez)(buffer, **contents)
    write_atomically(path, buffer.getvalue())


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes aside, flushes to disk and renames: after a crash, the old file or the new one.

    Raises:
      OSError: the disk is full, the directory cannot be written to, ...; the old file is as it was.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{SCRATCH_PREFIX}{path.name}-{os.getpid()}")
    try:
        handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            left = memoryview(content)
            while left:  # A write may be short.
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # The new name, too.
    finally:
        os.close(directory)


def make_writable(directory: pathlib.Path, advice: str) -> None:
    """Creates a directory, if needed, that files can be written to.

    Args:
      directory: which.
      advice: what to do where it cannot be, a sentence.

    Raises:
      OSError: it cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise OSError(
            f"{directory} cannot be written to ({error.strerror or error}). {advice}"
        ) from error


def load_flat(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads a file of `save`: ({path in the tree: array}, metadata).

    Raises:
      FileNotFoundError: there is no such file.
      FileFormatError: the file is damaged, foreign or of a newer format.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    intact, about = False, {}
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        header = json.loads(str(arrays.pop(_META)))
        version = int(header["format_version"])
        if version <= FORMAT_VERSION:
            intact = header["digest"] == _digest(header["about"], arrays)
            about = json.loads(header["about"])
    except Exception as error:  # zipfile and numpy raise many kinds on damaged bytes.
        raise FileFormatError(
            f"{path} is truncated, damaged, or not a file of regularized_lopt ({_reason(error)})."
        ) from error
    if version > FORMAT_VERSION:
        raise FileFormatError(
            f"{path} has format version {version}; this regularized_lopt reads up to "
            f"{FORMAT_VERSION}. Upgrade it."
        )
    if not intact:
        raise FileFormatError(f"{path} is damaged: its contents do not match its checksum.")
    for key, name in about["dtypes"].items():
        if arrays[key].dtype.name != name:
            arrays[key] = arrays[key].view(np.dtype(getattr(ml_dtypes, name)))
    return arrays, about["metadata"]


def _reason(error: Exception) -> str:
    """Why NumPy could not read it, without its advice to load what could execute code."""
    if "pickle" in str(error):
        return "it is no npz of arrays alone"
    return f"{type(error).__name__}: {error}"


def load(
    path: str | os.PathLike[str], like: Any, any_precision: bool = False
) -> tuple[Any, dict[str, Any]]:
    """Reads a file of `save` into the structure of `like`: (tree of numpy arrays, metadata).

    Args:
      path: the file.
      like: pytree of arrays, or of instances of `jax.ShapeDtypeStruct`.
      any_precision: convert numbers of 64 bits where `like` has 32, and the other way round.

    Raises:
      FileFormatError: also if the file's structure, shapes or dtypes are not those of `like`.
      OtherPrecisionError: they are, but for `jax_enable_x64`.
    """
    arrays, metadata = load_flat(path)
    expected = {
        key: (np.shape(leaf), leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype)
        for key, leaf in _flatten(like).items()
    }
    found = {key: (array.shape, array.dtype) for key, array in arrays.items()}
    wanted, there = _narrow(expected), _narrow(found)
    if wanted != there:
        different = sorted(key for key in wanted | there if wanted.get(key) != there.get(key))
        first = different[0]
        raise FileFormatError(
            f"{path} holds another structure: {len(different)} entries differ, first {first}: "
            f"found {found.get(first)}, expected {expected.get(first)}."
        )
    if expected != found and not any_precision:
        wide = any(of.itemsize > expected[key][1].itemsize for key, (_, of) in found.items())
        raise OtherPrecisionError(
            f"{path} was written with jax_enable_x64 {'on' if wide else 'off'}, which is "
            f"{'off' if wide else 'on'} here: set JAX_ENABLE_X64={int(wide)} to go on from it."
        )
    return jax.tree.unflatten(
        jax.tree.structure(like),
        [arrays[key].astype(expected[key][1], copy=False) for key in _flatten(like)],
    ), metadata


def fields(value: Any) -> dict[str, Any]:
    """A dataclass of arrays (and trees of them) as a dict, not copied."""
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def load_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a file that holds a JSON object.

    Raises:
      FileNotFoundError: there is no such file.
      FileFormatError: it holds something else; the message names it.
    """
    try:
        value = json.loads(pathlib.Path(path).read_text())
    except ValueError as error:  # No JSON, or no text.
        raise FileFormatError(
            f"{path} is truncated or damaged ({error}). Restore it, or delete it."
        ) from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} holds no JSON object. Restore it, or delete it.")
    return value


def _flatten(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _narrow(arrays: dict[str, tuple[tuple[int, ...], Any]]) -> dict[str, Any]:
    """Shapes and dtypes as they are without `jax_enable_x64`."""
    wide = {"float64": "float32", "int64": "int32", "uint64": "uint32", "complex128": "complex64"}
    return {key: (shape, wide.get(of.name, of.name)) for key, (shape, of) in arrays.items()}


def _digest(about: str, arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(about.encode())
    for key in sorted(arrays):
        digest.update(f"{key}{arrays[key].shape}{arrays[key].dtype}".encode())
        digest.update(np.ascontiguousarray(arrays[key]).tobytes())
    return digest.hexdigest()
