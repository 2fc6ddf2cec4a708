"""What the launchers share: flags, gin, and errors on one line."""

from __future__ import annotations

import ctypes
import importlib
import inspect
import pathlib
import platform
import re
import sys
import tokenize
from collections.abc import Callable, Sequence

import gin
from absl import app, flags, logging

from regularized_lopt import errors
from regularized_lopt.outer_training.interruption import Interrupted

CONFIG_FILE = flags.DEFINE_multi_string("config_file", [], "Gin files, read in order.")
GIN_BINDINGS = flags.DEFINE_multi_string(
    "gin_bindings", [], "Gin bindings, applied after the files."
)
GIN_IMPORT = flags.DEFINE_multi_string(
    "gin_import", [], "Modules to import first, e.g. one with a task of yours."
)


def parse_gin(
    config_files: Sequence[str], bindings: Sequence[str], imports: Sequence[str] = ()
) -> None:
    """Reads gin files and bindings.

    Raises:
      ValueError: an unknown name, with the nearest known one, or no gin; on one line.
      OSError: a file that does not exist.
      ImportError: a module that does not.
    """
    for module in imports:
        importlib.import_module(module)
    try:
        gin.parse_config_files_and_bindings(list(config_files), list(bindings))
    except ValueError as error:
        _raise_with_nearest(error)
    except (SyntaxError, tokenize.TokenError) as error:
        line = getattr(error, "text", None) or ""
        message = f"This is no gin: {line.strip()} {error}"
        raise ValueError(" ".join(message.split())) from error


def _raise_with_nearest(error: ValueError) -> None:
    message = " ".join(str(error).split())
    if match := re.search(r"No configurable matching (?:reference )?'@?([\w./]+)", message):
        errors.check_name("gin configurable", match[1], _own_configurables())
    if match := re.search(
        r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", message
    ):
        parameters = inspect.signature(gin.get_configurable(match[1])).parameters
        errors.check_name(
            f"parameter of {match[1]}", match[2], [name for name in parameters if name != "self"]
        )
    raise ValueError(message) from error


def _own_configurables() -> list[str]:
    """Gin has no public list of what is registered; upstream's own would hide ours in it."""
    selectors = [selector for selector, _ in gin.config._REGISTRY.items()]
    own = [name for name in selectors if name.startswith("regularized_lopt.")]
    return [name.rpartition(".")[-1] for name in own]


def named_paths(values: Sequence[str]) -> dict[str, str]:
    """NAME=PATH, or PATH alone, which names itself.

    Raises:
      ValueError: two have the same name.
    """
    named = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals:
            path = name
            file = pathlib.Path(path)
            name = file.resolve().name if file.is_dir() else file.stem
        if name in named:
            raise ValueError(f"Two optimizers have the name {name!r}: call them NAME=PATH.")
        named[name] = path
    return named


def reuse_freed_memory() -> None:
    """Has glibc keep the memory that XLA frees; call it before JAX starts its threads.

    On CPU every call of a program allocates its buffers anew. By default malloc hands large ones
    back to the kernel each time, and faulting their pages in again takes 15 to 20% of an outer
    step. The process then holds on to the most that it ever used. No effect where libc is another.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    # From malloc.h: M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD. One arena, because those
    # of other threads cannot hold buffers of more than 64 MiB.
    for option, value in ((-8, 1), (-4, 0), (-1, 2**31 - 1), (-2, 2**26)):
        libc.mallopt(option, value)


def _print(error: Exception, prefix: str = "") -> None:
    """The reason, without where gin's value came from, which gin appends."""
    reason = str(error).partition("\n  In call to configurable")[0]
    print(f"{prefix}{reason}", file=sys.stderr)


def run(main: Callable[..., None], takes_arguments: bool = False) -> None:
    """Parses flags and gin and calls `main`; a user's error ends it with one line, code 2.

    A signal ends it with 128 + its number, after a checkpoint.

    Args:
      main: called with the arguments that are no flags, if it takes any.
      takes_arguments: whether it does.
    """
    reuse_freed_memory()
    logging.set_verbosity(logging.WARNING)

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1 and not takes_arguments:
            raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
        try:
            parse_gin(CONFIG_FILE.value, GIN_BINDINGS.value, GIN_IMPORT.value)
            main(*([argv[1:]] if takes_arguments else []))
        except Interrupted as error:
            _print(error)
            sys.exit(error.exit_code)
        except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
            if logging.vlog_is_on(1):
                raise
            _print(error, "Error: ")
            sys.exit(2)

    app.run(guarded)
