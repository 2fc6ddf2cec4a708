"""The one file of a study: what is written is read again, and damage is told."""

import dataclasses
import lzma

import chex
import jax
import numpy as np
import pytest
import xarray as xr
from helpers_results import measured_task, optimizer
from helpers_study import RELU

from regularized_lopt import serialization
from regularized_lopt.measure import StudyResults, results_file
from regularized_lopt.measure.cubic_regression import EarlyEvidence, Fits
from regularized_lopt.measure.update_curves import UpdateCurve

RNG = np.random.default_rng(0)


def everything():
    """A study of which there is one of each, of different numbers of seeds and rows."""
    ones = [0.1, 0.2, 0.3]
    task = measured_task(RELU, none=optimizer(ones, ones), sam=optimizer(ones[:2], ones[:2]))
    metrics = {
        seed: {name: np.arange(float(rows)) for name in ("outer_step", "loss", "seconds")}
        for seed, rows in ((5, 3), (6, 2))
    }
    curves = [[UpdateCurve(*RNG.normal(size=(2, 7))) for _ in range(2)] for _ in range(3)]
    values = RNG.normal(size=(4, 6))
    fits = Fits(*RNG.normal(size=(3, 4)), np.arange(4), np.arange(6.0), values)
    return StudyResults(
        "A study",
        "Of one task.",
        [task],
        ("sam", "gsam"),
        seconds_per_step={RELU: {"none": 0.5}},
        chosen={"none": 2},
        meta_training={"none": metrics},
        validation_losses={"none": [0.5, float("inf")]},
        updates={"none": curves, "sam": curves[:1]},
        early_evidence=EarlyEvidence(values, values, np.arange(6.0), values, {"L2": fits}),
        spent={"train": 12.5},
    )


def plain(value):
    """Dataclasses as dicts, all the way down."""
    if dataclasses.is_dataclass(value):
        return plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def test_all_of_a_study_comes_back(tmp_path):
    study, path = everything(), tmp_path / results_file.FILE
    results_file.save(study, path)
    found = results_file.load(path)
    (task,), (again,) = study.tasks, found.tasks
    xr.testing.assert_identical(again, task)
    assert again["poc_step"].dtype == task["poc_step"].dtype
    found, study = (dataclasses.replace(one, tasks=[]) for one in (found, study))
    chex.assert_trees_all_equal(plain(found), plain(study))
    assert [leaf.dtype for leaf in jax.tree.leaves(plain(found)) if hasattr(leaf, "dtype")]


def test_the_same_results_leave_the_file_alone_and_others_do_not(tmp_path):
    study, path = everything(), tmp_path / results_file.FILE
    results_file.save(study, path)
    before = path.read_bytes()
    results_file.save(everything(), path)
    # Numbers are drawn anew, but for the tasks'.
    assert path.read_bytes() != before
    again = results_file.load(path)
    before = path.read_bytes()
    results_file.save(again, path)
    assert path.read_bytes() == before


def test_anyone_s_xarray_reads_it(tmp_path):
    path = tmp_path / results_file.FILE
    results_file.save(everything(), path)
    plain_file = tmp_path / "results.nc"
    plain_file.write_bytes(lzma.decompress(path.read_bytes()))
    with xr.open_datatree(plain_file, engine="h5netcdf") as tree:
        task = tree[f"tasks/{RELU}"].to_dataset()
        assert task.attrs["architecture"] == "MLP"
        assert list(task["optimizer"].values) == ["none", "sam"]
        assert float(task["around_loss"].sel(optimizer="sam", point="poc")[1, 0]) == 0.2
        assert np.isnan(task["around_loss"].sel(optimizer="sam").isel(seed=2)).all()


HARMS = {
    "cut": lambda content: content[:-9],
    "a bit": lambda content: content[:300] + bytes([content[300] ^ 4]) + content[301:],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"more",
    "foreign": lambda content: b"PK no such file",
    "foreign within": lambda content: lzma.compress(b"no netCDF"),
    "cut within": lambda content: lzma.compress(lzma.decompress(content)[:-3000]),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, harm):
    path = tmp_path / results_file.FILE
    results_file.save(everything(), path)
    path.write_bytes(HARMS[harm](path.read_bytes()))
    for act in (results_file.load, lambda path: results_file.save(everything(), path)):
        with pytest.raises(serialization.FileFormatError, match=r"is damaged \(.*git") as told:
            act(path)
        assert "\n" not in str(told.value)


def test_a_newer_file_is_refused_by_its_version(tmp_path, monkeypatch):
    path = tmp_path / results_file.FILE
    monkeypatch.setattr(results_file, "FORMAT_VERSION", 9)
    results_file.save(everything(), path)
    monkeypatch.undo()
    with pytest.raises(serialization.FileFormatError, match=r"has format version 9, .* reads 1:"):
        results_file.load(path)
    with pytest.raises(serialization.FileFormatError, match="has format version 9"):
        results_file.save(everything(), path)
