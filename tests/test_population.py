"""Populations: every member is the run that it would be alone."""

import collections
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import digits_config
from helpers import stop_at
from learned_optimization.tasks import quadratics
from test_run import flat, train

import regularized_lopt
from regularized_lopt import devices, run_files, serialization
from regularized_lopt.interruption import Interrupted
from regularized_lopt.outer_training import doses, parallelism, population, run_dir
from regularized_lopt.outer_training.programs import Programs
from regularized_lopt.outer_training.requests import Judgement
from regularized_lopt.outer_training.run_dir import OtherExperimentError
from regularized_lopt.outer_training.session import DivergedError

SPACES = [
    "RegularizedTruncatedStep.regularizer = 'sam'",
    "RegularizedTruncatedGrad.regularizer = 'l2'",
    # As many validations in each stage, whatever rounding makes of the losses.
    "Curriculum.min_validations = 2",
    "Curriculum.max_validations = 2",
]
SEEDS = (0, 1, 0)
DOSES = {
    "SAM.rho": (0.5, 0.0, 0.25),
    "L2.strength": (0.01, 0.1, 0.0),
    "theta_learning_rate.learning_rate": (1e-3, 3e-3, 1e-3),
}
NAMES = [one.name for one in population.members(SEEDS, DOSES)]


def curves(directory):
    """Of a run, without the time it took."""
    columns = run_files.load_metrics(directory)
    columns.pop("seconds")
    return columns


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The directories of the members' own runs."""
    path = tmp_path_factory.mktemp("alone")
    for place, name in enumerate(NAMES):
        own = [f"{dose} = {values[place]}" for dose, values in DOSES.items()]
        train(path / name, 10, *SPACES, *own, f"outer_train.seed = {SEEDS[place]}")
    return path


# All in one program; two and one, filled up to two; one after the other in two threads.
@pytest.mark.parametrize("way", [(3, 1), (2, 1), (1, 2)])
def test_a_member_is_the_run_that_it_is_alone(tmp_path, alone, way):
    found = train(tmp_path, 10, *SPACES, seeds=SEEDS, doses=DOSES, parallelism=way)
    assert list(found) == NAMES
    for name in NAMES:
        one, other = curves(tmp_path / name), curves(alone / name)
        assert len(one["loss"]) == 10
        assert one["trajectory_length"][-1] == 20
        for column, values in one.items():
            np.testing.assert_allclose(values, other[column], 1e-4, 1e-6, err_msg=column)
        for file in (run_files.EXPERIMENT_FILE, run_files.CONFIG_FILE):
            assert (tmp_path / name / file).read_text() == (alone / name / file).read_text()
        theta = regularized_lopt.load(tmp_path / name)
        assert theta.metadata["seed"] == SEEDS[NAMES.index(name)]
        np.testing.assert_array_equal(flat(theta.theta), flat(found[name].theta))
    rho = regularized_lopt.load(tmp_path / NAMES[2]).metadata["regularizer_optimizee_space"]["rho"]
    assert rho == 0.25


def test_doses_decide_what_is_learned(alone):
    thetas = [flat(regularized_lopt.load(alone / name).theta) for name in NAMES]
    assert not np.allclose(thetas[0], thetas[2])


def test_members_take_curriculum_decisions_of_their_own(tmp_path, monkeypatch):
    """From the same losses the same ones as alone; one that ends does not stop the others."""
    counts = collections.Counter()

    def drawn(self, asked):
        """Losses by member, stage and validation, whatever theta is."""
        keys = [tuple(np.asarray(one.key).tolist()) for one in asked]
        counts.update(set(keys))  # A program may be filled up with copies of a member.
        losses = [np.random.default_rng([*key, counts[key]]).uniform() for key in keys]
        return [Judgement(float(loss), None) for loss in losses]

    monkeypatch.setattr(Programs, "judgements", drawn)
    config = ["Curriculum.max_validations = 9", "Curriculum.train_lengths = (5, 10)"]
    seeds = (0, 1, 2)
    train(tmp_path, 24, *config, seeds=seeds, parallelism=(3, 1))
    lengths = set()
    for seed in seeds:
        counts.clear()
        train(tmp_path / "alone" / str(seed), 24, *config, f"outer_train.seed = {seed}")
        one, other = curves(tmp_path / f"seed{seed}"), curves(tmp_path / "alone" / str(seed))
        for column in ("outer_step", "trajectory_length", "validation_loss"):
            np.testing.assert_array_equal(one[column], other[column])
        lengths.add(tuple(one["trajectory_length"]))
    assert len(lengths) > 2
    assert len({len(of) for of in lengths}) > 1


def test_loading_a_population_names_its_members(tmp_path):
    train(tmp_path, 1, seeds=(0, 1), parallelism=(1, 1))
    with pytest.raises(FileNotFoundError, match=r"a population's directory: .*\(seed0, seed1\)"):
        regularized_lopt.load(tmp_path)


def test_a_population_resumes_exactly(tmp_path):
    config = ["outer_train.checkpoint_every = 3", *SPACES]
    arguments = {"seeds": (3, 4), "doses": {"SAM.rho": (0.1, 0.2)}, "parallelism": (2, 1)}
    train(tmp_path / "run", 5, *config, **arguments)
    resumed = train(tmp_path / "run", 10, *config, **arguments)
    whole = train(tmp_path / "whole", 10, *config, **arguments)
    for name in whole:
        np.testing.assert_array_equal(flat(resumed[name].theta), flat(whole[name].theta))


def test_a_signal_stops_every_member_after_a_checkpoint(tmp_path, monkeypatch):
    stop_at(monkeypatch, 2)
    arguments = {"seeds": (0, 1), "parallelism": (2, 1)}
    with pytest.raises(Interrupted, match="Stopped by SIGTERM after outer step") as error:
        train(tmp_path / "run", 5, **arguments)
    assert error.value.exit_code == 143
    monkeypatch.undo()
    for seed in (0, 1):
        assert list((tmp_path / "run" / f"seed{seed}" / "checkpoints").glob("checkpoint_*"))
    resumed = train(tmp_path / "run", 5, **arguments)
    whole = train(tmp_path / "whole", 5, **arguments)
    for name in whole:
        np.testing.assert_array_equal(flat(resumed[name].theta), flat(whole[name].theta))


def test_one_that_diverges_does_not_stop_the_others(tmp_path):
    config = ["outer_train.max_nonfinite = 3", "outer_train.max_rollbacks = 0"]
    rates = {"theta_learning_rate.learning_rate": (1e-3, 1e38)}
    with pytest.raises(DivergedError, match=r"^1 of 2 members diverged, .*=1e\+38: Outer training"):
        train(tmp_path, 12, *config, seeds=(0, 0), doses=rates, parallelism=(2, 1))
    good, bad = population.members((0, 0), rates)
    assert curves(tmp_path / good.name)["outer_step"][-1] == 12
    assert np.isfinite(flat(regularized_lopt.load(tmp_path / good.name).theta)).all()
    assert curves(tmp_path / bad.name)["outer_step"][-1] < 12


def test_the_parallelism_is_measured_once(tmp_path, monkeypatch):
    train(tmp_path, 2, seeds=(0, 1))
    chosen = json.loads((tmp_path / run_files.PARALLELISM_FILE).read_text())
    ((platform, way),) = chosen.items()
    assert platform.startswith("1 x ")
    assert way["batch"] in (1, 2)

    def again(*_):
        raise AssertionError("It was measured again.")

    monkeypatch.setattr(population, "choose", again)
    train(tmp_path, 3, seeds=(0, 1))


def test_a_member_that_is_gone_is_told_to_begin_anew(tmp_path, capsys):
    arguments = {"seeds": (0, 1), "parallelism": (2, 1)}
    train(tmp_path, 2, **arguments)
    shutil.rmtree(tmp_path / "seed1")
    assert "begun anew" not in capsys.readouterr().out
    train(tmp_path, 3, **arguments)
    assert "of seed1: begun anew, where the others go on" in capsys.readouterr().out
    assert curves(tmp_path / "seed1")["outer_step"][-1] == 3


def test_a_damaged_checkpoint_is_named_with_its_member(tmp_path):
    arguments = {"seeds": (0, 1), "parallelism": (2, 1)}
    train(tmp_path, 2, **arguments)
    (file,) = (tmp_path / "seed1" / "checkpoints").glob("checkpoint_*")
    file.write_bytes(file.read_bytes()[:-100])
    with (
        pytest.warns(UserWarning, match=r"seed1.checkpoints.checkpoint_00000002.npz"),
        pytest.raises(serialization.FileFormatError, match=r"seed1.checkpoints"),
    ):
        train(tmp_path, 3, **arguments)


BAD = {
    "none": ({"seeds": ()}, "outer_train.seeds is empty: give one per member."),
    "twice": ({"seeds": (3, 4, 3)}, "outer_train.seeds: seed 3 is there twice: two members"),
    "twice with doses": (
        {"seeds": (3, 3), "doses": {"SAM.rho": (0.5, 0.5)}},
        "seed 3 is there twice with the same doses",
    ),
    "negative seed": ({"seeds": (-1,)}, "outer_train.seeds = -1"),
    "unequal lengths": (
        {"seeds": (0, 1), "doses": {"SAM.rho": (0.5,)}},
        "outer_train.doses\\['SAM.rho'\\] has 1 values, and outer_train.seeds 2 members",
    ),
    "without seeds": ({"doses": {"SAM.rho": (0.5,)}}, "outer_train.doses needs outer_train.seeds"),
    "a shape": (
        {"seeds": (0, 1), "doses": {"RegularizedTruncatedStep.num_tasks": (1, 2)}},
        "'RegularizedTruncatedStep.num_tasks' is fixed when the program is compiled",
    ),
    "static": (
        {"seeds": (0, 1), "doses": {"ASAM.eta": (0.1, 0.2)}},
        "'ASAM.eta' is fixed when the program is compiled",
    ),
    "no parameter": (
        {"seeds": (0, 1), "doses": {"SAM.rhoo": (0.1, 0.2)}},
        "Unknown parameter of SAM in outer_train.doses 'rhoo'. Did you mean 'rho'",
    ),
    "no configurable": (
        {"seeds": (0, 1), "doses": {"SAMM.rho": (0.1, 0.2)}},
        "outer_train.doses: 'SAMM.rho' is no gin parameter",
    ),
    "negative": (
        {"seeds": (0, 1), "doses": {"SAM.rho": (0.1, -0.2)}},
        "outer_train.doses\\['SAM.rho'\\] = -0.2: it must be 0 or greater",
    ),
    "not finite in float32": (
        {"seeds": (0, 1), "doses": {"SAM.rho": (0.1, 1e300)}},
        "outer_train.doses\\['SAM.rho'\\] = 1e\\+300: it must be 0 or greater, and finite",
    ),
    "two zeros": (
        {"seeds": (0, 0), "doses": {"SAM.rho": (0.0, -0.0)}},
        "seed 0 is there twice with the same doses",
    ),
    "a shape, and twice": (
        {"seeds": (0, 0), "doses": {"LSTMLOpt.hidden_size": (8, 8)}},
        "'LSTMLOpt.hidden_size' is fixed when the program is compiled",
    ),
    "out of its range": (
        {"seeds": (0, 1), "doses": {"theta_learning_rate.learning_rate": (0.1, 0.0)}},
        "theta_learning_rate.learning_rate = 0.0: it must be greater than 0",
    ),
    "one parameter twice": (
        {"seeds": (0,), "doses": {"SAM.rho": (0.1,), "regularizers.sam.SAM.rho": (0.2,)}},
        "'SAM.rho' and 'regularizers.sam.SAM.rho' are the same parameter",
    ),
    "no gin": (
        {"seeds": (0,), "doses": {"a b/SAM.rho": (0.1,)}},
        "outer_train.doses: 'a b/SAM.rho' is no gin parameter",
    ),
    "long names": (
        {"seeds": (0,), "doses": {f"{'a' * 200}/SAM.rho": (0.1,)}},
        "which is longer than 200 characters",
    ),
    "overruled": (
        {"seeds": (0, 1), "doses": {"SAM.rho": (0.1, 0.2)}, "asked_for": ["SAM.rho = 0.3"]},
        "SAM.rho is read by nothing: outer_train.doses takes its place",
    ),
    "a seed beside seeds": (
        {"seeds": (0, 1), "asked_for": ["outer_train.seed = 5"]},
        "outer_train.seed is read by nothing: outer_train.seeds takes its place",
    ),
    "read by nothing": (
        {"seeds": (0, 1), "doses": {"GSAM.rho": (0.1, 0.2)}},
        "GSAM.rho = .* is read by nothing: no regularizer here is gsam",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, case):
    arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        train(tmp_path / "run", 2, *SPACES, **arguments)
    assert "\n" not in str(error.value).partition("\n  In call to configurable")[0]
    assert not (tmp_path / "run").exists()


def begun(directory, seeds):
    """A population's directory, as it is before anything is trained."""
    with population.claimed(directory, population.members(seeds), overwrite=False):
        pass


def test_a_directory_with_other_members_is_refused(tmp_path):
    begun(tmp_path / "run", (0, 1))
    with pytest.raises(OtherExperimentError, match=r"other members \(seed0, seed1\); nothing was"):
        train(tmp_path / "run", 2, seeds=(0, 2), parallelism=(1, 1))
    assert not (tmp_path / "run" / "seed2").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(OtherExperimentError, match=r"holds no population \(population.json is"):
        train(tmp_path / "other", 2, seeds=(0, 1))


def test_a_dose_reaches_whatever_reads_it_while_it_is_given():
    several = doses.Doses(("SAM.rho", "L2.strength"))
    rho, strength = several.schedules.values()
    with several.given((0.5, 2.0)):
        assert (float(rho(0)), float(strength(7))) == (0.5, 2.0)
        with several.given((1.5, 3.0)):
            assert float(rho(0)) == 1.5
        assert float(rho(0)) == 0.5


def test_a_dose_that_is_read_when_something_is_made_is_refused(tmp_path):
    config = [
        "RegularizedTruncatedGrad.regularizer = 'gsam'",
        "GSAM.rho = @proportional_schedule()",
        "proportional_schedule.minimum = 0.0",
        "proportional_schedule.maximum = 0.5",
        "proportional_schedule.num_steps = 10",
        "proportional_schedule.learning_rate = @theta_learning_rate()",
    ]
    rates = {"theta_learning_rate.learning_rate": (0.01, 0.02)}
    with pytest.raises(ValueError, match=r"read when something else is made, such as"):
        train(tmp_path / "run", 2, *config, seeds=(0, 0), doses=rates)


def test_numbers_may_be_numpys_and_directories_tell_all_digits():
    near = (np.float32(0.5), 0.12345671, 0.12345672)
    found = population.members(np.arange(3).tolist(), {"SAM.rho": near})
    assert [one.name for one in population.members((np.int64(3),))] == ["seed3"]
    assert [one.name.partition("=")[2] for one in found] == ["0.5", "0.12345671", "0.12345672"]
    json.dumps([one.doses for one in found])
    with pytest.raises(ValueError, match="seed 0 is there twice with the same doses"):
        population.members((0, 0), {"SAM.rho": (1, 1.0)})


def test_a_signal_is_not_hidden_by_a_member_that_has_diverged(tmp_path, monkeypatch):
    stop_at(monkeypatch, 8)
    config = ["outer_train.max_nonfinite = 3", "outer_train.max_rollbacks = 0"]
    rates = {"theta_learning_rate.learning_rate": (1e38, 1e-3)}
    with pytest.raises(Interrupted):
        train(tmp_path, 12, *config, seeds=(0, 0), doses=rates, parallelism=(2, 1))


def test_overwriting_deletes_the_members_of_before_and_only_if_no_one_trains_them(tmp_path):
    arguments = {"parallelism": (1, 1), "overwrite": True}
    train(tmp_path, 2, seeds=(0, 1), **arguments)
    with run_dir.claimed(tmp_path, lambda: None), pytest.raises(run_dir.InUseError):
        train(tmp_path, 2, seeds=(0, 2), **arguments)
    assert (tmp_path / "seed1").is_dir()
    train(tmp_path, 2, seeds=(0, 2), **arguments)
    assert not (tmp_path / "seed1").exists()
    assert (tmp_path / "seed2" / "theta.npz").is_file()


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '[{"a": 1}]', "null", "\xff"])
def test_damaged_files_of_a_population_are_named_or_made_again(tmp_path, content):
    file = tmp_path / run_files.POPULATION_FILE
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(serialization.FileFormatError, match=r"population.json is damaged"):
        train(tmp_path, 2, seeds=(0, 1), parallelism=(1, 1))
    choice = tmp_path / run_files.PARALLELISM_FILE
    choice.write_bytes(content.encode("latin-1"))
    way = devices.Parallelism(2, 1)
    assert parallelism.kept(tmp_path, lambda: way, "here") == way
    assert parallelism.kept(tmp_path, lambda: 1 / 0, "here") == way
    choice.write_text('{"here": {"batch": 0, "threads": 1}}')
    assert parallelism.kept(tmp_path, lambda: way, "here") == way


def test_what_a_killed_process_leaves_as_it_begins_is_in_no_ones_way(tmp_path):
    for path in (tmp_path, tmp_path / "seed0"):
        path.mkdir(exist_ok=True)
        (path / f"{serialization.SCRATCH_PREFIX}population.json-1").touch()
    (tmp_path / "seed0" / ".lock").touch()
    begun(tmp_path / "seed0", (0,))
    assert (tmp_path / "seed0" / run_files.POPULATION_FILE).is_file()


def test_iterators_that_members_would_share_are_refused(tmp_path):
    with pytest.raises(ValueError, match="draws batches from iterators of its own"):
        train(tmp_path / "run", 2, task=quadratics.BatchQuadraticTask(), seeds=(0, 1))


@pytest.mark.slow
def test_devices_share_the_members(tmp_path):
    """Four members on four devices give the thetas of four on one."""
    several = {"seeds": (0, 1, 2, 3), "doses": {"SAM.rho": (0.0, 0.1, 0.2, 0.3)}}
    arguments = {**several, "parallelism": (4, 1)}
    lines = digits_config(4, *SPACES)
    lines += [f"outer_train.{name} = {value}" for name, value in arguments.items()]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "regularized_lopt.outer_train"),
            *(f"--gin_bindings={line}" for line in lines),
            f"--train_log_dir={tmp_path / '4'}",
        ],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "4"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Outer training done, 4 steps: ") == 4
    train(tmp_path / "1", 4, *SPACES, **arguments)
    for one in population.members(**several):
        thetas = [regularized_lopt.load(tmp_path / count / one.name) for count in ("1", "4")]
        assert [theta.metadata["devices"] for theta in thetas] == [1, 4]
        np.testing.assert_allclose(*[flat(theta.theta) for theta in thetas], rtol=1e-4, atol=1e-5)
