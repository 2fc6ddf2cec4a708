"""What to say where gin's bindings do not do what they seem to: regularizers and their spaces."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator

import gin

from regularized_lopt import gin_files, regularizers
from regularized_lopt.estimators.base import TruncatedEstimator

_STEP = "RegularizedTruncatedStep"


class SharedRegularizerWarning(UserWarning):
    """One binding is the strength or the radius of a regularizer in two spaces."""


def advice(binding: gin_files.Binding, estimator: TruncatedEstimator) -> str | None:
    """What would read a parameter of a regularizer that is not in use; None: it is none."""
    if binding.is_macro:
        return None
    name, configurable = _name(binding), binding.configurable
    scoped = f"@{binding.scope}/{configurable}()" if binding.scope else f"@{configurable}()"
    if gin.get_configurable(binding.selector) is regularizers.Smoothing:
        if estimator.smoothing is None:
            return f"nothing here is smoothed. Add {_owner(estimator)}.smoothing = {scoped}."
        return None
    if name is None or name in _names_in_use(estimator):
        return None
    value = scoped if binding.scope or name not in regularizers.names() else repr(name)
    ways = (
        f"{owner}.regularizer = {value} ({space} space)"
        for owner, space in _spaces(estimator).items()
    )
    return f"no regularizer here is {name}. Add {' or '.join(ways)}."


def warn_if_shared(estimator: TruncatedEstimator) -> None:
    """Of a regularizer that both spaces take from the same bindings: their units differ."""
    spaces = _spaces(estimator)
    if not all(map(_is_from_gin, spaces)):
        return
    meta, optimizee = estimator.regularizer, estimator.truncated_step.regularizer
    here = {_key(one) for one in _walk(optimizee)}
    what = next((one for one in _walk(meta) if one.name != "none" and _key(one) in here), None)
    if what is None:
        return
    if isinstance(what, regularizers.Function):
        remedy = "Register it under a second name for one of them."
    else:
        references = (
            f"{owner}.regularizer = @{space}/{type(top).__name__}()"
            for (owner, space), top in zip(spaces.items(), (meta, optimizee), strict=True)
        )
        remedy = f"Give each a scope: {', '.join(references)}, and bind parameters within it."
    warnings.warn(
        f"{what.name} in both spaces takes its parameters from the same bindings, but theta and "
        f"params have different units. {remedy}",
        SharedRegularizerWarning,
        stacklevel=3,
    )


def _owner(estimator: TruncatedEstimator) -> str:
    """What gin calls the estimator."""
    return type(estimator).__name__


def _spaces(estimator: TruncatedEstimator) -> dict[str, str]:
    """By who takes a regularizer in it."""
    return {_owner(estimator): "meta", _STEP: "optimizee"}


def _name(binding: gin_files.Binding) -> str | None:
    """Of the regularizer whose parameter is bound."""
    made = gin.get_configurable(binding.selector)
    if inspect.isclass(made):
        return made.name if issubclass(made, regularizers.Regularizer) else None
    return binding.configurable if binding.configurable in regularizers.names() else None


def _is_from_gin(owner: str) -> bool:
    """Whether a name or a reference is bound, no object."""
    value = gin.get_bindings(owner, resolve_references=False).get("regularizer")
    return value is not None and not isinstance(value, regularizers.Regularizer)


def _key(one: regularizers.Regularizer) -> tuple[str, str]:
    """Equal where parameters come from the same bindings."""
    return one.name, "" if isinstance(one, regularizers.Function) else one.scope


def _walk(one: regularizers.Regularizer) -> Iterator[regularizers.Regularizer]:
    """It, and the terms of sums."""
    yield one
    for _, term in one.terms if isinstance(one, regularizers.Sum) else ():
        yield from _walk(term)


def _names_in_use(estimator: TruncatedEstimator) -> set[str]:
    used = [estimator.regularizer, *(step.regularizer for step in estimator.truncated_steps)]
    return {term.name for one in used for term in _walk(one)}
