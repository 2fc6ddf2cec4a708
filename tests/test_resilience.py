"""Outer training that is stopped, crowded out, starved or thrown off, and goes on."""

import errno
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import filelock
import gin
import jax
import numpy as np
import pytest
from conftest import REPOSITORY, digits_config
from helpers import stop_at
from test_run import flat, train
from test_sources import poisoned

import regularized_lopt
from regularized_lopt import serialization, zoo
from regularized_lopt.interruption import Interrupted
from regularized_lopt.measure import StudyResults, flatness, selections
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure.flatness import FlatnessConfig
from regularized_lopt.outer_training import checkpoint, run_dir
from regularized_lopt.outer_training.loop import Loop
from regularized_lopt.outer_training.programs import Programs
from regularized_lopt.outer_training.run import OutOfMemoryError
from regularized_lopt.outer_training.session import DivergedError
from regularized_lopt.report import html, tables, write
from regularized_lopt.run_files import load_metrics, read_metrics
from regularized_lopt.study import meta_test
from regularized_lopt.tasks import sources

TREE = {"a": np.arange(3.0)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of a run of five steps that nothing disturbed, and its theta."""
    path = tmp_path_factory.mktemp("whole")
    return path, flat(train(path, 5).theta)


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path / "c", keep=3)
    assert checkpoints.restore(TREE) is None
    for step in range(1, 6):
        checkpoints.save(step, {"a": np.full(3, step)}, {"step": step})
        if step == 2:
            checkpoints.save_best({"a": np.full(3, step)}, {"step": step})
    tree, metadata = checkpoints.restore({"a": np.zeros(3, int)})
    assert metadata == {"step": 5}
    np.testing.assert_array_equal(tree["a"], 5)
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert names == ["best.npz", *(f"checkpoint_{step:08d}.npz" for step in (3, 4, 5))]
    assert serialization.load_flat(tmp_path / "c/best.npz")[1]["metadata"] == {"step": 2}
    other = checkpoint.Checkpoints(tmp_path / "c", config_hash="another")
    with (
        pytest.warns(UserWarning, match="of another experiment"),
        pytest.raises(serialization.FileFormatError, match="of another experiment"),
    ):
        other.restore({"a": np.zeros(3, int)})


def test_the_loop_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    release = threading.Event()
    save = serialization.save

    def slow(*args):
        release.wait(30)
        save(*args)

    monkeypatch.setattr(checkpoint.serialization, "save", slow)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, TREE, {})
    assert checkpoints.last() is None  # And we are here nevertheless.
    release.set()
    checkpoints.wait()
    assert checkpoints.last().name == "checkpoint_00000001.npz"


@pytest.mark.parametrize("call", ["open", "write", "short write", "fsync", "close", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_whatever_call_fails_the_checkpoint_before_loads(tmp_path, monkeypatch, call, code):
    """Each fails at its first, second, ... use in turn, until one write goes through."""
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, TREE, {"step": 1})
    checkpoints.wait()
    name = call.rpartition(" ")[2]
    real = getattr(os, name)
    for nth in range(20):
        uses = iter(range(1000))

        def faulty(*args, nth=nth, uses=uses, **kwargs):
            if next(uses) == nth:
                if call == "short write":
                    return real(args[0], bytes(args[1])[: max(1, len(args[1]) // 2)])
                if call == "close":
                    real(*args)
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        monkeypatch.setattr(serialization.os, name, faulty)
        checkpoints.save(2 + nth, TREE, {"step": 2 + nth})
        error = None
        try:
            checkpoints.wait()
        except OSError as raised:
            error = raised
        monkeypatch.setattr(serialization.os, name, real)
        leftovers = [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
        assert not leftovers
        tree, metadata = checkpoints.restore(TREE)
        np.testing.assert_array_equal(tree["a"], TREE["a"])
        assert metadata["step"] in (1, *range(2, 3 + nth))
        if error is None:
            assert metadata["step"] == 2 + nth
            break
        assert error.errno == code
        assert "goes on from there once there is room" in str(error)
    else:
        pytest.fail("no write went through")


def test_scratch_files_of_a_killed_process_are_removed(tmp_path):
    left = tmp_path / f"{serialization.SCRATCH_PREFIX}checkpoint_00000001.npz-1"
    left.write_bytes(b"half")
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, TREE, {})
    checkpoints.wait()
    assert not left.exists()


def test_half_a_line_of_metrics_is_no_line(tmp_path):
    (tmp_path / "metrics.csv").write_text("outer_step,loss\n10,0.5\n120,0.25\n13")
    assert [row["outer_step"] for row in read_metrics(tmp_path)] == [10, 120]


def test_the_curves_of_a_resumed_run_are_those_of_one_that_went_on(tmp_path, whole):
    """Byte for byte, but for the seconds."""
    train(tmp_path / "resumed", 3)
    train(tmp_path / "resumed", 5)
    on, resumed = (
        [line.rpartition(b",")[0] for line in (path / "metrics.csv").read_bytes().split(b"\r\n")]
        for path in (whole[0], tmp_path / "resumed")
    )
    assert len(on) == 7
    assert resumed == on


def test_fewer_outer_steps_than_a_run_has_are_refused_and_leave_it_alone(whole):
    config = (whole[0] / "config.gin").read_bytes()
    with pytest.raises(ValueError, match=r"has 5 outer steps already, more than .* = 4"):
        train(whole[0], 4)
    assert (whole[0] / "config.gin").read_bytes() == config


_RACE = """
import pathlib, sys, time
from regularized_lopt.outer_training import run_dir
print("ready", flush=True)
begin, path = float(sys.stdin.readline()), pathlib.Path(sys.argv[1])
for slot in range(20):
    while time.time() < begin + slot / 10:
        pass
    try:
        with run_dir.RunDir(path / str(slot), {"task": "a"}):
            print("claimed", flush=True)
            time.sleep(0.05)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


def test_of_processes_that_begin_at_once_all_but_one_are_told_so(tmp_path):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACE, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    begin = time.time() + 0.2
    for racer in racers:
        racer.stdin.write(f"{begin}\n")
        racer.stdin.flush()
    outcomes = [line for racer in racers for line in racer.communicate()[0].split()]
    assert len(outcomes) == 40
    assert set(outcomes) == {"claimed", "InUseError"}


def test_a_second_process_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path):
    directory = tmp_path / "run"
    train(directory, 2)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import filelock, time; lock = filelock.FileLock({str(directory / '.lock')!r}); "
            "lock.acquire(); print('held', flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(run_dir.InUseError, match="Another process is writing to"):
        train(directory, 3)
    holder.kill()
    holder.wait()
    train(directory, 3)
    with filelock.FileLock(directory / ".lock", timeout=0):  # Let go at the end.
        pass


def test_another_experiment_is_overwritten_when_asked_to(tmp_path):
    directory = tmp_path / "run"
    train(directory, 4)
    mine = directory / "notes.txt"
    mine.write_text("mine")
    with pytest.raises(run_dir.OtherExperimentError, match=r"--warm_start.*--overwrite"):
        train(directory, 4, "outer_train.seed = 1")
    fresh = train(tmp_path / "fresh", 4, "outer_train.seed = 1")
    again = train(directory, 4, "outer_train.seed = 1", overwrite=True)
    np.testing.assert_array_equal(flat(again.theta), flat(fresh.theta))
    assert load_metrics(directory)["outer_step"].tolist() == [1, 2, 3, 4]
    assert mine.read_text() == "mine"


def test_a_warm_start_begins_with_another_run_s_theta(tmp_path):
    first = train(tmp_path / "first", 4)
    still = "theta_learning_rate.learning_rate = 1e-12"
    warm = train(tmp_path / "warm", 1, still, warm_start=tmp_path / "first")
    np.testing.assert_allclose(flat(warm.theta), flat(first.theta), atol=1e-9)
    with pytest.raises(ValueError, match=r"warm_start: .* holds a LSTMLOpt with"):
        train(tmp_path / "other", 1, "LSTMLOpt.hidden_size = 7", warm_start=tmp_path / "first")


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_a_checkpoint_and_the_command_resumes_it(tmp_path, signum):
    """The launcher: its exit code says what ended it; the result is that of an undisturbed run."""
    bindings = digits_config(60, "outer_train.checkpoint_every = 1000")
    command = [
        sys.executable,
        "-m",
        "regularized_lopt.outer_train",
        *(f"--gin_bindings={line}" for line in bindings),
        f"--train_log_dir={tmp_path / 'run'}",
    ]
    metrics = tmp_path / "run/metrics.csv"
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(read_metrics(tmp_path / "run")) < 8:
        time.sleep(0.02)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signum, errors[-2000:]
    assert f"Stopped by {signal.Signals(signum).name} after outer step" in errors
    assert "Traceback" not in errors
    assert metrics.read_text().endswith("\n")
    if signum == signal.SIGINT:  # The rest is the same.
        return
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    undisturbed = train(tmp_path / "undisturbed", 60, "outer_train.checkpoint_every = 1000")
    np.testing.assert_array_equal(
        flat(regularized_lopt.load(tmp_path / "run").theta), flat(undisturbed.theta)
    )


def test_a_signal_in_the_library_raises_and_handlers_are_put_back(tmp_path, whole, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    stop_at(monkeypatch, 2)
    with pytest.raises(Interrupted, match="Stopped by SIGTERM after outer step 3") as error:
        train(tmp_path / "run", 5)
    assert error.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.undo()
    resumed = train(tmp_path / "run", 5)
    np.testing.assert_array_equal(flat(resumed.theta), whole[1])


def test_divergence_goes_back_to_the_checkpoint_with_a_lower_rate(tmp_path, monkeypatch, capsys):
    """Non-finite estimates from step 7 on, as long as the learning rate is what it was."""
    estimate = regularized_lopt.RegularizedTruncatedGrad.estimate

    def poisoned(self, theta, state, key, data, outer_state):
        found = estimate(self, theta, state, key, data, outer_state)
        scale = flat_scale["rate_scale"]
        bad = (outer_state.outer_iteration >= 6) & (scale > 0.3)
        zero = jax.tree.map(lambda g: jax.numpy.where(bad, 0.0, g), found.grad)
        return found.replace(grad=zero, nonfinite=bad)

    flat_scale = {}
    update = Programs._update

    def with_scale(self, state, *of):
        flat_scale["rate_scale"] = state.rate_scale
        return update(self, state, *of)

    monkeypatch.setattr(regularized_lopt.RegularizedTruncatedGrad, "estimate", poisoned)
    monkeypatch.setattr(Programs, "_update", with_scale)
    config = ["outer_train.max_nonfinite = 2", "outer_train.checkpoint_every = 3"]
    train(tmp_path / "run", 10, *config)
    columns = load_metrics(tmp_path / "run")
    assert columns["outer_step"].tolist() == list(range(1, 11))
    assert columns["rollbacks"][-1] == 2  # 1 -> 0.5 -> 0.25.
    assert columns["nonfinite"][-1] == 4
    assert np.all(np.isfinite(columns["loss"]))
    out = capsys.readouterr()
    assert "back to outer step 6, theta's learning rate times 0.25" in out.out + out.err
    with pytest.raises(
        DivergedError, match=r"after 1 returns .* The last good checkpoint is .*0006"
    ):
        train(tmp_path / "stops", 10, *config, "outer_train.max_rollbacks = 1")


def test_a_full_disk_ends_the_run_with_one_line_and_the_checkpoint_before(
    tmp_path, whole, monkeypatch
):
    train(tmp_path / "run", 3)
    write = serialization.write_atomically

    def full(path, content):
        if "checkpoint_" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(serialization, "write_atomically", full)
    with pytest.raises(OSError, match=r"could not be written .*No space left.*checkpoint_00000003"):
        train(tmp_path / "run", 5)
    monkeypatch.undo()
    resumed = train(tmp_path / "run", 5)
    np.testing.assert_array_equal(flat(resumed.theta), whole[1])


def test_the_step_is_compiled_once_for_any_theta_and_all_stages(tmp_path, caplog, monkeypatch):
    init = regularized_lopt.LSTMLOpt.init

    def weak(self, rng):
        theta = init(self, rng)
        theta["linear"]["b"] = jax.numpy.zeros(1) + jax.numpy.asarray(0.0)
        return jax.tree.map(lambda x: x * 1.0, theta) | {"unused": jax.numpy.asarray(1.0)}

    monkeypatch.setattr(regularized_lopt.LSTMLOpt, "init", weak)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        train(tmp_path / "run", 5, "Curriculum.max_validations = 1")
    assert load_metrics(tmp_path / "run")["trajectory_length"].tolist() == [10.0] * 4 + [20.0]
    compiled = [r for r in caplog.records if "Compiling jit(_outer_step)" in r.getMessage()]
    assert len(compiled) == 1


@pytest.mark.parametrize("changes", ["train_image", "train_label"])
@pytest.mark.filterwarnings("ignore:Digits's train")
def test_data_without_anything_to_learn_give_no_nan(tmp_path, monkeypatch, changes):
    monkeypatch.setenv("REGULARIZED_LOPT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setitem(sources.SPECS, "Digits", poisoned(**{changes: lambda x: x * 0}))
    result = train(tmp_path / "run", 4)
    assert np.all(np.isfinite(flat(result.theta)))
    assert np.all(np.isfinite(load_metrics(tmp_path / "run")["loss"]))


@pytest.mark.filterwarnings("error:All-NaN")
def test_runs_that_diverge_are_called_so_and_leave_no_nan_in_the_report(tmp_path):
    """One of two optimizers throws the network away; the other's rows are as ever."""
    opts = {
        "kept": optimizers_lib.baseline("SGD", 0.1),
        "thrown": optimizers_lib.baseline("SGD", 1e30),
    }
    result = meta_test(
        opts,
        "ImageMLP_Digits_20_Sigmoid",
        num_runs=2,
        num_steps=4,
        baselines=(),
        flatness_config=FlatnessConfig(radii=(0.01,), num_steps=2, num_examples=64, num_probes=1),
        progress=False,
    )
    page = write.write(StudyResults("Diverged", "", [result]), tmp_path)
    html.write(page, tmp_path / "report.html")
    text = re.sub(r"<img.*?>|<style>.*?</style>", "", (tmp_path / "report.html").read_text())
    words = set(re.findall(r"[a-z]+", text.lower()))
    assert {"diverged", "kept"} <= words
    assert not {"nan", "inf"} & words
    assert "nan" not in (tmp_path / "table.csv").read_text().lower()


def test_a_meta_training_that_diverged_looks_no_better_than_chance(tmp_path):
    """Its networks' logits are around 1e8: finite, and worth nothing."""
    chance = np.log(10)
    train(tmp_path / "run", 4, "theta_learning_rate.learning_rate = 1e6")
    assert zoo.validation_loss(tmp_path / "run") > 0.999 * chance
    gin.clear_config()
    result = meta_test(
        {"thrown": zoo.load(tmp_path / "run"), "kept": optimizers_lib.baseline("SGD", 0.3)},
        "ImageMLP_Digits_20_Relu",
        num_runs=1,
        num_steps=30,
        baselines=(),
        flatness_config=FlatnessConfig(radii=(0.01,), num_steps=2, num_examples=64, num_probes=0),
        progress=False,
    )
    thrown, kept = selections.optimizers(result)
    for name in ("train_loss", "test_loss"):
        assert selections.final(kept, name) < chance < 1.001 * selections.final(thrown, name)
    assert selections.accuracy(thrown) < 15 < selections.accuracy(kept)
    assert thrown["around_loss"].sel(point="completion") > 0.999 * chance
    for name in flatness.PROPERTIES:
        wild, tame = (selections.last(one, name).sel(point="completion") for one in (thrown, kept))
        assert np.all(np.isnan(wild.sel(scale="absolute")))  # 0.01 rounds away.
        assert wild.sel(scale="relative") > tame.sel(scale="relative")
    _, (row, other) = tables.property_table(result, "completion")
    assert "not measured (1 of 1)" in row
    assert not any("not measured" in cell for cell in other)


@pytest.mark.parametrize("name", ["train_log_dir", "parent"])
def test_a_directory_that_cannot_be_written_to_is_named(tmp_path, monkeypatch, name):
    directory = tmp_path / "parent" / "run"

    def read_only(path, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    if name == "parent":
        monkeypatch.setattr(pathlib.Path, "mkdir", read_only)
    else:
        directory.mkdir(parents=True)
        monkeypatch.setattr(run_dir.filelock.FileLock, "acquire", read_only)
    with pytest.raises(OSError, match=r"cannot be written to .*Read-only.*--train_log_dir"):
        train(directory, 2)


def test_out_of_memory_names_what_needs_less(tmp_path):
    """Three million trajectories at once: XLA refuses for real."""
    with pytest.raises(OutOfMemoryError, match=r"num_tasks = 3000000.*unroll_length") as error:
        train(tmp_path / "run", 2, "RegularizedTruncatedStep.num_tasks = 3_000_000")
    assert "remat" in str(error.value)


def test_out_of_memory_on_the_way_leaves_the_checkpoint(tmp_path, whole, monkeypatch):
    step = Loop.step

    def full(self, state, stage):
        if int(state.outer_iteration) == 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
        return step(self, state, stage)

    monkeypatch.setattr(Loop, "step", full)
    with pytest.raises(OutOfMemoryError, match="Out of memory allocating 9 bytes"):
        train(tmp_path / "run", 5, "outer_train.checkpoint_every = 3")
    monkeypatch.undo()
    resumed = train(tmp_path / "run", 5, "outer_train.checkpoint_every = 3")
    np.testing.assert_array_equal(flat(resumed.theta), whole[1])


def test_a_clock_that_jumps_changes_nothing(tmp_path, whole, monkeypatch):
    now = iter(np.random.default_rng(0).uniform(-1e9, 4e9, 100_000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    jumped = train(tmp_path / "jumped", 5)
    monkeypatch.undo()
    np.testing.assert_array_equal(flat(jumped.theta), whole[1])
    seconds = load_metrics(tmp_path / "jumped")["seconds"]
    assert np.all(np.diff(seconds) > 0)
