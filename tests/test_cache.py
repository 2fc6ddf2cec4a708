"""Files of the cache: damaged, exchanged, and not written."""

import re

import jax
import numpy as np
import pytest
from helpers_study import RELU, files_of, make_study, numbers_of

import regularized_lopt
from regularized_lopt import study_report, upstream
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.study import dry_run


def test_a_damaged_file_is_named_and_computed_again(tmp_path):
    before = numbers_of(make_study(tmp_path))
    for kind in ("runs", "surroundings"):
        file = files_of(tmp_path, kind)[0]
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.warns(UserWarning, match=f"{re.escape(file.name)} is truncated.* as missing"):
            np.testing.assert_array_equal(numbers_of(make_study(tmp_path)), before)


@pytest.mark.parametrize("kind", ["runs", "surroundings", "tune"])
def test_exchanged_files_are_not_taken_for_each_other(tmp_path, kind):
    """As after a bad restore: each file is intact, under the name of the other."""
    settings = {"baselines": ("SGD", "Adam"), "tuning_runs": 1, "num_steps": 5}
    before = numbers_of(make_study(tmp_path, **settings))
    a, b = files_of(tmp_path, kind)[:2]
    contents = a.read_bytes(), b.read_bytes()
    b.write_bytes(contents[0])
    a.write_bytes(contents[1])
    with pytest.warns(UserWarning, match="holds another result than its name says"):
        missing = [
            line for line in dry_run.plan(make_study(tmp_path, **settings)) if not line.cached
        ]
    assert missing
    with pytest.warns(UserWarning, match="holds another result than its name says"):
        np.testing.assert_array_equal(numbers_of(make_study(tmp_path, **settings)), before)
    assert all(line.cached for line in dry_run.plan(make_study(tmp_path, **settings)))


def test_what_has_no_name_of_its_own_is_computed_in_every_process(tmp_path):
    """Its address is not one: another object may have it tomorrow."""
    learned_opt = regularized_lopt.LSTMLOpt(hidden_size=2)
    theta = learned_opt.init(jax.random.PRNGKey(0))
    odd = regularized_lopt.LSTMLOpt(hidden_size=2)
    odd.config = {**odd.config, "schedule": lambda step: step}
    who = {
        "none": optimizers_lib.learned("none", learned_opt, theta),
        "odd": optimizers_lib.learned("odd", odd, theta),
        "fixed": optimizers_lib.fixed("fixed", upstream.SGD(0.1)),
    }
    first = make_study(tmp_path, who=who, num_steps=5)
    study_report.results(first, "")
    files = [path.name for path in (tmp_path / "cells").rglob("*.npz")]
    assert {name for name in who if any(f"Relu_{name}" in file for file in files)} == {"none"}
    assert all(line.cached for line in dry_run.plan(first))

    def to_do(study):
        return {
            line.label.removeprefix(f"{RELU}, ")
            for line in dry_run.plan(study)
            if line.stage in ("train", "update curves") and not line.cached
        }

    assert to_do(make_study(tmp_path, who=who, num_steps=5)) == {"odd", "fixed"}
