"""What a learned optimizer is made from: recorded when it is made, written to files, made again.

`LearnedOptimizer` of learned_optimization gets a `__new__` that notes the constructor's arguments
on every instance, of whatever class, defaults and what gin injects included. It changes nothing
else: signatures, pickles, gin and errors are those of before.

Its limits, each of which `describe` refuses rather than guess, but for the last two:

* An instance that is older than the import of this package, or whose class has a `__new__` of its
  own, has nothing noted.
* What gin evaluates for each call (`@f()`) is evaluated again for the note, and refused where that
  gives something else.
* Positional arguments beyond the named ones (`*args`) have no name to be given by.
* A class that calls its base's constructor and leaves arguments of that to gin: those are not its
  own, and come from whatever gin is told when it is loaded.
* What is changed on the instance after it was made.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import gin
import numpy as np

from regularized_lopt import errors, upstream
from regularized_lopt.configurable import configurable

CLASSES: dict[str, type[upstream.LearnedOptimizer]] = {}
"""Ours and registered ones, which files of trained optimizers may hold, by name."""

_NOTE = "_constructor_arguments"
_TUPLE, _LOPT = "__tuple__", "__learned_opt__"
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_C = TypeVar("_C", bound=type[upstream.LearnedOptimizer])


@dataclasses.dataclass(frozen=True)
class _Unwritable:
    """Stands for an argument that no file can hold; `what` it is, for the message."""

    what: str


def register(cls: _C) -> _C:
    """Makes a `LearnedOptimizer` of your own one that gin, `save` and `load` know (a decorator).

    `outer_train.learned_opt = @YourLOpt()` in gin. Files hold the constructor's arguments, of which
    `load` makes it again: numbers, strings, None, sequences and dicts of these, and learned
    optimizers. An attribute `config`, a dict of such, takes their place if there is one.

    Raises:
      TypeError: it is no `LearnedOptimizer`.
      ValueError: another class has that name.
    """
    if not issubclass(cls, upstream.LearnedOptimizer):
        raise TypeError(f"{cls.__name__} is no LearnedOptimizer of learned_optimization's.")
    if cls.__name__ in CLASSES:
        raise ValueError(f"A learned optimizer {cls.__name__!r} is registered; rename yours.")
    CLASSES[cls.__name__] = configurable()(cls)
    return cls


def describe(learned_opt: upstream.LearnedOptimizer) -> dict[str, Any]:
    """What `make` makes the same optimizer of (JSON types).

    Returns:
      `learned_opt`, its class's name; `module`, of a class of learned_optimization's;
      `config`, the constructor's arguments by name.

    Raises:
      ValueError: there is no telling; the message says why.
    """
    where = _where(type(learned_opt))
    config = getattr(learned_opt, "config", None)
    if isinstance(config, dict):
        config = {name: _encode(value) for name, value in config.items()}
    else:
        config = vars(learned_opt).get(_NOTE)
    name = where["learned_opt"]
    if config is None:
        raise ValueError(
            f"{name} cannot be saved: what it was made from is not known, because it was made "
            "before regularized_lopt was imported, or its class has a __new__ of its own. Import "
            "first, or give it an attribute config, the constructor's arguments as a dict."
        )
    for argument, value in config.items():
        if unwritable := next(_unwritable_in(value), None):
            raise ValueError(
                f"{name} cannot be saved: its argument {argument} is {unwritable.what}, which no "
                "file can hold. Give numbers, strings, None, sequences or dicts of these, or "
                "learned optimizers."
            )
    return {**where, "config": config}


def make(described: Mapping[str, Any]) -> upstream.LearnedOptimizer:
    """The optimizer that `describe` described; where an argument is new since, its default.

    Raises:
      ValueError: its class is not known, or takes other arguments.
    """
    name, module = described["learned_opt"], described.get("module")
    cls = _registered(name) if module is None else _of_upstream(module, name)
    config = described.get("config")
    if not isinstance(config, dict):
        raise ValueError(
            f"a {name} without its config, the constructor's arguments: write it again, by "
            "regularized_lopt.save."
        )
    _check_names(cls, config)
    arguments = {key: _decode(value) for key, value in config.items()}
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a {name} that cannot be made again ({errors.reason(error)}).") from error


def _where(cls: type) -> dict[str, str]:
    """Where `make` finds a class."""
    name, module = cls.__name__, cls.__module__
    if CLASSES.get(name) is cls:
        return {"learned_opt": name}
    if upstream.find_class(module, name) is cls:
        return {"learned_opt": name, "module": module}
    if module.startswith("learned_optimization."):
        raise ValueError(
            f"{name} cannot be saved: {module} defines it inside of a function. Write a class of "
            "your own in its place, with learned_optimizers.register."
        )
    raise ValueError(
        f"{name} cannot be saved: decorate the class with learned_optimizers.register, so that it "
        "is found by its name."
    )


def _registered(name: str) -> type[upstream.LearnedOptimizer]:
    if name not in CLASSES:
        raise ValueError(
            f"a {name}; known: {', '.join(CLASSES)}. Import the module that registers it first "
            "(launchers: --gin_import)."
        )
    return CLASSES[name]


def _of_upstream(module: str, name: str) -> type[upstream.LearnedOptimizer]:
    cls = upstream.find_class(module, name)
    if cls is None or not issubclass(cls, upstream.LearnedOptimizer):
        raise ValueError(
            f"a {name} of {module}, which the learned_optimization that is installed "
            f"({upstream.GENERATION}) does not have."
        )
    return cls


def _check_names(cls: type, config: Mapping[str, Any]) -> None:
    parameters = _parameters(cls)
    if any(parameter.kind in _VARIABLE for parameter in parameters.values()):
        return  # It takes any, or says itself which not.
    unknown = [name for name in config if name not in parameters]
    required = [one.name for one in parameters.values() if one.default is one.empty]
    missing = [name for name in required if name not in config]
    for what, which in (("with", unknown), ("without", missing)):
        if which:
            raise ValueError(
                f"a {cls.__name__} {what} the arguments {', '.join(which)}; the one installed here "
                f"takes {', '.join(parameters) or 'none'}: it does not know this one."
            )


def _init(cls: type) -> Callable[..., None]:
    return cls.__init__  # type: ignore[misc]  # Of the class itself, not of an instance.


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Of the constructor, less self."""
    init = _init(cls)
    if init is object.__init__:
        return {}
    return dict(list(inspect.signature(init).parameters.items())[1:])


def _encode(value: Any) -> Any:
    """As JSON types, from which `_decode` makes the same; `_Unwritable` where there is no way."""
    if isinstance(value, np.generic) and not isinstance(value, str):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return list(map(_encode, value))
    if type(value) is tuple:
        return {_TUPLE: list(map(_encode, value))}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _encode(item) for key, item in value.items()}
    return _encode_object(value)


def _encode_object(value: Any) -> Any:
    if not isinstance(value, upstream.LearnedOptimizer):
        return _Unwritable(_kind(value))
    try:
        return {_LOPT: describe(value)}
    except ValueError as error:
        return _Unwritable(f"a learned optimizer ({errors.reason(error)})")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_decode, value))
    if not isinstance(value, dict):
        return value
    if value.keys() == {_TUPLE}:
        return tuple(map(_decode, value[_TUPLE]))
    if value.keys() == {_LOPT}:
        return make(value[_LOPT])
    return {key: _decode(item) for key, item in value.items()}


def _unwritable_in(value: Any) -> Any:
    if isinstance(value, _Unwritable):
        yield value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        yield from _unwritable_in(item)


def _kind(value: Any) -> str:
    if inspect.isclass(value):
        return f"a class ({value.__name__})"
    if callable(value):
        return f"a function ({getattr(value, '__name__', type(value).__name__)})"
    return f"a {type(value).__name__}"


def _noting(cls: type, *args: Any, **kwargs: Any) -> Any:
    """`LearnedOptimizer.__new__`: a new instance, with the arguments noted on it."""
    if _init(cls) is object.__init__ and (args or kwargs):
        raise TypeError(f"{cls.__name__}() takes no arguments")  # What object.__new__ would say.
    made: Any = object.__new__(cls)
    vars(made)[_NOTE] = _arguments(cls, args, kwargs)
    return made


def _arguments(cls: type, args: Any, kwargs: Any) -> dict[str, Any] | None:
    """By name, encoded; None: they do not fit, which the constructor itself says better."""
    parameters = _parameters(cls)
    try:
        given = inspect.Signature(list(parameters.values())).bind_partial(*args, **kwargs).arguments
    except TypeError:
        return None
    found = {
        one.name: _encode(one.default)
        for one in parameters.values()
        if one.default is not one.empty
    }
    found |= _injected(cls)
    for name, value in given.items():
        kind = parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            found |= {key: _encode(item) for key, item in value.items()}
        elif kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
            found[name] = _Unwritable("given by position alone")
        elif value is not gin.REQUIRED:
            found[name] = _encode(value)
    return found


def _injected(cls: type) -> dict[str, Any]:
    """What gin gives the constructor where the caller gives nothing."""
    constructor = inspect.unwrap(_init(cls))
    found: dict[str, Any] = {}
    for base in reversed(inspect.getmro(cls)):
        # Of a class that inherits its constructor, gin wraps the one that it has wrapped before.
        if inspect.unwrap(_init(base)) is constructor and _injects(base):
            first, again = (_encode(gin.get_bindings(base)) for _ in range(2))
            found |= {
                name: value if value == again[name] else _Unwritable("another with every call")
                for name, value in first.items()
            }
    return found


def _injects(cls: type) -> bool:
    """Whether gin has wrapped its constructor, and not, as `gin.register` does, a copy of it."""
    known = gin.config._INVERSE_REGISTRY.get(cls)  # Gin has no public way.
    return known is not None and known.wrapper is cls


def _note_arguments() -> None:
    new: Callable[..., Any] = _noting
    # Of classes without a constructor, which Python and gin would else take to have any arguments.
    new.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("cls", inspect.Parameter.POSITIONAL_ONLY)]
    )
    upstream.LearnedOptimizer.__new__ = staticmethod(new)


_note_arguments()
