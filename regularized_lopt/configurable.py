"""`configurable`: gin's decorator, and a check of what is given against the signature."""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import gin
import jax
import numpy as np

_F = TypeVar("_F", bound=Callable[..., Any])
_NOUNS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    np.bool_: "True or False",
    np.number: "a number",
    np.ndarray: "an array",
    jax.Array: "an array",
    str: "a string",
    types.NoneType: "None",
    collections.abc.Callable: "a function",
    Any: "anything",
    ...: "anything",
}
_LONGEST = 80


def configurable(name: str | None = None, **options: Any) -> Callable[[_F], _F]:
    """`gin.configurable`; the decorated raises TypeError where an argument has a wrong type.

    Checked are numbers, strings, True and False, None, functions, classes, and unions, sequences
    and dicts of them. Integers are numbers, True and False are not; NumPy's and JAX's scalars are.
    Annotations that cannot be resolved are not checked. Nor may an argument be missing, as one is
    where gin is to make what another part makes: @PES() for @PES.

    Args:
      name: gin's name of it; default: its own.
      **options: others of `gin.configurable`.
    """

    def decorate(target: _F) -> _F:
        owner = name or target.__name__
        if not inspect.isclass(target):
            target = checked(target, owner)
        elif target.__init__ is not object.__init__:
            setattr(target, "__init__", checked(target.__init__, owner))  # noqa: B010 (mypy)
        return gin.configurable(name, **options)(target)

    return decorate


def checked(function: _F, owner: str) -> _F:
    """The function, with the check of `configurable` alone; `owner` is what errors call it."""
    signature = inspect.signature(function)
    positional = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    needed = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]

    @functools.wraps(function)
    def with_check(*args: Any, **kwargs: Any) -> Any:
        found = hints(function)

        def check(name: str, value: Any) -> Any:
            hint = found.get(name, Any)
            if not _fits(value, hint):
                raise TypeError(
                    f"{owner}.{name} = {_shown(value)}: it must be {_words(hint)}."
                    f"{_advice(value, hint)}{_example(hint, signature.parameters[name])}"
                )
            if type(value) is int and abs(value) >= 2**31 and float in _alternatives(hint):
                try:
                    return float(value)  # JAX's integers have 32 bits.
                except OverflowError:
                    message = f"{owner}.{name} = {_shown(value)}: no float is so large."
                    raise ValueError(message) from None
            return value

        missing = [name for name in needed if name not in (*positional[: len(args)], *kwargs)]
        if missing:
            raise TypeError(
                f"{owner} is not given {', '.join(missing)}. Where gin refers to what another part "
                f"calls, write @{owner}, without parentheses."
            )
        # There may be *args, or too many, which the function itself refuses.
        rest = args[len(positional) :]
        return function(
            *map(check, positional, args),
            *rest,
            **{name: check(name, value) for name, value in kwargs.items()},
        )

    # Gin reads no `__wrapped__`.
    with_check.__signature__ = signature  # type: ignore[attr-defined]
    return typing.cast(_F, with_check)


@functools.cache  # At the first call: before, not all names may be defined.
def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of parameters as types, those alone that can be resolved."""
    found: dict[str, Any] = {}
    names = getattr(inspect.unwrap(function), "__globals__", {})
    for name, annotation in getattr(function, "__annotations__", {}).items():
        # One by one: jaxtyping's dimensions are no names, and spoil their own annotation alone.
        with contextlib.suppress(NameError, AttributeError, SyntaxError, TypeError):
            alone = types.SimpleNamespace(__annotations__={name: annotation})
            found |= typing.get_type_hints(alone, names)
    return found


def _fits(value: Any, hint: Any) -> bool:
    wanted, of = _taken_apart(hint)
    if wanted in _CHECKS:
        return _CHECKS[wanted](value, of)
    try:
        return isinstance(value, wanted)
    except TypeError:  # What `isinstance` cannot decide, such as Any or a protocol.
        return True


def _taken_apart(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """tuple[int, ...] as tuple and (int, ...), tuple as tuple and (Any, ...)."""
    return typing.get_origin(hint) or hint, typing.get_args(hint) or (Any, ...)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    wanted, of = _taken_apart(hint)
    return of if wanted in (typing.Union, types.UnionType) else (hint,)


def _is_number(value: Any, kind: type, dtype: Any) -> bool:
    if isinstance(value, np.ndarray | jax.Array):
        return value.ndim == 0 and bool(jax.numpy.issubdtype(value.dtype, dtype))
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_sequence(value: Any, of: tuple[Any, ...]) -> bool:
    if isinstance(value, str) or not isinstance(value, collections.abc.Sequence):
        return False
    each = [of[0]] * len(value) if _is_uniform(of) else of
    return len(value) == len(each) and all(map(_fits, value, each))


def _is_mapping(value: Any, of: tuple[Any, ...]) -> bool:
    return isinstance(value, collections.abc.Mapping) and all(
        _fits(key, of[0]) and _fits(item, of[1]) for key, item in value.items()
    )


def _is_uniform(of: tuple[Any, ...]) -> bool:
    """Of Sequence[X] or tuple[X, ...], not of tuple[X, Y]."""
    return len(of) == 1 or of[1] is ...


_CHECKS: dict[Any, Callable[[Any, tuple[Any, ...]], bool]] = {
    int: lambda value, _: _is_number(value, numbers.Integral, np.integer),
    float: lambda value, _: _is_number(value, numbers.Real, np.number),
    bool: lambda value, _: isinstance(value, bool | np.bool_),
    tuple: _is_sequence,
    collections.abc.Sequence: _is_sequence,
    collections.abc.Mapping: _is_mapping,
    typing.Union: lambda value, of: any(_fits(value, one) for one in of),
    types.UnionType: lambda value, of: any(_fits(value, one) for one in of),
}


def _words(hint: Any) -> str:
    """What fits, e.g. "an integer or None"."""
    wanted, of = _taken_apart(hint)
    if wanted in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, of)))
    if wanted in (tuple, collections.abc.Sequence):
        if _is_uniform(of):
            return f"a sequence (each item {_words(of[0])})"
        return f"a sequence of {len(of)} ({', '.join(map(_words, of))})"
    if wanted is collections.abc.Mapping:
        return f"a dict (each key {_words(of[0])}, each value {_words(of[1])})"
    name = getattr(wanted, "__name__", str(wanted))
    return _NOUNS.get(wanted) or f"{'an' if name[0] in 'AEIO' else 'a'} {name}"


def _example(hint: Any, parameter: inspect.Parameter) -> str:
    """The default, of a sequence of sequences, which words describe badly."""
    sequences = (tuple, collections.abc.Sequence)
    wanted, of = _taken_apart(hint)
    nested = wanted in sequences and _taken_apart(of[0])[0] in sequences
    if not nested or parameter.default is parameter.empty or not parameter.default:
        return ""
    return f" For example {_shown(parameter.default)}."


def _makers(hint: Any) -> list[str]:
    """Of a function that is to make an object of a class: gin's names of its subclasses."""
    found = set()
    for one in _alternatives(hint):
        wanted, of = _taken_apart(one)
        if wanted is collections.abc.Callable and inspect.isclass(of[-1]):
            for selector, known in gin.config._REGISTRY.items():
                if inspect.isclass(known.wrapped) and issubclass(known.wrapped, of[-1]):
                    found.add(selector.rpartition(".")[-1])
    return sorted(found)


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _advice(value: Any, hint: Any) -> str:
    """A reference in gin without parentheses is the class, not an object of it."""
    if makers := _makers(hint):
        return f" In gin: {' or '.join(f'@{name}' for name in makers)}, without quotes."
    return f" Write @{value.__name__}(), with parentheses." if inspect.isclass(value) else ""
