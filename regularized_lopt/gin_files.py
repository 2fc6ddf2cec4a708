"""Gin's files and bindings: reading them, setting them aside, and finding what nothing reads."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import pathlib
import re
import textwrap
import tokenize
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import gin
from gin import config_parser

from regularized_lopt import errors, upstream

_PACKAGE = pathlib.Path(__file__).parent
ROOT = _PACKAGE if (_PACKAGE / "gin_configs").is_dir() else _PACKAGE.parent
"""Where gin_configs/ lies: in the package, if it was installed, or beside it, in a checkout."""
# After files as they are named, which come first, and before gin looks for packages of such a name:
# it fails on a folder that is none.
gin.config._FILE_READERS.insert(
    1, (lambda file: (ROOT / file).open(), lambda file: (ROOT / file).is_file())
)

_MACRO = "gin.macro"
_LONGEST = 80
_UNKNOWN = re.compile(r"No configurable matching (?:reference )?'@?([\w./]+)")


class UnreadBindingError(ValueError):
    """A binding that was asked for by name and that nothing reads."""


class UnreadBindingWarning(UserWarning):
    """A binding that nothing reads."""


@dataclasses.dataclass(frozen=True)
class Binding:
    """Where gin was given a value; as a string, the line that gave it.

    Attributes:
      scope: "" for none; of a macro, its name.
      selector: the configurable's full name.
      parameter: of it.
    """

    scope: str
    selector: str
    parameter: str

    @property
    def is_macro(self) -> bool:
        """Whether it is referred to as %NAME."""
        return self.selector == _MACRO

    @property
    def configurable(self) -> str:
        """Its shortest name that is unique."""
        return str(gin.config._REGISTRY.minimal_selector(self.selector))

    def __str__(self) -> str:
        scope = f"{self.scope}/" if self.scope else ""
        name = self.scope if self.is_macro else f"{scope}{self.configurable}.{self.parameter}"
        value = repr(gin.config._CONFIG[self.scope, self.selector][self.parameter])
        return f"{name} = {textwrap.shorten(value, _LONGEST, placeholder=' ...')}"


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
    for file in config_files:
        path_of(file)
    try:
        _parse(list(config_files), list(bindings))
    except UnicodeDecodeError as error:
        raise ValueError(f"{', '.join(map(str, config_files))}: no text ({error}).") from error
    except ValueError as error:
        _raise_with_nearest(error)
    except (SyntaxError, tokenize.TokenError) as error:
        line = getattr(error, "text", None) or ""
        message = f"This is no gin: {line.strip()} {error}"
        if "malformed node" in message:  # A bare word.
            message = f"This is no gin: {line.strip()} (strings take quotes, in the shell, too)"
        raise ValueError(" ".join(message.split())) from error
    except OSError as error:
        raise OSError(errors.reason(error)) from error
    except (Exception, SystemExit) as error:  # A module that a file imports may raise anything.
        what = ", ".join(map(str, config_files)) or "the bindings"
        raise ImportError(
            f"An import in {what} fails ({type(error).__name__}: {errors.reason(error)})."
        ) from error


def _parse(config_files: list[str], bindings: list[str]) -> None:
    """Upstream's learned optimizers are imported where a name is unknown.

    Not before: who has a copy of one would find its name ambiguous.
    """
    try:
        gin.parse_config_files_and_bindings(config_files, bindings)
    except ValueError as error:
        if not _UNKNOWN.search(str(error)):
            raise
        upstream.import_learned_optimizers()
        gin.parse_config_files_and_bindings(config_files, bindings)


def path_of(file: str) -> pathlib.Path:
    """Where a gin file is, as it is named or in one of the folders in which gin looks.

    Raises:
      FileNotFoundError: in none of them.
    """
    # Gin takes the folder of a missing file for a package, and fails on that.
    for folder in (*gin.config._LOCATION_PREFIXES, ROOT):
        if (path := pathlib.Path(folder, file)).is_file():
            return path
    known = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("gin_configs/*.gin")]
    nearest = difflib.get_close_matches(str(file), known, n=1)
    raise FileNotFoundError(
        f"There is no gin file {file}, neither in {pathlib.Path.cwd()} nor in {ROOT}."
        + (f" Did you mean {nearest[0]!r}?" if nearest else "")
        + " What a file includes is looked for in the same places."
    )


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
    if match := _UNKNOWN.search(message):
        _raise_unknown(match[1])
    if match := re.search(
        r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", message
    ):
        parameters = inspect.signature(gin.get_configurable(match[1])).parameters
        errors.check_name(
            f"parameter of {match[1]}", match[2], [name for name in parameters if name != "self"]
        )
    raise ValueError(message) from error


def _raise_unknown(name: str) -> None:
    """With the nearest alone: there are hundreds."""
    own = _own_configurables()
    ranked = difflib.get_close_matches(name.lower(), {one.lower() for one in own}, 4, cutoff=0.6)
    by_lower = {one.lower(): one for one in own}
    first, *others = [repr(by_lower[one]) for one in ranked] or [""]
    raise errors.UnknownNameError(
        f"Unknown gin configurable {name!r}. "
        + (f"Did you mean {first}? " if first else "")
        + (f"Near are {', '.join(others)}, too. " if others else "")
        + "docs/api lists all of them."
    )


def _own_configurables() -> list[str]:
    """And learned optimizers; gin has no public list, and all of upstream's would hide these."""
    return [
        selector.rpartition(".")[-1]
        for selector, one in gin.config._REGISTRY.items()
        if selector.startswith("regularized_lopt.") or _is_learned_optimizer(one.wrapped)
    ]


def _is_learned_optimizer(configurable: Any) -> bool:
    return inspect.isclass(configurable) and issubclass(configurable, upstream.LearnedOptimizer)


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


@contextlib.contextmanager
def bound(values: Mapping[str, Any]) -> Iterator[None]:
    """Other values of gin parameters for a while, e.g. of "SAM.rho"; then those of before."""
    records = (gin.config._CONFIG, gin.config._OPERATIVE_CONFIG)
    keys = {name: gin.config.ParsedBindingKey.parse(name) for name in values}
    places = {(key.scope, key.complete_selector) for key in keys.values()}
    before = [{at: dict(record.get(at, {})) for at in places} for record in records]
    try:
        for name, key in keys.items():
            at = (key.scope, key.complete_selector)
            gin.config._CONFIG.setdefault(at, {})[key.arg_name] = values[name]
            if at in gin.config._OPERATIVE_CONFIG:  # It was called: with this value, one may say.
                gin.config._OPERATIVE_CONFIG[at][key.arg_name] = values[name]
        yield
    finally:
        for record, kept in zip(records, before, strict=True):
            for at, parameters in kept.items():
                record.pop(at, None)
                if parameters:
                    record[at] = parameters


def named_in(bindings: Sequence[str]) -> set[Binding]:
    """What lines of gin bind, such as those of a command line."""
    found = set()
    for statement in config_parser.ConfigParser("\n".join(bindings), gin.config.ParserDelegate()):
        if isinstance(statement, config_parser.BindingStatement):
            scope, selector, parameter = statement[:3]
            if not parameter:  # NAME = value
                scope, selector, parameter = f"{scope}/{selector}".strip("/"), _MACRO, "value"
            key = gin.config.ParsedBindingKey.parse((scope, selector, parameter))
            found.add(Binding(key.scope, key.complete_selector, key.arg_name))
    return found


def unread() -> list[Binding]:
    """Bindings that no configurable has taken its value from since gin was configured.

    Gin notes which configurables were called, in which scope, and which parameters their callers
    left to it. What is called later reads later: call everything first, or trace it.
    """
    given = _all_in(gin.config._CONFIG)
    read = {_innermost(given, one) for one in _all_in(gin.config._OPERATIVE_CONFIG)}
    return [one for one in given if one not in read]


def _all_in(config: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[Binding]:
    """Of one of gin's own records."""
    return [
        Binding(scope, selector, parameter)
        for (scope, selector), values in config.items()
        for parameter in values
    ]


def _innermost(given: Collection[Binding], wanted: Binding) -> Binding | None:
    """Of the scopes around a call, the binding that gin takes."""
    parts = wanted.scope.split("/") if wanted.scope else []
    for length in range(len(parts), -1, -1):
        one = dataclasses.replace(wanted, scope="/".join(parts[:length]))
        if one in given:
            return one
    return None


def check_read(
    found: Sequence[Binding],
    asked_for: Collection[Binding],
    advice: Callable[[Binding], str | None] = lambda _: None,
) -> None:
    """Refuses what is read by nothing and was asked for by name; warns of the rest.

    Args:
      found: what is read by nothing, see `unread`.
      asked_for: on a command line, for example.
      advice: what would read a binding, where there is more to say than in general.

    Raises:
      UnreadBindingError: names the bindings, and what would read them.
    """
    if refused := [explain(one, advice) for one in found if one in asked_for]:
        raise UnreadBindingError(" ".join(refused))
    for one in found:
        warnings.warn(explain(one, advice), UnreadBindingWarning, stacklevel=2)


def explain(binding: Binding, advice: Callable[[Binding], str | None] = lambda _: None) -> str:
    """That nothing reads a binding, and what would."""
    return f"{binding} is read by nothing: {advice(binding) or _why(binding)}"


def is_unused(binding: Binding) -> bool:
    """Whether its configurable has not been called at all."""
    return not _calls(binding)


def _calls(binding: Binding) -> dict[str, Mapping[str, Any]]:
    """Of its configurable: by scope, the parameters that were left to gin."""
    return {
        scope: parameters
        for (scope, selector), parameters in gin.config._OPERATIVE_CONFIG.items()
        if selector == binding.selector
    }


def _why(binding: Binding) -> str:
    if binding.is_macro:
        return f"%{binding.scope} is in no binding that is read. Refer to it, or leave this out."
    name, scope, calls = binding.configurable, binding.scope, _calls(binding)
    if not calls:
        return f"{name} is not used here. Refer to @{name} where it is wanted, or leave this out."
    within = [of for where, of in calls.items() if _is_around(scope, where)]
    if not within:
        used = ", ".join(sorted(where or "none" for where in calls))
        return f"{name} is not used in that scope (in {used}). Refer to it as @{scope}/{name}."
    if any(binding.parameter in parameters for parameters in within):
        return "a binding in a narrower scope takes its place. Leave one of them out."
    return f"whoever calls {name} gives it another {binding.parameter}. Leave this out."


def _is_around(scope: str, where: str) -> bool:
    return not scope or f"{where}/".startswith(f"{scope}/")
