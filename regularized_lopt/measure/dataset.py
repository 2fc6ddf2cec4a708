"""Results on a task as one labelled dataset, which `selections` reads.

It is an `xarray.Dataset`. Its variables have the dimensions that they need of::

    optimizer, seed, run      who trained which network
    measured_run              the first of these, around whose params flatness was measured
    loss_step, eval_step      along training
    point, scale, radius      where and in which ball flatness was measured
    ascent_step               along an ascent, at the headline radius
    pair, side                seeds compared at matched training loss: own, reference
    x, y                      a plane through the loss

Those of a network's training are of `training_curves.TrainingCurves`. Where an optimizer has fewer
seeds or pairs than others, floats are NaN and whole numbers -1: how many there are is in `seeds`
and `pairs`. All have as many runs. What is known of an optimizer or of the task is a coordinate or
an attribute.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from regularized_lopt.measure.flatness import NORMS, Flatness, FlatnessConfig
from regularized_lopt.measure.loss_slices import LossSlices
from regularized_lopt.measure.optimizers import EvaluatedOptimizer
from regularized_lopt.measure.results import POINTS
from regularized_lopt.measure.training_curves import TrainingCurves

_SIDES = ("own", "reference")
_CURVES: Mapping[str, tuple[str, ...]] = {
    "train_loss": ("loss_step",),
    "test_loss": ("eval_step",),
    "test_accuracy": ("eval_step",),
    "param_norm": ("eval_step",),
    "update_norm": ("eval_step",),
    "poc_step": (),
    "poc_declared": (),
    "best_step": (),
}
_AROUND: Mapping[str, tuple[str, ...]] = {
    "loss": (),
    "grad_norm": (),
    "loss_last": ("scale", "radius"),
    "grad_norm_last": ("scale", "radius"),
    "loss_highest": ("scale", "radius"),
    "grad_norm_highest": ("scale", "radius"),
    "loss_ascent": ("scale", "ascent_step"),
    "grad_norm_ascent": ("scale", "ascent_step"),
    "trace": (),
    "top": (),
    **dict.fromkeys(NORMS, ()),
}
_MATCHED = ("loss", "grad_norm", "loss_last", "grad_norm_last", *NORMS)
_HESSIAN = ("trace", "top")
_STEPS = ("level", "own_step", "reference_step")


class Matched(NamedTuple):
    """An optimizer and the reference, each when it first reached the same training loss.

    Attributes:
      level: [runs], the training loss (nats); NaN where it was not comparable.
      own_step, reference_step: [runs].
      own, reference: what was measured around the params there, at the headline radius alone.
    """

    level: np.ndarray
    own_step: np.ndarray
    reference_step: np.ndarray
    own: Flatness
    reference: Flatness


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found with one optimizer, of which there are several where it has several seeds.

    Attributes:
      optimizer: the first of them.
      curves: per seed.
      own_property: which one it should have learned: "sam", "gsam" or "gam".
      targeted: whether it was trained for its own property, which else is merely what to show.
      at: per point ("poc", "completion"), per seed; empty: nothing was measured.
      matched: per pair of seeds, see `results.seed_pairs`; empty for the reference, and where that
        was not measured.
      slices: of the loss around the PoC of the first run, if they were asked for.
    """

    optimizer: EvaluatedOptimizer
    curves: Sequence[TrainingCurves]
    own_property: str = "sam"
    targeted: bool = True
    at: Mapping[str, Sequence[Flatness]] = dataclasses.field(default_factory=dict)
    matched: Sequence[Matched] = ()
    slices: LossSlices | None = None


def of_task(
    task: str,
    facts: Mapping[str, str],
    num_steps: int,
    flatness_config: FlatnessConfig,
    reference: str,
    found: Mapping[str, Found],
) -> xr.Dataset:
    """The dataset of a task; see the module.

    Args:
      task: its name.
      facts: of it, see `tasks.ResidentTask`.
      num_steps: inner steps.
      flatness_config: what was measured, if anything was.
      reference: the optimizer that others are compared with.
      found: by optimizer; what was measured for one of them was for all.
    """
    of = list(found.values())
    first = of[0].curves[0]
    variables: dict[str, Any] = {
        name: (
            ("optimizer", "seed", "run", *dims),
            padded([[getattr(curves, name) for curves in one.curves] for one in of]),
        )
        for name, dims in _CURVES.items()
        if getattr(first, name) is not None  # As where a task has no accuracy.
    }
    if of[0].at:
        variables |= _around(of, flatness_config) | _matched(of, flatness_config)
        variables |= _slices(of)
    coordinates = {
        "optimizer": list(found),
        "loss_step": first.loss_steps,
        "eval_step": first.eval_steps,
        "point": list(POINTS),
        "scale": list(flatness_config.scales),
        "radius": list(flatness_config.radii),
        "side": list(_SIDES),
    }
    used = {dim for dims, _ in variables.values() for dim in dims}
    return xr.Dataset(
        variables,
        {name: values for name, values in coordinates.items() if name in used} | _known(of),
        {
            "task": task,
            **facts,
            "num_steps": num_steps,
            "reference": reference,
            "runs": len(first.train_loss),
            "measured_runs": len(of[0].at[POINTS[0]][0].loss) if of[0].at else 0,
            "flatness": json.dumps(flatness_config.record()),
        },
    )


def _known(of: Sequence[Found]) -> dict[str, Any]:
    """Coordinates along `optimizer`: what is known of each. Numbers that there are not: NaN."""
    who = [one.optimizer for one in of]
    known = {
        "name": [one.label for one in who],
        "own_property": [one.own_property for one in of],
        "gradients_per_step": [one.gradients_per_step for one in who],
        "trials": [one.trials for one in who],
        "targeted": [one.targeted for one in of],
        "regularizer": [one.trained_with.regularizer for one in who],
        "space": [one.trained_with.space for one in who],
        "learning_rate": np.array([one.learning_rate for one in who], np.float64),
        "strength": np.array([one.trained_with.strength for one in who], np.float64),
        "rho": np.array([one.trained_with.rho for one in who], np.float64),
        "seeds": [len(one.curves) for one in of],
        "pairs": [len(one.matched) for one in of],
    }
    return {name: ("optimizer", values) for name, values in known.items()}


def _around(of: Sequence[Found], config: FlatnessConfig) -> dict[str, Any]:
    """Of all optimizers, what was measured around their params."""
    measured = [
        [[_measured(seed, config.scales, config.headline) for seed in one.at[point]] for one in of]
        for point in POINTS
    ]
    return {
        f"around_{name}": (
            ("optimizer", "point", "seed", "measured_run", *dims),
            np.stack([padded(_each(at_point, name)) for at_point in measured], axis=1),
        )
        for name, dims in _AROUND.items()
        if config.has_norms or name not in NORMS
    }


def _matched(of: Sequence[Found], config: FlatnessConfig) -> dict[str, Any]:
    """Of all optimizers that were compared with the reference at matched training loss."""
    if not any(one.matched for one in of):
        return {}
    found: dict[str, Any] = {
        f"matched_{name}": (
            ("optimizer", "pair", "measured_run"),
            padded([[getattr(pair, name) for pair in one.matched] for one in of]),
        )
        for name in _STEPS
    }
    measured = [
        [[_measured(getattr(pair, side), config.scales, 0) for pair in one.matched] for one in of]
        for side in _SIDES
    ]
    for name in (*_MATCHED, *(_HESSIAN if config.hessian_at_matched else ())):
        if name in NORMS and not config.has_norms:
            continue
        values = np.stack([padded(_each(of_side, name)) for of_side in measured], axis=1)
        dims = ("optimizer", "side", "pair", "measured_run", *_AROUND[name][:1])
        found[f"matched_{name}"] = (dims, values[..., 0] if _AROUND[name] else values)
    return found


def _measured(of: Flatness, scales: Sequence[str], radius: int) -> dict[str, np.ndarray]:
    """By name in `_AROUND`, [runs, ...]; the ascents themselves at one radius (index)."""
    found = {name: getattr(of, name) for name in ("loss", "grad_norm", *_HESSIAN)} | of.norms
    for name in ("loss", "grad_norm"):
        by_scale = getattr(of, f"{name}_ascent")
        ascents = np.stack([by_scale[scale] for scale in scales], axis=1)
        found[f"{name}_last"] = ascents[..., -1]
        found[f"{name}_highest"] = ascents.max(axis=-1)
        found[f"{name}_ascent"] = ascents[:, :, radius]
    return found


def _each(
    of: Sequence[Sequence[Mapping[str, np.ndarray]]], name: str
) -> Sequence[Sequence[np.ndarray]]:
    return [[measured[name] for measured in one] for one in of]


def _slices(of: Sequence[Found]) -> dict[str, Any]:
    found = [one.slices for one in of]
    first = next((one for one in found if one is not None), None)
    if first is None:
        return {}
    nothing = np.full_like(first.plane, np.nan)
    planes = np.stack([nothing if one is None else one.plane for one in found])
    return {"plane": (("optimizer", "x", "y"), planes), "plane_at": (("x",), first.at)}


def padded(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Arrays whose number differs by optimizer as one, `[optimizers, seeds, ...]`."""
    arrays = [array for of in rows for array in of]
    dtype = np.result_type(*arrays)
    missing = {"f": np.nan, "i": -1}.get(dtype.kind, False)
    shape = np.max([array.shape for array in arrays], axis=0)
    padded = np.full((len(rows), max(map(len, rows)), *shape), missing, dtype)
    for place, of in enumerate(rows):
        for seed, array in enumerate(of):
            padded[place, seed][tuple(map(slice, array.shape))] = array
    return padded
