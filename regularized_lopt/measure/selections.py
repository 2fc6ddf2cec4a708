"""Selections of a task's dataset (see `dataset`): what tables, figures and notebooks read of it.

`optimizer(task, "sam")` is the part of one optimizer, a dataset too. What else is selected is taken
from such a part, and is an array without padding.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import numpy as np
import xarray as xr

from regularized_lopt import errors
from regularized_lopt.measure.flatness import PROPERTIES, FlatnessConfig
from regularized_lopt.measure.loss_slices import LossSlices

_USUAL_SIZES = {"MLP": "20", "Conv": "16x32"}  # The paper's, which labels leave out.


# Of a task.


@xr.register_dataset_accessor("parts")
class _Parts(dict[str, xr.Dataset]):
    """`optimizer` by name: a task keeps what was selected, for that takes a millisecond."""

    def __init__(self, task: xr.Dataset):
        super().__init__()
        self._task = task

    def __missing__(self, key: str) -> xr.Dataset:
        own = self._task.sel(optimizer=key)
        has = {"seed": slice(int(own["seeds"])), "pair": slice(int(own["pairs"]))}
        self[key] = own.isel(has, missing_dims="ignore")
        return self[key]


def keys(task: xr.Dataset) -> list[str]:
    """Names of the optimizers."""
    return task.variables["optimizer"].values.tolist()


def optimizer(task: xr.Dataset, key: str) -> xr.Dataset:
    """What there is of one optimizer: the seeds and pairs that it has, without the padding.

    Raises:
      errors.UnknownNameError: it is not on the task.
    """
    errors.check_name("optimizer", key, keys(task))
    return task.parts[key]


def optimizers(task: xr.Dataset) -> Iterator[xr.Dataset]:
    """`optimizer` of all."""
    return (optimizer(task, key) for key in keys(task))


def reference(task: xr.Dataset) -> xr.Dataset:
    """`optimizer` of the one that others are compared with."""
    return optimizer(task, task.attrs["reference"])


def others(task: xr.Dataset) -> Iterator[xr.Dataset]:
    """`optimizer` of all but the reference."""
    return (optimizer(task, key) for key in keys(task) if key != task.attrs["reference"])


def learned(task: xr.Dataset) -> Iterator[xr.Dataset]:
    """Of the others, those that are no baselines."""
    return filter(is_learned, others(task))


def slices(task: xr.Dataset) -> dict[str, LossSlices]:
    """Of the loss around the PoC of the first run, by the optimizer's name in tables."""
    if "plane" not in task:
        return {}
    planes = zip(task["name"].values, task["plane"].values, strict=True)
    at = task["plane_at"].values
    return {
        str(name): LossSlices(at, plane[:, len(at) // 2], plane)
        for name, plane in planes
        if not np.isnan(plane).all()
    }


def is_measured(task: xr.Dataset) -> bool:
    """Whether anything was measured around the params."""
    return bool(task.attrs["measured_runs"])


def flatness_config(task: xr.Dataset) -> FlatnessConfig:
    """What was measured there."""
    return FlatnessConfig.of_record(json.loads(task.attrs["flatness"]))


def headline(task: xr.Dataset) -> float:
    """The radius of the ball that tables and verdicts are about."""
    config = flatness_config(task)
    return config.radii[config.headline]


def label(task: xr.Dataset) -> str:
    """Its name where there is little room, of what its facts say: "Mnist, Sigmoid"."""
    facts = task.attrs
    is_mlp = facts["architecture"] == "MLP"
    usual = facts["sizes"] == _USUAL_SIZES.get(facts["architecture"])
    parts = [
        "" if is_mlp else facts["architecture"],
        facts["dataset"],
        "" if usual else facts["sizes"],
        facts["activation"] if is_mlp else "",
    ]
    return ", ".join(filter(None, parts)) if facts["architecture"] else facts["task"]


def names(tasks: Iterable[xr.Dataset]) -> list[str]:
    """Of all optimizers of any task in order of appearance, the learned ones before baselines."""
    is_baseline = {
        key: not is_learned(optimizer(task, key)) for task in tasks for key in keys(task)
    }
    return sorted(is_baseline, key=is_baseline.__getitem__)


# Of one optimizer's part.


def is_learned(one: xr.Dataset) -> bool:
    """No baseline, of which a learning rate is known."""
    return bool(np.isnan(one["learning_rate"]))


def judged_by(one: xr.Dataset) -> str:
    """The property that tells whether it finds flat minima: for SAM's the rise, max L - L.

    The larger part of max L is L itself, which is how well a network was trained.
    """
    own = str(one["own_property"].item())
    return "gsam" if own == "sam" else own


def final(one: xr.Dataset, name: str) -> np.ndarray:
    """[seeds, runs]: at completion, of what is known along training."""
    return one[name].values[..., -1]


def has_accuracy(of: xr.Dataset) -> bool:
    """Whether a task, or an optimizer's part of one, knows accuracies: others have losses alone."""
    return "test_accuracy" in of


def accuracy(one: xr.Dataset) -> np.ndarray:
    """[seeds, runs], test accuracy in percent at completion."""
    return 100 * final(one, "test_accuracy")


def quality_name(of: xr.Dataset) -> str:
    """What `quality` is, in words."""
    return "test accuracy" if has_accuracy(of) else "test loss"


def quality_label(of: xr.Dataset) -> str:
    """The same, with its unit where all tasks share one."""
    return quality_name(of) + (" (%)" if has_accuracy(of) else "")


def quality(one: xr.Dataset) -> np.ndarray:
    """[seeds, runs], `accuracy`, or the test loss at completion where there is none."""
    return accuracy(one) if has_accuracy(one) else final(one, "test_loss")


def last(one: xr.Dataset, name: str) -> xr.DataArray:
    """A property after the last ascent step, [point, seed, measured_run, scale, radius].

    Args:
      one: what there is of an optimizer.
      name: "sam", "gsam" or "gam", see `flatness`.

    Raises:
      errors.UnknownNameError: of the property.
      ValueError: flatness was not measured.
    """
    return _less_centre(one, name, "around", "last")


def best(one: xr.Dataset, name: str) -> xr.DataArray:
    """Its highest value on the way, centre included; see `last`."""
    highest = _less_centre(one, name, "around", "highest")
    return highest.clip(min=one["around_loss"] if name == "sam" else 0)


def ascent(one: xr.Dataset, name: str) -> xr.DataArray:
    """It along the ascent at the headline radius: in place of radii there are ascent steps."""
    return _less_centre(one, name, "around", "ascent")


def matched(one: xr.Dataset, name: str) -> xr.DataArray:
    """`last` at matched training loss and headline radius, [side, pair, measured_run, scale].

    Of optimizers that have been compared with the reference there: with `pairs` above 0.
    """
    return _less_centre(one, name, "matched", "last")


def _less_centre(one: xr.Dataset, name: str, where: str, part: str) -> xr.DataArray:
    errors.check_name("property", name, PROPERTIES)
    of = "grad_norm" if name == "gam" else "loss"
    variable = f"{where}_{of}_{part}"
    if variable not in one:
        raise ValueError(
            f"On {one.attrs['task']} there is no {variable}: flatness was not measured "
            f"{'at matched training loss' if where == 'matched' else 'around params'} (meta_test "
            "does with measured = True, a study with TaskPlan.measured_runs above 0)."
        )
    values = one[variable]
    # A variable alone, without the labels, which are the same, is quick.
    return values if name == "sam" else values - one.variables[f"{where}_{of}"]


def at(values: xr.DataArray, **labels: str | float) -> np.ndarray:
    """`values.sel(labels).values` in a tenth of its time: pages are made of thousands of these."""
    places = {dim: values.indexes[dim].get_loc(label) for dim, label in labels.items()}
    return values.variable.isel(places).values


def networks(values: xr.DataArray) -> np.ndarray:
    """[seed, run, ...] as [seeds * runs, ...]: all that an optimizer has trained."""
    return values.values.reshape(-1, *values.shape[2:])
