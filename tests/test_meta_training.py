"""Which of several meta-training seeds is chosen, and where optimizers come from."""

import pathlib
import shutil
import tarfile

import pytest
from conftest import REPOSITORY
from helpers_results import measured_task, trained
from helpers_study import RELU

from regularized_lopt import gin_files, run_files, serialization, zoo
from regularized_lopt.report import (
    tables,
)
from regularized_lopt.study import Experiment
from regularized_lopt.study.experiment import GIVEN
from regularized_lopt.study.meta_training import MetaTrainedOptimizers


def test_the_seed_that_validation_chose_is_shown_alone(tmp_path, monkeypatch):
    """Three copies of an optimizer of the zoo that claim other validation losses."""
    what = {"none": "none.gin", "other": GIVEN}
    optimizers = MetaTrainedOptimizers(
        Experiment(optimizers=what, tasks=(RELU,), meta_training_seeds=(0, 1, 2)),
        tmp_path, {}, False, lambda *_: None,
    )  # fmt: skip
    monkeypatch.setattr(
        MetaTrainedOptimizers,
        "directory_of",
        lambda self, name, source, seed: tmp_path / str(seed) if source != GIVEN else None,
    )
    tree, metadata = serialization.load_flat(zoo.ENTRIES / zoo.names()[0] / run_files.THETA_FILE)
    for seed, loss in enumerate((0.5, 0.2, 0.3)):
        metadata["stage"]["best_loss"] = loss
        serialization.save(tmp_path / str(seed) / run_files.THETA_FILE, tree, metadata)
    assert optimizers.chosen() == {"none": 1}

    several = measured_task(RELU, none=trained([0.8, 1.0, 0.7]), sam=trained([0.9, 0.8]))
    _, rows = tables.table_1([several], {"none": 1})
    assert rows[0] == ["none", "100 ± 0"]
    assert rows[1:] == tables.table_1([several])[1][1:]
    assert tables.table_1([several])[1][0] != rows[0]


def finder(directory):
    what = Experiment(optimizers={"none": "none.gin"}, tasks=(RELU,))
    return MetaTrainedOptimizers(what, directory, {}, False, lambda *_: None)


def test_an_archive_is_unpacked_where_its_directory_is_missing(tmp_path):
    """Once: what is there is not written over."""
    directory = tmp_path / "optimizers"
    shutil.copytree(zoo.ENTRIES / "mnist_star_none", directory / "one")
    with tarfile.open(tmp_path / "optimizers.tar.xz", "w:xz") as archive:
        archive.add(directory, "optimizers")
    shutil.rmtree(directory)
    finder(directory)
    zoo.load(directory / "one" / run_files.THETA_FILE)
    (directory / "one" / run_files.THETA_FILE).unlink()
    finder(directory)
    assert not (directory / "one" / run_files.THETA_FILE).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["optimizers", "optimizers.tar.xz"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
def test_a_damaged_archive_is_named(tmp_path, share):
    with tarfile.open(tmp_path / "optimizers.tar.xz", "w:xz") as archive:
        archive.add(zoo.ENTRIES / "mnist_star_none", "optimizers")
    content = (tmp_path / "optimizers.tar.xz").read_bytes()
    (tmp_path / "optimizers.tar.xz").write_bytes(content[: int(share * len(content))])
    with pytest.raises(serialization.FileFormatError, match=r"optimizers.tar.xz is damaged .*git"):
        finder(tmp_path / "optimizers")
    assert not (tmp_path / "optimizers").exists()


EXPERIMENTS = REPOSITORY / "experiments"


def directories_in(path):
    with tarfile.open(path) as archive:
        return {pathlib.PurePath(name).parent.name for name in archive.getnames()}


@pytest.mark.parametrize(
    "study", sorted(p.parent.name for p in EXPERIMENTS.glob("*/experiment.gin"))
)
def test_the_optimizers_of_each_study_are_in_the_archive(study, monkeypatch):
    """By the digest of their configurations, which other includes must not change.

    A study without an archive of its own measures another study's optimizers.
    """
    monkeypatch.chdir(REPOSITORY)
    own = EXPERIMENTS / study / "optimizers.tar.xz"
    archives = [own] if own.is_file() else EXPERIMENTS.glob("*/optimizers.tar.xz")
    kept = {name for archive in archives for name in directories_in(archive)}
    gin_files.parse_gin([f"experiments/{study}/experiment.gin"], [])
    what = Experiment()
    optimizers = MetaTrainedOptimizers(what, pathlib.Path("nowhere"), {}, False, lambda *_: None)
    for name, source in what.optimizers.items():
        for seed in optimizers.seeds(name):
            directory = optimizers.directory_of(name, source, seed)
            assert directory is not None
            assert directory.name in kept
