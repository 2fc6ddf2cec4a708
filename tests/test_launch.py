"""The launchers as a user meets them: flags, gin, and errors on one line."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from regularized_lopt.evaluation import Experiment, Laboratory
from regularized_lopt.evaluation.plan import plan

NONE = "gin_configs/digits_mlp_none.gin"
TASK = "ImageMLP_Digits_20_Relu"


def python(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        **kwargs,
    )


NO_FLAGS = """
import importlib, pkgutil
from absl import flags

import regularized_lopt
from regularized_lopt import upstream

def ours():
    return {name for module, of in flags.FLAGS.flags_by_module_dict().items()
            for name in (flag.name for flag in of) if module.startswith("regularized_lopt")}

found = list(pkgutil.walk_packages(regularized_lopt.__path__, "regularized_lopt."))
assert "regularized_lopt.zoo.publish" in {module.name for module in found}
for module in found:
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        assert not ours(), (module.name, ours())

from learned_optimization import setup_experiment
for name in ("run_outer_train_single", "baselines.run_trainer", "baselines.run_archive",
             "continuous_eval.run_eval_chief", "continuous_eval.run_eval_worker"):
    try:
        importlib.import_module(f"learned_optimization.{name}")
    except ImportError:
        continue  # Not in both generations, or in need of a package that is not installed.
    except Exception as error:
        assert not isinstance(error, flags.Error), error
assert "train_log_dir" in flags.FLAGS
"""


def test_importing_any_module_leaves_flags_to_upstream():
    done = python("-c", NO_FLAGS)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_plan_is_made_of_what_was_timed_before(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    rates = {f"outer step {NONE}": 0.5, f"inner step {TASK} SGD": 0.001}
    (tmp_path / "rates.json").write_text(json.dumps(rates))
    experiment = Experiment(
        optimizers={"none": NONE}, tasks=(TASK,), baselines=("SGD",), num_runs=2, num_steps=10
    )
    found = {(c.stage, c.label): c.seconds for c in plan(Laboratory(experiment, tmp_path))}
    assert found["meta-train", "none, seed 0"] == 1000 * 0.5
    assert found["train", f"{TASK}, SGD"] == pytest.approx(2 * 10 * 0.001)
    assert found["train", f"{TASK}, none"] is None
    assert json.loads((tmp_path / "rates.json").read_text()) == rates
