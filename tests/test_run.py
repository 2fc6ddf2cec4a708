import itertools
import json
import shutil
import subprocess
import sys

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY, digits_config, needs_mnist, needs_tfds
from helpers import TwoLayer
from learned_optimization.tasks import quadratics

from regularized_lopt import errors, gin_files, serialization, upstream, zoo
from regularized_lopt.estimators import RegularizedTruncatedGrad
from regularized_lopt.outer_training import outer_train, run_dir
from regularized_lopt.outer_training.session import DivergedError
from regularized_lopt.run_files import load_metrics


def train(directory, num_outer_steps, *extra, **arguments):
    gin.clear_config()
    gin_files.parse_gin([], digits_config(num_outer_steps, *extra))
    return outer_train(directory, progress=False, **arguments)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


SAM = "RegularizedTruncatedGrad.regularizer = 'sam'"
EARLY = "Curriculum.max_validations = 1"
"""Ends the first stage at its first validation, after four outer steps."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished") / "run"
    return directory, train(directory, 6, SAM, EARLY, "outer_train.checkpoint_every = 5")


def test_leaves_curves_theta_and_its_configuration(finished):
    directory, result = finished
    loaded = zoo.load(directory)
    np.testing.assert_array_equal(flat(loaded.theta), flat(result.theta))
    assert loaded.metadata["regularizer_meta_space"]["name"] == "sam"
    assert loaded.metadata["outer_steps"] == 6
    columns = load_metrics(directory)
    np.testing.assert_array_equal(columns["outer_step"], np.arange(1, 7))
    assert np.all(np.isfinite(columns["loss"]))
    assert np.all(columns["gradient_correction"] > 0)
    assert np.all(columns["loss_correction"] == 0)
    # Stages of 10 and 20 inner steps, validated every two trajectories: at 4 | 12, ...
    assert columns["trajectory_length"].tolist() == [10.0] * 4 + [20.0] * 2
    assert np.flatnonzero(np.isfinite(columns["validation_loss"])).tolist() == [3]
    assert "SAM.rho" in (directory / "config.gin").read_text()
    assert list(directory.glob("events.out.tfevents*"))
    names = sorted(file.name for file in (directory / "checkpoints").iterdir())
    assert names == ["best.npz", "checkpoint_00000005.npz", "checkpoint_00000006.npz"]


@pytest.mark.parametrize(
    ("binding", "space"),
    [
        (SAM, "meta"),
        ("RegularizedTruncatedStep.regularizer = 'sam'", "optimizee"),
    ],
)
def test_a_regularizer_that_changes_nothing_is_reported(tmp_path, binding, space):
    with pytest.warns(UserWarning, match=f"run: regularizer sam in {space} space changes nothing"):
        train(tmp_path / "run", 1, binding, "SAM.weight = 0.0")


@pytest.mark.parametrize("progress", [True, False])
def test_a_curriculum_that_ends_before_all_steps_is_told(tmp_path, capsys, progress):
    ending = ("Curriculum.min_validations = 1", "Curriculum.max_validations = 1")
    gin_files.parse_gin([], digits_config(100, *ending))
    outer_train(tmp_path / "run", progress=progress)
    told = (
        "run: the curriculum ended after outer step 12 of 100, in stage 2/2, after 1 validation(s)"
    )
    assert (told in capsys.readouterr().out) == progress


def test_a_task_s_own_iterators_move_on_with_every_outer_step(tmp_path, monkeypatch):
    seen = []
    get_datas = RegularizedTruncatedGrad.get_datas

    def watched(self):
        data = get_datas(self)
        seen.append(jax.tree.leaves(data["train"])[0].tobytes())
        return data

    monkeypatch.setattr(RegularizedTruncatedGrad, "get_datas", watched)
    gin_files.parse_gin([], [line for line in digits_config(3) if "outer_train.task" not in line])
    outer_train(tmp_path / "run", task=quadratics.BatchQuadraticTask(), progress=False)
    assert len(set(seen)) == len(seen) == 3


class Broken(TwoLayer):
    """Its loss is the logarithm of what is not positive."""

    def loss(self, params, key, data):
        return jnp.log(-super().loss(params, key, data))


class BrokenBatches(Broken):
    datasets = upstream.Datasets(*[itertools.repeat({"x": np.zeros((2, 1))})] * 4)


@pytest.mark.parametrize("task", [Broken(), BrokenBatches()])
def test_a_task_whose_loss_is_not_finite_at_the_start_is_refused(tmp_path, task):
    gin_files.parse_gin([], [line for line in digits_config(3) if "outer_train.task" not in line])
    with pytest.raises(ValueError, match=r"the loss of Broken\w* is nan where inner"):
        outer_train(tmp_path / "run", task=[TwoLayer(), task], progress=False)
    assert not (tmp_path / "run").exists()


@needs_tfds
def test_a_task_of_upstream_s_is_trained_on_by_its_gin_name(tmp_path):
    from learned_optimization.tasks.fixed import image_mlp  # noqa: F401 (registers it)

    lines = [line for line in digits_config(2) if "outer_train.task" not in line]
    gin_files.parse_gin([], [*lines, "outer_train.task = 'ImageMLP_FashionMnist8_Relu32'"])
    result = outer_train(tmp_path / "run", progress=False)
    assert 1 < result.metrics[-1]["loss"] < 4


def test_the_same_seed_gives_the_same_theta_and_another_seed_another(finished, tmp_path):
    _, result = finished
    again = train(tmp_path / "again", 6, SAM, EARLY, "outer_train.checkpoint_every = 3")
    np.testing.assert_array_equal(flat(again.theta), flat(result.theta))
    other = train(tmp_path / "other", 6, SAM, EARLY, "outer_train.seed = 1")
    assert not np.allclose(flat(other.theta), flat(result.theta))


# Within a trajectory, at a stage, and in it.
@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_resumed_run_ends_in_the_same_bits(finished, tmp_path, stop):
    directory, result = finished
    train(tmp_path / "run", stop, SAM, EARLY)
    resumed = train(tmp_path / "run", 6, SAM, EARLY)
    np.testing.assert_array_equal(flat(resumed.theta), flat(result.theta))
    ours, theirs = load_metrics(tmp_path / "run"), load_metrics(directory)
    for name in ("outer_step", "loss", "validation_loss", "trajectory_length"):
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_rescaled_trajectories_resume_and_are_validated_as_the_task_has_them(tmp_path):
    """Theta stands still here, so that validations differ by nothing else."""
    still = "theta_learning_rate.learning_rate = 1e-30"
    scales = [f"RegularizedTruncatedStep.{name}_scale_bound = 1.0" for name in ("param", "input")]
    train(tmp_path / "plain", 5, still)
    train(tmp_path / "whole", 5, still, *scales)
    train(tmp_path / "resumed", 3, still, *scales)  # Within a trajectory.
    train(tmp_path / "resumed", 5, still, *scales)
    plain, whole, resumed = (
        load_metrics(tmp_path / name) for name in ("plain", "whole", "resumed")
    )
    np.testing.assert_array_equal(resumed["loss"], whole["loss"])
    assert np.all(whole["loss"] != plain["loss"])
    np.testing.assert_allclose(whole["validation_loss"], plain["validation_loss"], rtol=1e-6)
    assert np.isfinite(plain["validation_loss"]).sum() == 1


def test_entries_after_the_checkpoint_are_dropped_on_resuming(tmp_path):
    train(tmp_path / "run", 6, "outer_train.checkpoint_every = 4")
    (tmp_path / "run/checkpoints/checkpoint_00000006.npz").unlink()  # As if killed before it.
    train(tmp_path / "run", 7, "outer_train.checkpoint_every = 4")
    assert load_metrics(tmp_path / "run")["outer_step"].tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_another_experiment_is_refused_and_nothing_is_written(finished, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(finished[0], directory)
    before = {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}
    with pytest.raises(run_dir.OtherExperimentError, match=r"SAM\.rho = 0\.3"):
        train(directory, 20, SAM, EARLY, "SAM.rho = 0.3")
    assert before == {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(run_dir.OtherExperimentError, match="holds no experiment of ours"):
        train(foreign, 20)
    assert [file.name for file in foreign.iterdir()] == ["notes.txt"]


def test_a_damaged_checkpoint_is_passed_over_and_the_result_is_the_same(finished, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(finished[0], directory)
    cut = directory / "checkpoints/checkpoint_00000006.npz"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="truncated.*Trying the checkpoint before"):
        again = train(directory, 6, SAM, EARLY, "outer_train.checkpoint_every = 5")
    np.testing.assert_array_equal(flat(again.theta), flat(finished[1].theta))
    for file in (directory / "checkpoints").iterdir():
        file.write_bytes(b"nothing")
    with (
        pytest.warns(UserWarning, match="Trying"),
        pytest.raises(serialization.FileFormatError, match="truncated"),
    ):
        train(directory, 20, SAM, EARLY, "outer_train.checkpoint_every = 5")


def test_divergence_stops_the_run_and_names_the_last_good_checkpoint(tmp_path):
    with pytest.raises(
        DivergedError, match="not finite and were skipped, after 0 returns"
    ) as error:
        train(tmp_path / "bad", 50, "LSTMLOpt.output_scale = 1e38", "outer_train.max_nonfinite = 3")
    assert "There is no checkpoint yet" in str(error.value)
    assert "theta_learning_rate.learning_rate" in str(error.value)


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("SAMM.rho = 1", "Unknown gin configurable 'SAMM'. Did you mean 'SAM'?"),
        ("SAM.rhoo = 1", "Unknown parameter of SAM 'rhoo'. Did you mean 'rho'?"),
        ("outer_train.task = @ImageMLP_Digit_20_Relu()", "Did you mean 'ImageMLP_Digits_20_Relu'?"),
    ],
)
def test_unknown_gin_names_get_the_nearest_one_on_one_line(binding, message):
    with pytest.raises(errors.UnknownNameError) as error:
        gin_files.parse_gin([], [binding])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("outer_train.task = 'ImageMLP_Digits_20_Sigmoidd'", "Did you mean"),
        ("RegularizedTruncatedGrad.unroll_length = 3", "does not divide the trajectory of 10"),
        ("SAM.rho = -1.0\n" + SAM, "SAM.rho = -1.0"),
        ("RegularizedTruncatedStep.num_tasks = 0", "num_tasks = 0"),
        ("outer_train.num_outer_steps = 0", "num_outer_steps = 0"),
    ],
)
def test_bad_configurations_are_refused_before_anything_is_written(tmp_path, extra, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", 5, *extra.split("\n"))
    assert not (tmp_path / "run").exists()


def test_the_launcher_ends_with_one_line_on_a_user_s_error(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "regularized_lopt.outer_train",
            f"--config_file={REPOSITORY / 'gin_configs/digits_mlp_none.gin'}",
            f"--train_log_dir={tmp_path / 'run'}",
            "--gin_bindings=outer_train.task = 'ImageMLP_Digits_20_Sigmoi'",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert "Did you mean 'ImageMLP_Digits_20_Sigmoid'?" in line
    assert "Traceback" not in done.stderr


@needs_mnist
@pytest.mark.slow
def test_a_few_steps_on_mnist(tmp_path):
    result = train(tmp_path / "run", 2, "outer_train.task = 'ImageMLP_Mnist_20_Sigmoid'")
    assert json.loads((tmp_path / "run/experiment.json").read_text())["task"].startswith("ImageMLP")
    assert np.all(np.isfinite(flat(result.theta)))
