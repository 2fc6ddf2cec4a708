"""Gin's files and bindings: reading them, setting them aside, and finding what nothing reads."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import tokenize
from collections.abc import Iterator, Sequence

import gin

from regularized_lopt import errors


def parse_gin(
    config_files: Sequence[str], bindings: Sequence[str], imports: Sequence[str] = ()
) -> None:
    """Reads gin files and bindings.

    Raises:
      ValueError: an unknown name, with the nearest known one, or no gin; on one line.
      OSError: a file that does not exist.
      ImportError: a module that does not, or that fails; the message names it.
    """
    for module in imports:
        _import(module)
    try:
        gin.parse_config_files_and_bindings(list(config_files), list(bindings))
    except ValueError as error:
        _raise_with_nearest(error)
    except (SyntaxError, tokenize.TokenError) as error:
        line = getattr(error, "text", None) or ""
        message = f"This is no gin: {line.strip()} {error}"
        raise ValueError(" ".join(message.split())) from error


def _import(module: str) -> None:
    """Whatever goes wrong in it, the reason is that of the module."""
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise ImportError(
            f"--gin_import={module}: the module cannot be imported "
            f"({type(error).__name__}: {errors.reason(error)})."
        ) from error


def _raise_with_nearest(error: ValueError) -> None:
    message = errors.reason(error)
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


@contextlib.contextmanager
def set_aside() -> Iterator[None]:
    """Gin without a configuration for a while; then that of before, and what was read of it.

    Its text would not do: that leaves out objects which were bound in Python.
    """
    # Gin has no public way to any of these.
    state = (
        gin.config._CONFIG,
        gin.config._OPERATIVE_CONFIG,
        gin.config._SINGLETONS,
        gin.config._IMPORTS,
    )
    kept = [one.copy() for one in state]
    gin.clear_config()
    try:
        yield
    finally:
        gin.clear_config()
        for one, before in zip(state, kept, strict=True):
            one.update(before)
