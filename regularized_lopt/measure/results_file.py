"""The one file that holds the results of a study."""

from __future__ import annotations

import io
import json
import lzma
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from regularized_lopt import errors, serialization
from regularized_lopt.measure import cubic_regression, dataset
from regularized_lopt.measure.results import StudyResults
from regularized_lopt.measure.update_curves import UpdateCurve

FILE = "results.nc.xz"
FORMAT_VERSION = 1


def tree(study: StudyResults) -> xr.DataTree:
    """All of a study: groups `tasks/...`, and `meta_training/...`, `updates`, `early_evidence`."""
    said = {
        "title": study.title,
        "lead": study.lead,
        "primary": study.primary,
        "alpha": study.alpha,
        "test": study.test,
        "seconds_per_step": study.seconds_per_step,
        "chosen": study.chosen,
        "validation_losses": study.validation_losses,
        "spent": study.spent,
        "tasks": [task.attrs["task"] for task in study.tasks],
        "meta_training": {name: list(of) for name, of in study.meta_training.items()},
    }
    groups = {"/": xr.Dataset(attrs={"format_version": FORMAT_VERSION, "study": json.dumps(said)})}
    groups |= {f"/tasks/{task.attrs['task']}": task for task in study.tasks}
    for name, seeds in study.meta_training.items():
        columns = {
            metric: dataset.padded([[of[metric] for of in seeds.values()]])[0]
            for metric in next(iter(seeds.values()))
        }
        groups[f"/meta_training/{name}"] = xr.Dataset(
            {metric: (("seed", "row"), of) for metric, of in columns.items()}
        )
    if study.updates:
        groups["/updates"] = _updates(study.updates)
    if study.early_evidence is not None:
        groups["/early_evidence"] = _early_evidence(study.early_evidence)
    return xr.DataTree.from_dict(groups)


def study_results(of: xr.DataTree) -> StudyResults:
    """The inverse of `tree`."""
    said = json.loads(of.attrs["study"])
    primary = said.pop("primary")
    meta_training = {}
    for name, seeds in said.pop("meta_training").items():
        group = of[f"meta_training/{name}"].to_dataset()
        meta_training[name] = {
            seed: _rows({metric: values[place] for metric, values in group.items()})
            for place, seed in enumerate(seeds)
        }
    tasks = [of[f"tasks/{name}"].to_dataset() for name in said.pop("tasks")]
    updates = of["updates"].to_dataset() if "updates" in of.children else None
    early = of["early_evidence"].to_dataset() if "early_evidence" in of.children else None
    return StudyResults(
        **said,
        primary=None if primary is None else tuple(primary),
        tasks=tasks,
        meta_training=meta_training,
        updates={} if updates is None else _update_curves(updates),
        early_evidence=None if early is None else _evidence(early),
    )


def _rows(metrics: Mapping[Any, xr.DataArray]) -> dict[str, np.ndarray]:
    """Without the padding of seeds with fewer rows: every row has an outer step."""
    length = int(np.isfinite(metrics["outer_step"].values).sum())
    return {str(name): values.values[:length] for name, values in metrics.items()}


def _updates(updates: Mapping[str, Sequence[Sequence[UpdateCurve]]]) -> xr.Dataset:
    return xr.Dataset(
        {
            part: (
                ("optimizer", "seed", "range", "place"),
                dataset.padded(
                    [
                        [np.stack([getattr(c, part) for c in of]) for of in seeds]
                        for seeds in updates.values()
                    ]
                ),
            )
            for part in UpdateCurve._fields
        },
        {
            "optimizer": list(updates),
            "seeds": ("optimizer", [len(seeds) for seeds in updates.values()]),
        },
    )


def _update_curves(of: xr.Dataset) -> dict[str, list[list[UpdateCurve]]]:
    found = {}
    for place, (name, seeds) in enumerate(
        zip(of["optimizer"].values, of["seeds"].values, strict=True)
    ):
        parts = [of[part].values[place, :seeds] for part in UpdateCurve._fields]
        found[str(name)] = [
            [UpdateCurve(*curve) for curve in zip(*seed, strict=True)]
            for seed in zip(*parts, strict=True)
        ]
    return found


def _early_evidence(found: cubic_regression.EarlyEvidence) -> xr.Dataset:
    fits = list(found.fits.values())
    variables = {
        name: (("optimizer", "polynomial"), np.stack([getattr(one, name) for one in fits]))
        for name in ("r2", "norm", "train_loss", "stopped")
    }
    return xr.Dataset(
        {
            **variables,
            "fit": (("optimizer", "polynomial", "grid"), np.stack([one.fit for one in fits])),
            "x": (("polynomial", "sample"), found.x),
            "y": (("polynomial", "sample"), found.y),
            "truth": (("polynomial", "grid"), found.truth),
        },
        {"optimizer": list(found.fits), "grid": found.grid},
    )


def _evidence(of: xr.Dataset) -> cubic_regression.EarlyEvidence:
    grid = of["grid"].values
    names = ("r2", "norm", "train_loss", "stopped", "fit")
    fits = {
        str(name): cubic_regression.Fits(grid=grid, **{n: of[n].values[place] for n in names})
        for place, name in enumerate(of["optimizer"].values)
    }
    x, y, truth = (of[name].values for name in ("x", "y", "truth"))
    return cubic_regression.EarlyEvidence(x, y, grid, truth, fits)


def save(study: StudyResults, path: pathlib.Path) -> None:
    """Writes netCDF-4, compressed by xz with a SHA-256; leaves a file as it is that says the same.

    `xz -d` makes a file of it that `xarray.open_datatree` opens.

    Raises:
      serialization.FileFormatError: the file that is there is damaged, or of another version.
    """
    written = tree(study)
    if path.is_file() and written.identical(_checked(path)):
        return  # HDF5 has the time in it: the bytes would be others.
    content = bytes(written.to_netcdf(engine="h5netcdf"))
    packed = lzma.compress(content, check=lzma.CHECK_SHA256, preset=9 | lzma.PRESET_EXTREME)
    serialization.write_atomically(path, packed)


def load(path: pathlib.Path) -> StudyResults:
    """What `save` wrote.

    Raises:
      serialization.FileFormatError: the file is damaged, or of another format version.
      FileNotFoundError: there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: run the study (without --rewrite), which writes it."
        )
    return study_results(_checked(path))


def _checked(path: pathlib.Path) -> xr.DataTree:
    found = _read(path)
    version = int(found.attrs.get("format_version", 0))
    if version != FORMAT_VERSION:
        raise serialization.FileFormatError(
            f"{path} has format version {version}, and this package reads {FORMAT_VERSION}: "
            "install the version of regularized_lopt that wrote it, or delete it and run its study "
            "again."
        )
    return found


def _read(path: pathlib.Path) -> xr.DataTree:
    unpack = lzma.LZMADecompressor()
    try:
        content = unpack.decompress(path.read_bytes())
        if not unpack.eof or unpack.unused_data:
            raise ValueError("it is cut, or longer than it was")
        with xr.open_datatree(io.BytesIO(content), engine="h5netcdf") as opened:
            return opened.load()
    except (lzma.LZMAError, EOFError, OSError, ValueError) as error:
        raise serialization.FileFormatError(
            f"{path} is damaged ({errors.reason(error)}): restore it, e.g. from git, or delete it "
            "and run its study again."
        ) from error
