"""Results with given losses, without training anything."""

import dataclasses

import numpy as np

from regularized_lopt import tasks
from regularized_lopt.measure import dataset
from regularized_lopt.measure.dataset import Found, Matched
from regularized_lopt.measure.flatness import LIVE_SCALES, NORMS, SCALES, Flatness, FlatnessConfig
from regularized_lopt.measure.optimizers import EvaluatedOptimizer, TrainedWith
from regularized_lopt.measure.training_curves import TrainingCurves

FLATNESS_CONFIG = FlatnessConfig(radii=(0.01,), num_probes=0)
EVERY = SCALES + LIVE_SCALES
EVERY_BALL = FlatnessConfig(
    radii=(0.001, 0.01), num_probes=1, num_steps=1, scales=EVERY, hessian_at_matched=True
)
SEEDS = 8


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
    )


def curves(accuracies, norms=None):
    """One step of every run, whose test accuracy is given."""
    ends, step = np.array(accuracies)[:, None], np.zeros(len(accuracies), int)
    one = np.ones_like(ends)
    norms = one if norms is None else np.array(norms)[:, None]
    return TrainingCurves(
        np.zeros(1), one, np.ones(1), one, norms, one,
        step, step == 0, step, step[:, None], step[:, None], ends,
    )  # fmt: skip


def trained(accuracies, own="sam", learning_rate=None):
    """One run of every seed, whose accuracy is given, and nothing measured."""
    who = EvaluatedOptimizer(
        own, "", None, None, learning_rate=learning_rate, trained_with=TrainedWith(own)
    )
    return Found(who, [curves([accuracy]) for accuracy in accuracies], own)


def optimizer(loss, worst, relative=None, matched=None, own="sam", learning_rate=None):
    """One run of every seed, whose loss at the params and nearby is given, [seeds] each.

    At matched training loss, in the pairs of `matched` (own, reference's), the loss at the params
    is 0; default: no difference.
    """
    relative = worst if relative is None else relative
    matched = [(1.0, 1.0)] * len(loss) if matched is None else matched
    at = [flatness(*values) for values in zip(loss, worst, relative, strict=True)]
    one = np.ones(1)
    return dataclasses.replace(
        trained([0.9] * len(loss), own, learning_rate),
        at={"poc": at, "completion": at},
        matched=[Matched(one, one, one, flatness(0, a, a), flatness(0, b, b)) for a, b in matched],
    )


def _around(loss, factors, spread, radii):
    """Of three runs of a seed: the rise is a scale's factor times their spread, at every radius."""
    loss = np.full(3, loss)
    ends = {
        scale: (loss + factor * spread)[:, None, None] * np.ones((3, radii, 2))
        for scale, factor in factors.items()
    }
    norms = {name: of * spread for name, of in zip(NORMS, (5.0, 4.0, 3.0), strict=True)}
    return Flatness(loss, loss, ends, ends, -spread, 2 * factors["absolute"] * spread, norms)


def in_every_ball(factors, loss, spread):
    """Measured by `EVERY_BALL`, at both points, and at matched loss beside a reference's rise of 1.

    Args:
      factors: of the rise, by scale.
      loss: around which it is measured.
      spread: [seeds, 3 runs], by which the rise is multiplied.
    """
    at = [_around(loss, factors, of, 2) for of in spread]
    one, same = np.ones(3), dict.fromkeys(EVERY, 1.0)
    matched = [
        Matched(one, one, one, _around(loss, factors, of, 1), _around(0.0, same, np.ones(3), 1))
        for of in spread
    ]
    accuracies = trained([0.9] * len(spread))
    return dataclasses.replace(accuracies, at={"poc": at, "completion": at}, matched=matched)


def measured_task(task, facts=None, config=FLATNESS_CONFIG, num_steps=1, **optimizers):
    """All optimizers on a task, by name; the reference is "none", which has no regularizer.

    Facts are those of the task, unless others are given.
    """
    facts = tasks.get(task).facts if facts is None else facts
    named = {}
    for name, found in optimizers.items():
        plain = {"trained_with": TrainedWith()} if name == "none" else {}
        who = dataclasses.replace(found.optimizer, name=name, **plain)
        named[name] = dataclasses.replace(found, optimizer=who)
    return dataset.of_task(task, facts, num_steps, config, "none", named)
