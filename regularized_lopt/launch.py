"""What the launchers share: flags, gin, and errors on one line."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import platform
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags, logging

from regularized_lopt import errors, gin_files
from regularized_lopt.interruption import Interrupted, Stopped


def named_paths(values: Sequence[str]) -> dict[str, str]:
    """NAME=PATH, or PATH alone, which names itself.

    Raises:
      ValueError: two have the same name, or one has no name or no path.
    """
    named = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals:
            path = name
            file = pathlib.Path(path)
            name = file.resolve().name if file.is_dir() else file.stem
        if not name or not path:
            raise ValueError(
                f"{value!r} is no optimizer: give NAME=PATH, or PATH alone. A path is that of a "
                "file or a directory, or a name in the zoo."
            )
        if name in named:
            raise ValueError(f"Two optimizers have the name {name!r}: call them NAME=PATH.")
        named[name] = path
    return named


def trained_paths(values: Sequence[str]) -> dict[str, str]:
    """`named_paths` of optimizers that are trained already.

    Raises:
      ValueError: as there, or one is a gin file, which a study would meta-train.
    """
    named = named_paths(values)
    for path in named.values():
        if path.endswith(".gin"):
            raise ValueError(
                f"{path!r} is a configuration, not a trained optimizer: meta-train it with "
                f"python -m regularized_lopt.outer_train --config_file={path} "
                "--train_log_dir=DIR, and give DIR."
            )
    return named


def reuse_freed_memory() -> None:
    """Has glibc keep the memory that XLA frees; call it before JAX starts its threads.

    On CPU every call of a program allocates its buffers anew. By default malloc hands large ones
    back to the kernel each time, and their pages are faulted in again. The process then holds on to
    the most that it ever used. No effect where libc is another.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    # From malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD. Threads keep arenas of their own: in
    # one with the compiler's leavings, an outer step took 1.8x as long once it had compiled twice.
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**26)):
        libc.mallopt(option, value)


def _print(error: Exception, prefix: str = "") -> None:
    """The reason, without what gin appends: where a value came from, and which there are not."""
    text = re.split("\n  (?:No values supplied|In call to configurable)", str(error))[0].strip()
    if text.startswith("Required bindings"):
        text += " Give them by --config_file or --gin_bindings."
    print(f"{prefix}{text or type(error).__name__}", file=sys.stderr)


def _one_line(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> str:
    return f"{category.__name__}: {message}\n"


def check_read(advice: Callable[[gin_files.Binding], str | None] = lambda _: None) -> None:
    """Refuses bindings of the command line that nothing has read yet; warns of those in files.

    To be called when all that reads gin has been made, and before anything is computed.

    Args:
      advice: see `gin_files.check_read`.

    Raises:
      gin_files.UnreadBindingError: names them.
    """
    asked_for = gin_files.named_in(flags.FLAGS.gin_bindings)
    gin_files.check_read(gin_files.unread(), asked_for, advice)


def of_meta_training(bindings: str) -> Callable[[gin_files.Binding], str | None]:
    """Advice on a parameter of meta-training, which reads those `bindings`, not the launcher's."""

    def advice(binding: gin_files.Binding) -> str | None:
        if binding.is_macro or not gin_files.is_unused(binding):
            return None
        return (
            "optimizers are meta-trained with their own gin files and "
            f"{bindings}. Write {bindings} = ({str(binding)!r},)."
        )

    return advice


def _define_flags() -> None:
    flags.DEFINE_multi_string("config_file", [], "Gin files, read in order.")
    flags.DEFINE_multi_string("gin_bindings", [], "Gin bindings, applied after the files.")
    flags.DEFINE_multi_string(
        "gin_import", [], "Modules to import first, e.g. one with a task of yours."
    )
    for name in ("config_file", "gin_bindings", "gin_import"):
        # Of the launcher itself, whose flags --help lists.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        return list(flags.FLAGS(argv))
    except flags.Error as error:
        print(f"Error: {errors.reason(error)}", file=sys.stderr)
        sys.exit(2)


def _check_not_empty() -> None:
    """An empty string is the working directory to some, and no name to others."""
    for name, flag in flags.FLAGS.flags_by_module_dict().items():
        for one in flag if name in (sys.argv[0], __name__) else ():
            if one.present and "" in (one.value if isinstance(one.value, list) else [one.value]):
                raise ValueError(f"--{one.name} is empty: give it a value, or leave it out.")


@contextlib.contextmanager
def _ends_in_one_line() -> Iterator[None]:
    """Of a user's error, with code 2; of a signal, with 128 + its number."""
    try:
        yield
    except Interrupted as error:
        _print(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:
        goes_on = "The same command goes on from what is finished."
        stopped = error if isinstance(error, Stopped) else Stopped(signal.SIGINT, goes_on)
        print(stopped, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # At once: what XLA still computes may call an interpreter that is being taken down, which
        # aborts the process.
        os._exit(stopped.exit_code)
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if logging.vlog_is_on(1):
            raise
        _print(error, "Error: ")
        sys.exit(2)


def run(
    main: Callable[..., None], define_flags: Callable[[], None], takes_arguments: bool = False
) -> None:
    """Parses flags and gin and calls `main`; a user's error ends it with one line, code 2.

    A signal ends it with 128 + its number, after a checkpoint.

    Args:
      main: called with the arguments that are no flags, if it takes any.
      define_flags: defines the launcher's own. Here, not when a module is imported: upstream's
        launchers define some of the same names.
      takes_arguments: whether `main` does.
    """
    reuse_freed_memory()
    warnings.formatwarning = _one_line
    logging.set_verbosity(logging.WARNING)
    _define_flags()
    define_flags()
    given = flags.FLAGS

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1 and not takes_arguments:
            raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
        with _ends_in_one_line():
            _check_not_empty()
            gin_files.parse_gin(given.config_file, given.gin_bindings, given.gin_import)
            main(*([argv[1:]] if takes_arguments else []))

    app.run(guarded, flags_parser=_parse_flags)
