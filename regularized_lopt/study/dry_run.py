"""What an experiment will compute and what that will cost, before it is computed."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from regularized_lopt.study import study as study_lib
from regularized_lopt.study.rates import NotMeasuredError, Rates
from regularized_lopt.study.steps import Step


@dataclasses.dataclass(frozen=True)
class PlannedResult:
    """A line of the plan.

    Attributes:
      stage, label: see `steps.Step`.
      cached: it is there.
      seconds: what it took, or is estimated to take; None: nothing measured to go by.
    """

    stage: str
    label: str
    cached: bool
    seconds: float | None


def plan(study: study_lib.Study, measure_rates: bool = False) -> list[PlannedResult]:
    """All results of an experiment, in the order in which they are computed; computes none.

    Args:
      study: what is planned.
      measure_rates: time a few steps of whatever is neither computed nor timed yet, which takes
        minutes. Rates are kept in the study's directory, and read from there in any case.
    """
    rates = Rates(study, measure_rates)
    return [_line(study, rates, step) for step in study.steps()]


def _line(study: study_lib.Study, rates: Rates, step: Step[Any]) -> PlannedResult:
    cached = step.find() is not None
    # What the same work took, here, before; else by the rates of its parts.
    seconds = study.cache.timings.get(step.timing)
    if seconds is None and not cached:
        with contextlib.suppress(NotMeasuredError):
            seconds = step.estimate(rates)
    return PlannedResult(step.stage, step.label, cached, seconds)
