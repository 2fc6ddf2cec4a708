"""The launchers as a user meets them: flags, gin, and errors on one line."""

import subprocess
import sys

from conftest import REPOSITORY


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
