"""Results with given losses, without training anything."""

import dataclasses

import numpy as np

from regularized_lopt import tasks
from regularized_lopt.measure.flatness import Flatness, FlatnessConfig
from regularized_lopt.measure.results import Matched, Result, TaskResult
from regularized_lopt.measure.training_curves import TrainingCurves

FLATNESS_CONFIG = FlatnessConfig(radii=(0.01,), num_probes=0)


def flatness(loss, absolute, relative):
    """Of one run."""
    one = np.ones(1)

    def ascents(absolute, relative):
        return {
            "absolute": one[:, None, None] * absolute,
            "relative": one[:, None, None] * relative,
        }

    return Flatness(
        one * loss, one, ascents(absolute, relative), ascents(1.5, 1.5), one * np.nan, one * np.nan
    ).kept(0)


def curves():
    """One run of one step."""
    one = np.ones((1, 1))
    return TrainingCurves(
        np.zeros(1), one, np.ones(1), one, 0.9 * one, one, one,
        np.zeros(1, int), np.ones(1, bool), np.zeros(1, int), np.zeros((1, 1), int),
        np.zeros((1, 1), int),
    )  # fmt: skip


def optimizer(loss, worst, relative=None, matched=None, own="sam", learning_rate=None):
    """One run of every seed, whose loss at the params and nearby is given, [seeds] each.

    At matched training loss, in the pairs of `matched` (own, reference's), the loss at the params
    is 0; default: no difference.
    """
    relative = worst if relative is None else relative
    matched = [(1.0, 1.0)] * len(loss) if matched is None else matched
    at = [flatness(*values) for values in zip(loss, worst, relative, strict=True)]
    one = np.ones(1)
    return Result(
        name=own,
        own_property=own,
        regularizer=own,
        gradients_per_step=1,
        learning_rate=learning_rate,
        curves=[curves() for _ in loss],
        at={"poc": at, "completion": at},
        matched=[Matched(one, one, one, flatness(0, a, a), flatness(0, b, b)) for a, b in matched],
    )


def measured_task(task, **optimizers):
    """All optimizers on a task; the reference is "none"."""
    optimizers["none"] = dataclasses.replace(optimizers["none"], regularizer="none")
    facts = tasks.get(task).facts
    return TaskResult(task, 1, FLATNESS_CONFIG, "none", optimizers, facts)
