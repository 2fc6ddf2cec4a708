"""Outer steps whose tasks are shared out over devices and processes."""

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import digits_config
from test_run import flat, train

import regularized_lopt
from regularized_lopt import devices

CONFIG = [
    "RegularizedTruncatedStep.num_tasks = 8",
    "Curriculum.num_validation_tasks = 8",
    "RegularizedTruncatedGrad.regularizer = 'sam'",
    "outer_train.checkpoint_every = 4",
    # It does not end by itself.
    "Curriculum.min_validations = 1000",
    "Curriculum.max_validations = 1000",
]


def command(directory, num_outer_steps, *arguments):
    return [
        sys.executable,
        "-m",
        "regularized_lopt.outer_train",
        *(f"--gin_bindings={line}" for line in digits_config(num_outer_steps, *CONFIG)),
        f"--train_log_dir={directory}",
        *arguments,
    ]


def simulated(count):
    """The environment of a process with so many CPU devices."""
    return {**os.environ, "JAX_NUM_CPU_DEVICES": str(count)}


def start_job(directory, num_processes=2):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    job = (f"--coordinator_address=localhost:{port}", f"--num_processes={num_processes}")
    return [
        subprocess.Popen(
            command(directory, 100_000, *job, f"--process_id={index}"),
            env=simulated(2),
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(num_processes)
    ]


def last_step(directory):
    names = [path.stem for path in directory.glob("checkpoints/checkpoint_*.npz")]
    return max((int(name.rpartition("_")[2]) for name in names), default=0)


def wait_for_step(directory, step, process):
    while last_step(directory) < step:
        assert process.poll() is None, process.stderr.read()[-2000:]
        time.sleep(0.05)


def assert_same(directory, reference):
    """Of the theta that a run left and the one that a run on one device left."""
    one, other = (flat(regularized_lopt.load(path).theta) for path in (directory, reference))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_eight_devices_give_the_theta_of_one(tmp_path):
    run = subprocess.run(
        command(tmp_path / "run", 6), env=simulated(8), capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert regularized_lopt.load(tmp_path / "run").metadata["devices"] == 8
    train(tmp_path / "alone", 6, *CONFIG)
    assert_same(tmp_path / "run", tmp_path / "alone")


@pytest.mark.slow
def test_a_job_of_two_processes_ends_together_and_resumes_to_the_theta_of_one(tmp_path):
    """SIGKILL to one process, restart, SIGTERM to one; a single device does the rest."""
    directory = tmp_path / "run"
    writer, other = start_job(directory)
    wait_for_step(directory, 4, writer)
    other.send_signal(signal.SIGKILL)
    _, errors = writer.communicate(timeout=90)
    assert writer.returncode != 0
    assert "another task died" in errors or "unhealthy" in errors or "closed" in errors.lower()
    before = last_step(directory)

    writer, other = start_job(directory)
    wait_for_step(directory, before + 4, writer)
    other.send_signal(signal.SIGTERM)
    messages = [process.communicate(timeout=120)[1] for process in (writer, other)]
    assert [writer.returncode, other.returncode] == [143, 143], messages
    last = max(directory.glob("checkpoints/checkpoint_*"))
    for message in messages:
        assert f"the last checkpoint is {last}. The same command goes on" in message
        assert "In call to" not in message

    end = last_step(directory) + 1
    train(directory, end, *CONFIG)
    train(tmp_path / "alone", end, *CONFIG)
    assert_same(directory, tmp_path / "alone")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 2, 0), "also give --coordinator_address"),
        (("localhost:1", 2, None), "--process_id from 0 to N - 1"),
        (("localhost:1", 2, 2), "--process_id from 0 to N - 1"),
        (("localhost:1", None, 0), "--num_processes=N"),
    ],
)
def test_processes_that_do_not_fit_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        devices.initialize(*arguments)


def test_devices_that_do_not_divide_the_tasks_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: list(range(6)))
    assert devices.make_mesh(None, [7]) is None
    for count, tasks in ((4, [8, 6]), (8, [8]), (0, [8]), (-1, [8])):
        with pytest.raises(ValueError, match=rf"num_devices = {count}: there are 6 .* divide"):
            devices.make_mesh(count, tasks)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="all devices take part"):
        devices.make_mesh(None, [4])


def test_more_devices_than_there_are_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"outer_train\.num_devices = 64: there are"):
        train(tmp_path / "run", 2, "outer_train.num_devices = 64")
    assert not (tmp_path / "run").exists()
