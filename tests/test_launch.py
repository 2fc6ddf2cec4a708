"""The launchers as a user meets them: flags, gin, and errors on one line."""

import json
import signal
import subprocess
import sys

import gin
import pytest
from conftest import REPOSITORY

from regularized_lopt import errors, gin_files, interruption, launch
from regularized_lopt.study import Experiment, Study, TaskPlan
from regularized_lopt.study.dry_run import plan

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
        optimizers={"none": NONE}, tasks=(TaskPlan(TASK, runs=2),), baselines=("SGD",), num_steps=10
    )
    found = {(c.stage, c.label): c.seconds for c in plan(Study(experiment, tmp_path))}
    assert found["meta-train", "none, seed 0"] == 1000 * 0.5
    assert found["train", f"{TASK}, SGD"] == pytest.approx(2 * 10 * 0.001)
    assert found["train", f"{TASK}, none"] is None
    assert json.loads((tmp_path / "rates.json").read_text()) == rates


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise KeyError", "KeyError: "),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("x = (", "SyntaxError: .*line 1"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_a_module_that_fails_is_named(code, reason, tmp_path, monkeypatch):
    name = f"mine_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    (tmp_path / "mine.gin").write_text(f"import {name}")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=f"--gin_import={name}: .*{reason}") as error:
        gin_files.parse_gin([], [], [name])
    assert "\n" not in str(error.value)
    with pytest.raises((ImportError, ValueError), match=rf"{name}|mine\.gin") as error:
        gin_files.parse_gin([str(tmp_path / "mine.gin")], [])
    assert "\n" not in str(error.value)


@gin.configurable
def not_implemented():
    raise NotImplementedError


def test_an_exception_without_text_is_named_by_its_type(capsys):
    with pytest.raises(NotImplementedError) as through_gin:  # Which appends where it passed.
        not_implemented()
    for error in (NotImplementedError(), through_gin.value):
        launch._print(error, "Error: ")
        assert capsys.readouterr().err == "Error: NotImplementedError\n"
    assert errors.reason(ValueError("two\n  lines")) == "two lines"


@pytest.mark.parametrize("name", ["x" * 240, "", "a/b", "ü" * 60])
def test_a_name_that_files_cannot_have_is_refused(name):
    with pytest.raises(ValueError, match="files are called by it") as error:
        Experiment(optimizers={name: NONE}, tasks=(TASK,), reference=name)
    assert len(str(error.value).splitlines()[0]) < 200


def test_a_directory_that_cannot_be_written_to_is_refused_first(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    (tmp_path / "file").write_text("")
    experiment = Experiment(optimizers={"none": NONE}, tasks=(TASK,), baselines=())
    for out_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"cannot be written to \(.*\)\. Choose another"):
            Study(experiment, out_dir).run()


@pytest.mark.parametrize(
    ("launcher", "flags", "message"),
    [
        ("outer_train", ["--train_log_dir="], "--train_log_dir is empty"),
        (
            "outer_train",
            ["--train_log_dir=unused", f"--config_file={NONE}", "--gin_bindings=SAM.rho = 0.5"],
            "SAM.rho = 0.5 is read by nothing: no regularizer here is sam. Add ",
        ),
        (
            "reproduce",
            [
                "--config_file=gin_configs/reproduce_digits.gin",
                "--dry_run",
                "--gin_bindings=SAM.rho = 0.5",
            ],
            "Write Experiment.bindings = ('SAM.rho = 0.5',).",
        ),
        (
            "reproduce",
            [
                "--config_file=gin_configs/reproduce_digits.gin",
                "--dry_run",
                "--gin_bindings=ImageMLP_Digits_20_Rleu/TaskPlan.runs = 1",
            ],
            f"Experiment.tasks has no 'ImageMLP_Digits_20_Rleu'. Did you mean '{TASK}'?",
        ),
        (
            "outer_train",
            [
                f"--config_file={NONE}",
                "--train_log_dir=unused",
                "--gin_bindings=outer_train.estimator = @RegularizedTruncatedPES()",
            ],
            "RegularizedTruncatedPES is not given truncated_step. Where gin refers to what another "
            "part calls, write @RegularizedTruncatedPES, without parentheses.",
        ),
        ("compare", ["--num_runs=x", "a", "b"], "flag --num_runs=x: "),
        (
            "noisy_quadratic",
            ["--out_dir=unused", "--gin_bindings=NoisyQuadratic.hessian = ((1, 2), (2, 1))"],
            "NoisyQuadratic.hessian = ((1, 2), (2, 1)): it must be positive definite.",
        ),
    ],
)
def test_what_is_wrong_ends_a_launcher_with_one_line(launcher, flags, message):
    done = python("-m", f"regularized_lopt.{launcher}", *flags)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert message in line
    assert not (REPOSITORY / "unused").exists()


@pytest.mark.parametrize(
    ("missing", "said"),
    [(("nowhere",), "nowhere is needed"), (("nowhere", "there"), "nowhere, there are needed")],
)
def test_modules_that_are_missing_are_named(missing, said):
    with pytest.raises(ModuleNotFoundError, match=f"^{said} here and not installed: pip install"):
        errors.check_installed("study", "json", *missing)


@pytest.mark.parametrize("file", ["gin_configs/nope.gin", "/nope.gin", "nope/nope.gin"])
def test_a_gin_file_that_is_not_there_is_named(file, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(FileNotFoundError, match=f"^There is no gin file {file}"):
        gin_files.parse_gin([file], [])


def test_a_string_without_quotes_is_explained():
    with pytest.raises(ValueError, match=rf"{TASK} \(strings take quotes"):
        gin_files.parse_gin([], [f"outer_train.task = {TASK}"])


def test_help_lists_the_flags_that_every_command_needs():
    said = python("-m", "regularized_lopt.outer_train", "--help").stdout
    for name in ("config_file", "gin_bindings", "gin_import", "train_log_dir"):
        assert f"--{name}:" in said or f"--[no]{name}:" in said


def test_a_configuration_is_not_taken_for_a_trained_optimizer():
    paths = ["mine=runs/mine", NONE]
    assert launch.named_paths(paths) == {"mine": "runs/mine", "digits_mlp_none": NONE}
    with pytest.raises(ValueError, match="a configuration, not a trained optimizer") as error:
        launch.trained_paths(paths)
    assert f"outer_train --config_file={NONE} --train_log_dir=DIR" in str(error.value)


STOPPED = """
import os, signal, sys
from regularized_lopt import interruption, launch

with launch._ends_in_one_line(), interruption.stops_at_once("Begin anew."):
    os.kill(os.getpid(), int(sys.argv[1]))
    raise AssertionError
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_what_keeps_nothing_with_one_line(signum):
    done = python("-c", STOPPED, str(signum.value))
    assert done.returncode == 128 + signum
    assert done.stderr == f"Stopped by {signum.name}. Begin anew.\n"


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(interruption.Stopped), interruption.stops_at_once(""):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
