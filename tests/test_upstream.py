import importlib.util
import os
import re
import subprocess
import sys

import pytest
from conftest import needs_tensorflow

from regularized_lopt import upstream

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""

TRAIN_TEST_LOAD = """
import pathlib, sys, tempfile
import numpy as np
import regularized_lopt
from regularized_lopt import gin_files
from regularized_lopt.study import meta_test
from regularized_lopt.outer_training import outer_train

out = pathlib.Path(tempfile.mkdtemp())
gin_files.parse_gin([], [
    'outer_train.task = "ImageMLP_Digits_20_Sigmoid"',
    "outer_train.num_outer_steps = 4",
    "RegularizedTruncatedGrad.unroll_length = 5",
    "RegularizedTruncatedGrad.regularizer = 'sam'",
    "Curriculum.train_lengths = (10,)",
    "Curriculum.num_validation_tasks = 1",
])
outer_train(out / "run", progress=False)
loaded = regularized_lopt.load(out / "run")
opts = {"sam": loaded.opt()}
found = meta_test(opts, "ImageMLP_Digits_20_Relu", 2, 20, baselines=(), progress=False)
assert np.isfinite(found["train_loss"].sel(optimizer="sam")).all()
assert "tensorflow" not in sys.modules
"""


def python(code, *, check=True, **env):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=check,
    )


def test_a_missing_learned_optimization_is_reported_with_the_command():
    blocked = BLOCKER.format(blocked={"learned_optimization"})
    done = python(f"{blocked}\nimport regularized_lopt", check=False)
    assert done.returncode == 1
    assert "pip install --no-deps learned_optimization==0.0.1" in done.stderr


def test_trains_meta_tests_and_loads_without_tensorflow():
    blocked = BLOCKER.format(blocked={"tensorflow", "tensorflow_datasets"})
    use = (
        "from learned_optimization import summary\n"
        "try:\n    summary.JaxboardWriter(str(out))\n"
        "except ImportError as error:\n    print('REFUSED', error)\n"
    )
    done = python(f"{blocked}\n{TRAIN_TEST_LOAD}\n{use}")
    assert "REFUSED" in done.stdout
    assert "install tensorflow" in done.stdout


@needs_tensorflow
def test_importing_us_neither_imports_tensorflow_nor_hides_it():
    done = python(
        "import sys, regularized_lopt, importlib.util\n"
        "assert 'tensorflow' not in sys.modules\n"
        "assert importlib.util.find_spec('tensorflow').origin\n"
        "from learned_optimization import filesystem, summary\n"
        "import tempfile\n"
        "summary.JaxboardWriter(tempfile.mkdtemp()).scalar('x', 1.0, step=0)\n"
        "print('tensorflow' in sys.modules)\n"
    )
    assert done.stdout.split()[-1] == "True"


def pytest_with_our_import(directory, *paths):
    """Runs tests that are not ours, whatever configuration lies above them."""
    own = directory / "pytest.ini"
    own.write_text("[pytest]\n")
    arguments = ["-q", "-p", "no:cacheprovider", "-c", str(own), *map(str, paths)]
    code = f"import regularized_lopt, pytest, sys; sys.exit(pytest.main({arguments!r}))"
    return python(code, check=False, PYTEST_ADDOPTS="")


def test_a_configuration_above_tests_that_are_not_ours_is_left_alone(tmp_path):
    """As in a checkout with its environment inside."""
    project, own = tmp_path / "project", tmp_path / "own"
    (project / "environment").mkdir(parents=True)
    own.mkdir()
    (project / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = "--unheard-of"\n')
    theirs = project / "environment" / "their_test.py"
    theirs.write_text("import sys\ndef test():\n    assert 'regularized_lopt' in sys.modules\n")
    done = pytest_with_our_import(own, theirs)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    upstream.GENERATION == "main", reason="main runs on a current JAX without our help"
)
def test_the_wheel_s_own_tests_pass_with_our_import(tmp_path):
    root = next(iter(importlib.util.find_spec("learned_optimization").submodule_search_locations))
    parts = (
        "learned_optimizers",
        "outer_trainers",
        "optimizers",
        "summary_test.py",
        "tasks/quadratics_test.py",
        "eval_training_test.py",
    )
    done = pytest_with_our_import(tmp_path, *(os.path.join(root, part) for part in parts))
    summary = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", summary)[1]) >= 52, summary
    assert "failed" not in summary
