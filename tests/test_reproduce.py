"""The launcher of a study, from gin files to a report."""

import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import types

import pytest
from conftest import REPOSITORY
from helpers_study import RELU, table

from regularized_lopt import gin_files, launch, reproduce, run_files, serialization, zoo
from regularized_lopt.measure import results_file, selections
from regularized_lopt.study import Experiment, Study
from regularized_lopt.study.meta_training import MetaTrainedOptimizers

TINY = [
    "Experiment.optimizers = {'none': 'gin_configs/digits_mlp_none.gin',"
    " 'sam': 'gin_configs/digits_mlp_sam.gin'}",
    "TaskPlan.runs = 2",
    "Experiment.num_steps = 25",
    f"Experiment.tasks = ('{RELU}',)",
    "Experiment.baselines = ('SGD',)",
    "Experiment.parallelism = (1, 1)",
    "Experiment.bindings = ('outer_train.num_outer_steps = 2', 'LSTMLOpt.hidden_size = 3',"
    " 'Curriculum.train_lengths = (20,)', 'Curriculum.validation_period = 2',"
    " 'Curriculum.num_validation_tasks = 1', 'ObjectiveCheck.num_trajectories = 0')",
    "FlatnessConfig.num_examples = 64",
    "FlatnessConfig.radii = (0.01, 0.05)",
    "FlatnessConfig.headline_starts = 1",
    "FlatnessConfig.num_probes = 2",
    "FlatnessConfig.num_iterations = 2",
    "Experiment.early_evidence = {}",
]


def command(name, *arguments):
    return [sys.executable, "-m", f"regularized_lopt.{name}", *arguments]


def run_module(name, *arguments):
    done = subprocess.run(
        command(name, *arguments), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def reproduction(out_dir):
    return [
        "--config_file=gin_configs/reproduce_digits.gin",
        f"--out_dir={out_dir}",
        *(f"--gin_bindings={line}" for line in TINY),
    ]


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """A directory of `reproduce`, and what its plan was beforehand and afterwards."""
    out_dir = tmp_path_factory.mktemp("reproduced")
    before = run_module("reproduce", *reproduction(out_dir), "--dry_run", "--measure")
    run_module("reproduce", *reproduction(out_dir))
    return out_dir, before, run_module("reproduce", *reproduction(out_dir), "--dry_run")


def test_the_launcher_plans_meta_trains_meta_tests_and_reports(reproduced):
    out_dir, before, after = reproduced
    assert "0 cached" in before
    assert "unknown" not in before  # Every cost is estimated from a rate measured here.
    assert re.search(r"(\d+) cells, \1 cached\.", after)
    page = (out_dir / "report.html").read_text()
    for text in (
        "none, sam and tuned baselines on 1 task: 2 paired runs of 25 steps",
        "meta-trained with 1 seed.",
        "Declared tests",
        "claims",
        "undecided",
        "Regularized learned optimizers beat",
        "Meta-training",
        "drawn anew",
    ):
        assert text in page


def test_results_are_remade_from_the_one_file_that_is_kept(reproduced, tmp_path):
    """Without cells, optimizers and data, beside notes, which are not touched: the same bytes."""
    shutil.copyfile(reproduced[0] / results_file.FILE, tmp_path / results_file.FILE)
    (tmp_path / "NOTES.md").write_text("What to make of it.\n")
    run_module("reproduce", "--rewrite", f"--out_dir={tmp_path}")
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.split("\n\n")[2] == "What to make of it."
    assert len(re.findall(r"^\| none \|", text, re.MULTILINE)) >= 2
    for link in re.findall(r"\]\((.*?)\)", text):
        assert (tmp_path / link).is_file()
    (tmp_path / "RESULTS.md").write_text(text.replace("What to make of it.\n\n", ""))
    (tmp_path / "NOTES.md").unlink()
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert len(made) > 12
    for path in made:
        assert (tmp_path / path).read_bytes() == (reproduced[0] / path).read_bytes(), path
    computed = {"cells", "optimizers", "locks"}
    pages = {
        path.relative_to(reproduced[0])
        for path in reproduced[0].rglob("*")
        if path.is_file() and path.suffix not in (".json", ".lock")
    }
    assert made == {path for path in pages if path.parts[0] not in computed}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, FileNotFoundError, r"results.nc.xz does not exist: run the study \(without --rewrite"),
        *(
            ({flag: ["x"]}, ValueError, "--rewrite takes no --config_file, --gin_bindings or --o")
            for flag in ("config_file", "gin_bindings", "optimizer")
        ),
    ],
)
def test_rewriting_computes_nothing(tmp_path, monkeypatch, given, error, message):
    none = {"measure": False, "verify": None, "config_file": [], "gin_bindings": []}
    flags = {**none, "optimizer": [], "rewrite": True, "out_dir": tmp_path, **given}
    monkeypatch.setattr(reproduce.flags, "FLAGS", types.SimpleNamespace(**flags))
    with pytest.raises(error, match=message):
        reproduce.main()
    assert not list(tmp_path.iterdir())


def test_what_is_compared_is_said_without_baselines_where_there_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    lines = [*TINY, "Experiment.baselines = ()"]
    gin_files.parse_gin(["gin_configs/reproduce_digits.gin"], lines)
    assert reproduce._lead(Study(Experiment(), tmp_path)).startswith("none, sam on 1 task: 2 pair")


def test_a_report_on_borrowed_optimizers_leaves_out_how_they_were_made(reproduced, tmp_path):
    shutil.copytree(reproduced[0] / "cells", tmp_path / "cells")
    shared = f"--optimizers_dir={reproduced[0] / 'optimizers'}"
    run_module("reproduce", *reproduction(tmp_path), shared)
    pages = [(path / "RESULTS.md").read_text() for path in (reproduced[0], tmp_path)]
    assert ["## Meta-training" in page for page in pages] == [True, False]
    assert (tmp_path / "table_1.csv").read_bytes() == (reproduced[0] / "table_1.csv").read_bytes()


@pytest.fixture
def study(reproduced, tmp_path):
    """A folder as studies have in the repository: a configuration, and its optimizers' archive."""
    folder = tmp_path / "study"
    folder.mkdir()
    lines = ["include 'gin_configs/reproduce_digits.gin'", *TINY]
    (folder / "experiment.gin").write_text("\n".join(lines))
    with tarfile.open(folder / "optimizers.tar.xz", "w:xz") as archive:
        archive.add(reproduced[0] / "optimizers", "optimizers")
    return folder


def test_an_optimizer_of_ones_own_joins_a_study_whose_others_are_not_made_again(
    reproduced, study, tmp_path
):
    out_dir = tmp_path / "mine"
    shutil.copytree(reproduced[0] / "cells", out_dir / "cells")
    arguments = [
        f"--config_file={study / 'experiment.gin'}",
        f"--gin_bindings={RELU}/TaskPlan.optimizers = ('none', 'sam', 'SGD')",
        "--optimizer=mine=mnist_star_none",
        f"--out_dir={out_dir}",
    ]
    planned = run_module("reproduce", *arguments, "--dry_run")
    assert f"{study / 'optimizers.tar.xz'} are in {out_dir / 'optimizers'} now" in planned
    rows = [line.replace("│", " ").split() for line in planned.splitlines() if "│" in line]
    meta_training = [row for row in rows if row[0] == "meta-train"]
    assert [(row[1], row[4]) for row in meta_training] == [("none,", "cached"), ("sam,", "cached")]
    assert ["train", f"{RELU},", "mine"] in [row[:3] for row in rows]
    run_module("reproduce", *arguments)
    said = " ".join((out_dir / "RESULTS.md").read_text().split())
    assert (
        "none, sam, mine and tuned baselines on 1 task: 2 paired runs of 25 steps, meta-trained "
        "with 1 seed. Trained beforehand: mine. Each is a single optimizer, compared with every "
        "meta-training seed of none; no interval tells how another training"
    ) in said
    assert "| mine |" in said
    (task,) = results_file.load(out_dir / results_file.FILE).tasks
    assert selections.keys(task) == ["none", "sam", "SGD", "mine"]
    assert sorted(path.name for path in study.iterdir()) == ["experiment.gin", "optimizers.tar.xz"]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("none=mnist_star_none", "cannot be called 'none'. Taken are its own names (none, sam)"),
        ("=mnist_star_none", "'=mnist_star_none' is no optimizer: give NAME=PATH, or PATH alone."),
        ("mine=", "'mine=' is no optimizer: give NAME=PATH"),
        ("mine=mnist_star_nine", "Did you mean 'mnist_star_none'"),
        ("mine=nowhere.gin", "There is no gin file nowhere.gin"),
    ],
)
def test_an_optimizer_that_cannot_join_is_refused(tmp_path, monkeypatch, what, message):
    monkeypatch.chdir(REPOSITORY)
    gin_files.parse_gin(["gin_configs/reproduce_digits.gin"], TINY)
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        Study(Experiment(joining=launch.named_paths([what])), tmp_path).check()
    assert not list(tmp_path.iterdir())


def test_what_cannot_join_is_refused_first(tmp_path):
    out_dir = tmp_path / "out"
    done = subprocess.run(
        command("reproduce", *reproduction(out_dir), "--optimizer=none=mnist_star_none"),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "cannot be called 'none'. Taken are its own names (none, sam)" in line
    assert not out_dir.exists()


@pytest.fixture
def heeds_ctrl_c():
    """Processes of the background ignore it, as tests may be one, and so would their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_ends_a_meta_test_with_one_line(tmp_path):
    running = subprocess.Popen(
        command("meta_test", "--lopt=mine=mnist_star_none", f"--task={RELU}", "--baselines=",
                "--num_steps=1000000", "--num_runs=1", f"--out_dir={tmp_path}"),
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert f"{RELU}: mine: 0.00/1.00M" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 128 + signal.SIGINT, said
    assert said.splitlines()[-1].startswith("Stopped by SIGINT. The same command goes on from")
    assert "Traceback" not in said


def test_exchanged_optimizers_are_named(reproduced, tmp_path):
    """Whole directories, or theta alone."""
    shutil.copytree(reproduced[0] / "optimizers", tmp_path / "optimizers")
    none, sam = sorted((tmp_path / "optimizers").iterdir())
    theta = none / run_files.THETA_FILE
    kept = theta.read_bytes()
    shutil.copyfile(sam / run_files.THETA_FILE, theta)
    with pytest.raises(serialization.FileFormatError, match="is of another run than"):
        zoo.load(none)
    with pytest.raises(serialization.FileFormatError, match="is of another run than"):
        zoo.validation_loss(none)
    theta.write_bytes(kept)
    zoo.load(none)

    none.rename(tmp_path / "aside")
    sam.rename(none)
    (tmp_path / "aside").rename(sam)
    gin_files.parse_gin(["gin_configs/reproduce_digits.gin"], TINY)
    finder = MetaTrainedOptimizers(
        Experiment(), tmp_path / "optimizers", {}, False, lambda *_: None
    )
    for name, source in finder.experiment.optimizers.items():
        with pytest.raises(serialization.FileFormatError, match="another meta-training than its"):
            finder.trained(name, source, 0)


def test_two_trained_optimizers_are_compared(reproduced, tmp_path):
    trained = sorted((reproduced[0] / "optimizers").iterdir())
    assert [path.name.split("-")[0] for path in trained] == ["none", "sam"]
    run_module(
        "compare",
        *map(str, trained),
        "--num_runs=2",
        "--num_steps=20",
        *(f"--gin_bindings={line}" for line in TINY if line.startswith("FlatnessConfig")),
        f"--out_dir={tmp_path}",
    )
    assert (tmp_path / "report.html").stat().st_size > 50_000


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_table(reproduced, tmp_path):
    """SIGKILL after each of three numbers of files, at a random moment of the next one."""
    rng = random.Random(0)

    def files():
        return sum(path.is_file() for path in tmp_path.rglob("*.npz"))

    for limit in (1, 4, 7):
        running = subprocess.Popen(
            command("reproduce", *reproduction(tmp_path)),
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while files() < limit and running.poll() is None:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 1))
        assert running.poll() is None, "It ended before it could be killed."
        running.kill()
        running.wait()
        assert not (tmp_path / "table.csv").exists()
    run_module("reproduce", *reproduction(tmp_path))
    assert table(tmp_path) == table(reproduced[0])
