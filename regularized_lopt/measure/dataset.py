"""Results on a task as one labelled dataset.

It is an `xarray.Dataset`. Its variables have the dimensions that they need of::

    optimizer, seed, run      who trained which network
    measured_run              the first of these, around whose params flatness was measured
    loss_step, eval_step      along training
    point, scale, radius      where and in which ball flatness was measured
    ascent_step               along an ascent, at the headline radius
    pair, side                seeds compared at matched training loss: own, reference
    x, y                      a plane through the loss

Where optimizers have fewer seeds or runs than others, floats are NaN and whole numbers -1; how many
there are is in `seeds`, `pairs` and the attributes `runs` and `measured_runs`. What is known of an
optimizer or of the task is a coordinate or an attribute.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regularized_lopt import errors, serialization
from regularized_lopt.measure.flatness import SCALES, FlatnessConfig, KeptFlatness
from regularized_lopt.measure.loss_slices import LossSlices
from regularized_lopt.measure.results import POINTS, Matched, Result, TaskResult
from regularized_lopt.measure.training_curves import TrainingCurves

try:
    import xarray as xr
except ModuleNotFoundError:
    errors.check_installed("study", "xarray", "h5netcdf")
    raise


_SIDES = ("own", "reference")
_FACTS = ("name", "own_property", "gradients_per_step", "targeted", "regularizer", "space")
_NUMBERS = ("learning_rate", "strength")  # None: NaN.
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
}
_MATCHED_AROUND = ("loss", "grad_norm", "loss_last", "grad_norm_last")
_STEPS = ("level", "own_step", "reference_step")


def of_task(result: TaskResult) -> xr.Dataset:
    """The dataset of a task; see the module."""
    of = list(result.optimizers.values())
    first = of[0].curves[0]
    variables: dict[str, Any] = {
        name: (
            ("optimizer", "seed", "run", *dims),
            padded([[getattr(curves, name) for curves in one.curves] for one in of]),
        )
        for name, dims in _CURVES.items()
    }
    if result.is_measured:
        variables |= _around(of)
        variables |= _matched(of)
        variables |= _slices(of)
    facts = {name: ("optimizer", [getattr(one, name) for one in of]) for name in _FACTS}
    numbers = {
        name: ("optimizer", np.array([getattr(one, name) for one in of], np.float64))
        for name in _NUMBERS
    }
    counts = {
        "seeds": ("optimizer", [len(one.curves) for one in of]),
        "pairs": ("optimizer", [len(one.matched) for one in of]),
    }
    coordinates = {
        "optimizer": list(result.optimizers),
        "loss_step": first.loss_steps,
        "eval_step": first.eval_steps,
        "point": list(POINTS),
        "scale": list(SCALES),
        "radius": list(result.flatness_config.radii),
        "side": list(_SIDES),
    }
    used = {dim for dims, _ in variables.values() for dim in dims}
    measured = of[0].at[POINTS[0]][0].loss if result.is_measured else ()
    return xr.Dataset(
        variables,
        {name: of for name, of in coordinates.items() if name in used} | facts | numbers | counts,
        {
            "task": result.task,
            **result.facts,
            "num_steps": result.num_steps,
            "reference": result.reference,
            "runs": len(first.train_loss),
            "measured_runs": len(measured),
            "flatness": json.dumps(serialization.fields(result.flatness_config)),
        },
    )


def task_result(dataset: xr.Dataset) -> TaskResult:
    """The inverse of `of_task`, without the losses' levels."""
    keys = [str(key) for key in dataset["optimizer"].values]
    config = json.loads(dataset.attrs["flatness"])
    named = ("num_steps", "reference", "runs", "measured_runs", "flatness", "task")
    return TaskResult(
        task=dataset.attrs["task"],
        num_steps=int(dataset.attrs["num_steps"]),
        flatness_config=FlatnessConfig(**{**config, "radii": tuple(config["radii"])}),
        reference=dataset.attrs["reference"],
        optimizers={key: _result(dataset.sel(optimizer=key)) for key in keys},
        facts={name: str(of) for name, of in dataset.attrs.items() if name not in named},
    )


def _around(of: Sequence[Result]) -> dict[str, Any]:
    """Of all optimizers, what was measured around their params."""
    return {
        f"around_{name}": (
            ("optimizer", "point", "seed", "measured_run", *dims),
            np.stack(
                [
                    padded([[_scales(getattr(at, name)) for at in one.at[point]] for one in of])
                    for point in POINTS
                ],
                axis=1,
            ),
        )
        for name, dims in _AROUND.items()
    }


def _matched(of: Sequence[Result]) -> dict[str, Any]:
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
    for name in _MATCHED_AROUND:
        sides = [
            padded([[_scales(getattr(getattr(p, side), name)) for p in one.matched] for one in of])
            for side in _SIDES
        ]
        dims = ("scale",) if _AROUND[name] else ()
        values = np.stack(sides, axis=1)
        found[f"matched_{name}"] = (
            ("optimizer", "side", "pair", "measured_run", *dims),
            values[..., 0] if dims else values,  # At one radius alone.
        )
    return found


def _slices(of: Sequence[Result]) -> dict[str, Any]:
    found = [one.slices for one in of]
    first = next((one for one in found if one is not None), None)
    if first is None:
        return {}
    nothing = np.full_like(first.plane, np.nan)
    planes = np.stack([nothing if one is None else one.plane for one in found])
    return {"plane": (("optimizer", "x", "y"), planes), "plane_at": (("x",), first.at)}


def _result(own: xr.Dataset) -> Result:
    """Of one optimizer."""
    runs, seeds = int(own.attrs["runs"]), int(own["seeds"])
    shared: dict[str, Any] = {
        "loss_steps": own["loss_step"].values,
        "eval_steps": own["eval_step"].values,
        "level_step": np.zeros((runs, 0), int),
        "level": np.zeros((runs, 0), int),
    }
    curves = [
        TrainingCurves(**shared | {name: own[name].values[seed, :runs] for name in _CURVES})
        for seed in range(seeds)
    ]
    measured = int(own.attrs["measured_runs"])
    facts: dict[str, Any] = {name: own[name].values.item() for name in (*_FACTS, *_NUMBERS)}
    facts |= {name: None for name in _NUMBERS if np.isnan(facts[name])}
    return Result(
        **facts,
        curves=curves,
        at={
            point: [
                _kept({n: own[f"around_{n}"].values[p, seed, :measured] for n in _AROUND})
                for seed in range(seeds)
            ]
            for p, point in enumerate(POINTS)
        }
        if measured
        else {},
        matched=[_pair(own, pair, measured) for pair in range(int(own["pairs"]))],
        slices=_slice(own),
    )


def _slice(own: xr.Dataset) -> LossSlices | None:
    if "plane" not in own or np.isnan(own["plane"]).all():
        return None
    plane = own["plane"].values
    return LossSlices(own["plane_at"].values, plane[:, plane.shape[1] // 2], plane)


def _pair(own: xr.Dataset, pair: int, runs: int) -> Matched:
    found: dict[str, Any] = {}
    for place, side in enumerate(_SIDES):
        values = {
            name: own[f"matched_{name}"].values[place, pair, :runs] for name in _MATCHED_AROUND
        }
        for name in ("loss_last", "grad_norm_last"):
            values[name] = values[name][..., None]
        unknown = {name: np.full(runs, np.nan) for name in ("trace", "top")}
        again = {
            f"{of}_{what}": values[f"{of}_last"]
            for of in ("loss", "grad_norm")
            for what in ("highest", "ascent")
        }
        found[side] = _kept({**values, **again, **unknown})
    for name in _STEPS:
        found[name] = own[f"matched_{name}"].values[pair, :runs]
    return Matched(**found)


def _kept(values: Mapping[str, np.ndarray]) -> KeptFlatness:
    """From arrays, [runs, scales, ...] where there is one by scale."""
    found: dict[str, Any] = dict(values)
    for name in (name for name, dims in _AROUND.items() if dims):
        found[name] = {scale: values[name][:, place] for place, scale in enumerate(SCALES)}
    return KeptFlatness(**found)


def _scales(values: Any) -> np.ndarray:
    """[runs, ...], or by scale; then [runs, scales, ...]."""
    if isinstance(values, Mapping):
        return np.stack([values[scale] for scale in SCALES], axis=1)
    return np.asarray(values)


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
