"""Kills a run at random moments until it is done, and measures what checkpoints cost.

    python benchmarks/stress.py [--kills=K] [--minutes=15] [--seed=0]

An outer training on Digits is killed by SIGKILL, at random moments from its start on, and started
again. Then: is every checkpoint readable, and is the end, to the bit, that of a run left alone?
With JAX's persistent compilation cache, so that a restart takes seconds. Exits with 1 if anything
differs.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import rich.console
import rich.progress
import rich.table

from regularized_lopt import LSTMLOpt, RegularizedTruncatedGrad, launch, serialization, tasks
from regularized_lopt.estimators import RegularizedTruncatedStep
from regularized_lopt.outer_training import curriculum, theta_optimizer
from regularized_lopt.outer_training.checkpoint import Checkpoints
from regularized_lopt.outer_training.loop import Loop
from regularized_lopt.outer_training.programs import Programs
from regularized_lopt.outer_training.requests import TrainState
from regularized_lopt.run_files import THETA_FILE, read_metrics

CONFIG = (
    'outer_train.task = "ImageMLP_Digits_20_Sigmoid"',
    'RegularizedTruncatedGrad.regularizer = "sam"',
    "RegularizedTruncatedGrad.unroll_length = 5",
    "Curriculum.train_lengths = (10, 20, 40)",
    "Curriculum.validation_period = 20",
    "Curriculum.num_validation_tasks = 2",
    "outer_train.checkpoint_every = 10",
    "outer_train.progress = False",
)
_FOREVER = 1_000_000


def start(directory: pathlib.Path, num_outer_steps: int) -> subprocess.Popen[bytes]:
    """The launcher on `directory`."""
    bindings = (*CONFIG, f"outer_train.num_outer_steps = {num_outer_steps}")
    command = [sys.executable, "-m", "regularized_lopt.outer_train"]
    command += [f"--gin_bindings={line}" for line in bindings]
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(directory.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **os.environ,
    }
    return subprocess.Popen(
        [*command, f"--train_log_dir={directory}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(directory: pathlib.Path, num_outer_steps: int) -> float:
    """Runs it to its end; the seconds it took."""
    began = time.monotonic()
    process = start(directory, num_outer_steps)
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"The run in {directory} failed:\n{errors.decode()[-2000:]}")
    return time.monotonic() - began


def checkpointed(directory: pathlib.Path) -> list[int]:
    """The outer steps of all checkpoints, all of which have to load.

    Raises:
      serialization.FileFormatError: one does not.
    """
    paths = (directory / "checkpoints").glob("*.npz")
    return [int(serialization.load_flat(path)[0][".outer_iteration"]) for path in paths]


def survive(root: pathlib.Path, kills: int | None, seconds: float, seed: int) -> dict[str, str]:
    """Kills, restarts, compares; what is to be told.

    Args:
      root: for the two runs and the compiled programs.
      kills: SIGKILLs, if there is time for them; None: 50, or 20 where a start takes over 8 s.
      seconds: for all of it, about.
      seed: of the moments.

    Raises:
      AssertionError: the disturbed run ended otherwise than the undisturbed one.
    """
    rng = random.Random(seed)
    began = time.monotonic()
    killed, alone = root / "killed", root / "alone"
    finish(root / "compiles", 1)
    restart = finish(root / "restart", 1)
    kills = kills or (50 if restart <= 8 else 20)
    done, read, last, moments = 0, 0, 0, []
    for _ in rich.progress.track(range(kills), "SIGKILLs"):
        if time.monotonic() - began > 0.6 * seconds:
            break
        process = start(killed, _FOREVER)
        moment = rng.uniform(0.0, restart + 2.0)
        time.sleep(moment)
        if process.poll() is not None:
            _, errors = process.communicate()
            raise RuntimeError(f"It ended by itself:\n{errors.decode()[-2000:]}")
        process.kill()
        process.communicate()
        done += 1
        found = checkpointed(killed)
        read += len(found)
        last = max(found, default=0)
        moments.append((moment, last))
    end = last + 7
    finish(killed, end)
    read += len(checkpointed(killed))
    finish(alone, end)
    same = _same(killed, alone)
    assert same, f"Theta or curves of {killed} differ from those of {alone}."
    advanced = np.count_nonzero(np.diff([0, *(step for _, step in moments)]))
    return {
        "SIGKILLs": f"{done} (of {kills} asked for)",
        "after": f"{min(moments)[0]:.1f} to {max(moments)[0]:.1f} s",
        "kills after which there was a newer checkpoint": str(advanced),
        "a start to the first outer step and its end": f"{restart:.1f} s",
        "outer steps in the end": str(end),
        "checkpoints read back": str(read),
        "theta and curves": "identical to the bit to those of a run left alone",
    }


def _same(a: pathlib.Path, b: pathlib.Path) -> bool:
    one, other = (serialization.load_flat(path / THETA_FILE)[0] for path in (a, b))
    curves = [[{**row, "seconds": None} for row in read_metrics(path)] for path in (a, b)]
    equal = one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)
    return equal and curves[0] == curves[1]


def overhead(root: pathlib.Path, dataset: str, rounds: int, block: float) -> dict[str, str]:
    """What a checkpoint a minute costs: blocks of outer steps with one and without, in turns.

    Args:
      root: for the checkpoints.
      dataset: of the task.
      rounds: pairs of blocks.
      block: seconds of a block.
    """
    family = tasks.as_family(f"ImageMLP_{dataset}_20_Sigmoid", "meta_train")
    schedule = curriculum.CurriculumTruncationSchedule()
    step_lib = RegularizedTruncatedStep(family, LSTMLOpt(), schedule)
    estimator = RegularizedTruncatedGrad(step_lib)
    stages = curriculum.Curriculum()
    programs = Programs(estimator, theta_optimizer(), stages.num_validation_tasks)
    loop = Loop(programs, stages, jax.random.PRNGKey(0))
    state, data = loop.init(), estimator.get_datas()
    checkpoints = Checkpoints(root / "checkpoints")

    def seconds(state: TrainState, steps: int, save: bool) -> tuple[TrainState, float]:
        began = time.perf_counter()
        if save:
            checkpoints.save(int(state.outer_iteration), programs.on_host(state), {})
        for _ in range(steps):
            state, scalars = programs.outer_steps([loop.next_step(state, 100)], data)[0]
        jax.block_until_ready(scalars)
        return state, time.perf_counter() - began

    state, _ = seconds(state, 3, True)
    state, taken = seconds(state, 10, False)
    steps = max(1, round(block / taken * 10))
    times: dict[bool, list[float]] = {True: [], False: []}
    for index in rich.progress.track(range(2 * rounds), "Checkpoints"):
        save = index % 4 in (1, 2)  # Neither is always first.
        state, taken = seconds(state, steps, save)
        times[save].append(taken)
    checkpoints.wait()
    newest = checkpoints.last()
    assert newest is not None
    size = newest.stat().st_size
    cost = statistics.median(a - b for a, b in zip(times[True], times[False], strict=True))
    return {
        "file": f"{size / 1e6:.1f} MB",
        "outer steps in a block": f"{steps} ({statistics.median(times[False]):.1f} s)",
        "a checkpoint costs": f"{1000 * cost:.0f} ms (median of {rounds} pairs)",
        "one a minute": f"{100 * cost / 60:.2f} % of outer steps per second",
    }


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kills", type=int, help="Default: 50, or 20 where a start takes over 8 s."
    )
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dataset", default="Digits", help="Of the checkpoints' cost.")
    parser.add_argument("--rounds", type=int, default=8, help="Pairs of blocks; 0: kills alone.")
    parser.add_argument("--block", type=float, default=5.0)
    args = parser.parse_args()
    launch.reuse_freed_memory()
    console = rich.console.Console(width=110)
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        tables = {"Killed and restarted": survive(root, args.kills, 60 * args.minutes, args.seed)}
        if args.rounds:
            tables[f"Checkpoints of a run on {args.dataset}"] = overhead(
                root, args.dataset, args.rounds, args.block
            )
        for title, found in tables.items():
            table = rich.table.Table(title=title, show_header=False)
            for row in found.items():
                table.add_row(*row)
            console.print(table)


if __name__ == "__main__":
    main()
