"""The runs that a call of outer training stands for: one, or the members of a population."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gin

from regularized_lopt import devices, gin_files, zoo
from regularized_lopt.estimators import checks
from regularized_lopt.estimators.truncated_grad import RegularizedTruncatedGrad
from regularized_lopt.outer_training import parts as parts_lib
from regularized_lopt.outer_training import unread
from regularized_lopt.outer_training.doses import Doses
from regularized_lopt.outer_training.loop import Loop
from regularized_lopt.outer_training.parts import Parts
from regularized_lopt.outer_training.population import Member


class Run(NamedTuple):
    """One run, by itself or of a population.

    Attributes:
      loop: takes its steps.
      metadata: of theta's file.
      experiment: what makes it this run.
      config: says what the whole configuration is.
    """

    loop: Loop
    metadata: dict[str, Any]
    experiment: dict[str, Any]
    config: Callable[[], str] = gin.operative_config_str


def make(
    make_parts: Callable[..., Parts],
    seed: int,
    warm_start: Any,
    members: Sequence[Member],
    asked_for: Sequence[str],
) -> tuple[Parts, dict[str, Run]]:
    """What all runs share, and the runs by the name of their directory.

    Args:
      make_parts: `parts.make` with the arguments of `outer_train`.
      seed, warm_start: among these.
      members: of a population; none: one run, whose name is empty.
      asked_for: gin bindings that are refused if nothing reads them.
    """
    if members:
        _check_not_overruled(asked_for, members[0])
    own_parts = functools.partial(make_parts, num_members=len(members) or 1)
    varied = Doses(tuple(members[0].doses) if members else ())
    with gin_files.bound(varied.schedules):
        made = own_parts(varied=varied)
        if devices.is_writer():
            unread.warn_if_shared(made.estimator)
        read = [*asked_for, *(f"{name} = 0" for name in varied.schedules)]
        parts_lib.check_read(made, read)
    if members and made.loop.programs.has_iterators:
        raise ValueError(
            f"outer_train.seeds = {tuple(one.seed for one in members)}: {made.task_name} draws "
            "batches from iterators of its own, of which members would take each other's. Train "
            "one seed at a time."
        )
    if isinstance(made.estimator, RegularizedTruncatedGrad):  # Evolution strategies always look.
        for step in made.estimator.truncated_steps:
            checks.check_starts_finite("RegularizedTruncatedGrad", step)
    if not members:
        run = Run(made.loop, _metadata(made, seed), _experiment(made, seed, warm_start))
        return made, {"": run}
    return made, {one.name: _member(one, made, own_parts, warm_start) for one in members}


def _member(one: Member, made: Parts, make: Callable[[], Parts], warm_start: Any) -> Run:
    """A member's run is described as it would be alone, with its seed and its doses bound."""
    alone = {"outer_train.seeds": None, "outer_train.doses": None, "outer_train.parallelism": None}
    with gin_files.bound({**one.doses, **alone, "outer_train.seed": one.seed}):
        # Also refuses doses that are out of range.
        own = make() if one.doses else made
        config = gin.operative_config_str()
        return Run(
            made.of_member(one.seed, tuple(one.doses.values())),
            _metadata(own, one.seed),
            _experiment(own, one.seed, warm_start),
            lambda: config,
        )


def _metadata(made: Parts, seed: int) -> dict[str, Any]:
    longest = max(made.loop.curriculum.train_lengths)
    return {**made.describe(), "seed": seed, zoo.LONGEST: longest}


def _experiment(made: Parts, seed: int, warm_start: Any) -> dict[str, Any]:
    """What makes a run this run."""
    said = {"task": made.task_name, "seed": seed, "gin": parts_lib.configuration()}
    if not isinstance(made.estimator, RegularizedTruncatedGrad):
        # ES carries what backpropagation does: nothing else would tell a checkpoint of one from the
        # other's where the estimator is no gin parameter.
        said["estimator"] = made.estimator.describe()
    return said if warm_start is None else {**said, "warm_start": str(warm_start)}


def _check_not_overruled(asked_for: Sequence[str], member: Member) -> None:
    """Refuses bindings of a command line whose place a population's own values take."""
    own = {
        "outer_train.seed": "outer_train.seeds",
        **dict.fromkeys(member.doses, "outer_train.doses"),
    }
    for binding in gin_files.named_in(asked_for):
        scope = f"{binding.scope}/" if binding.scope else ""
        name = f"{scope}{binding.configurable}.{binding.parameter}"
        if name in own and not binding.is_macro:
            raise gin_files.UnreadBindingError(
                f"{name} is read by nothing: {own[name]} takes its place. Leave one of them out."
            )
