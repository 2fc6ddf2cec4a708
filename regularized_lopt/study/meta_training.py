"""The learned optimizers of an experiment: where they are, and how they are meta-trained."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import lzma
import pathlib
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping

import gin
import jax
import numpy as np

from regularized_lopt import errors, gin_files, serialization, zoo
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure.optimizers import EvaluatedOptimizer
from regularized_lopt.outer_training import outer_train
from regularized_lopt.outer_training.parts import check_bindings, configuration
from regularized_lopt.run_files import EXPERIMENT_FILE, load_metrics
from regularized_lopt.study import cache as cache_lib
from regularized_lopt.study.experiment import GIVEN, Experiment, is_configuration
from regularized_lopt.study.steps import Step

ARCHIVED = ".tar.xz"
"""What the archive of a directory of optimizers is called beyond its name."""
_FINISHED = "finished"


@dataclasses.dataclass(frozen=True)
class MetaTrainedOptimizers:
    """Finds learned optimizers, or makes them.

    Attributes:
      experiment: names them.
      directory: those that are meta-trained here are in <name>-seed<seed>-<digest> in it. If there
        is none, but <directory>.tar.xz, as in the repository, that is unpacked.
      given: those that the experiment says are given.
      progress: show progress bars.
      record_seconds: told (what, seconds) after each meta-training.
    """

    experiment: Experiment
    directory: pathlib.Path
    given: Mapping[str, EvaluatedOptimizer]
    progress: bool
    record_seconds: Callable[[str, float], None]

    def __post_init__(self) -> None:
        unpack(self.directory.parent / f"{self.directory.name}{ARCHIVED}", self.directory)

    def seeds(self, name: str) -> tuple[int, ...]:
        """The meta-training seeds of an optimizer of the experiment."""
        trained_here = is_configuration(self.experiment.optimizers[name])
        return self.experiment.seeds_of(name) if trained_here else (0,)

    def directory_of(self, name: str, source: str, seed: int) -> pathlib.Path | None:
        """Where an optimizer is meta-trained; None: it is trained already."""
        if not is_configuration(source):
            return None
        with self.configured(source, seed):
            digest = hashlib.sha256("\n".join(_gin_lines()).encode()).hexdigest()[:12]
        return self.directory / f"{name}-seed{seed}-{digest}"

    @contextlib.contextmanager
    def configured(self, source: str, seed: int) -> Iterator[None]:
        """Gin's configuration replaced for a while by that of a meta-training."""
        with gin_files.set_aside():
            bindings = [*self.experiment.bindings, f"outer_train.seed = {seed}"]
            gin_files.parse_gin([source], bindings)
            yield

    def check_bindings(self, sources: Mapping[str, str]) -> None:
        """Looks for bindings that nothing reads, before anything is meta-trained.

        Warns of those of a gin file. One of `Experiment.bindings` may be there for some
        meta-trainings alone, but it must be for one.

        Args:
          sources: of learned optimizers, by name.

        Raises:
          gin_files.UnreadBindingError: no meta-training reads one of `Experiment.bindings`.
          ValueError: a meta-training is a population.
        """
        nowhere: dict[gin_files.Binding, str] | None = None
        for source in sources.values():
            if is_configuration(source):
                with self.configured(source, 0):
                    _check_is_one(source)
                    found = check_bindings(self.experiment.bindings)
                kept = found if nowhere is None else nowhere
                nowhere = {one: text for one, text in kept.items() if one in found}
        if nowhere:
            raise gin_files.UnreadBindingError(f"Experiment.bindings: {' '.join(nowhere.values())}")

    def trained(self, name: str, source: str, seed: int) -> EvaluatedOptimizer | None:
        """A learned optimizer; None: it is still to be meta-trained."""
        if source == GIVEN:
            given = self.given[errors.check_name("given optimizer", name, self.given)]
            return dataclasses.replace(given, name=name)
        directory = self.directory_of(name, source, seed)
        if directory is not None:
            if not _finished(directory):
                return None
            with self.configured(source, seed):
                _check_configuration(directory)
        loaded = zoo.load(directory or source)
        return optimizers_lib.learned(name, loaded.learned_opt, loaded.theta, loaded.metadata)

    def step(self, name: str, source: str, seed: int, label: str) -> Step[EvaluatedOptimizer]:
        """A learned optimizer, which is meta-trained unless it is there."""
        timing = f"meta-train {name}"
        return Step(
            "meta-train",
            label,
            timing,
            functools.partial(self.trained, name, source, seed),
            functools.partial(self._train, name, source, seed, timing),
            lambda rates: rates.meta_training(source, seed),
        )

    def _train(self, name: str, source: str, seed: int, timing: str) -> None:
        directory = self.directory_of(name, source, seed)
        assert directory is not None, source
        with self.configured(source, seed), warnings.catch_warnings():
            # `check_bindings` has said so, of all at once.
            warnings.simplefilter("ignore", gin_files.UnreadBindingWarning)
            outer_train(directory, progress=self.progress)
        (directory / _FINISHED).touch()
        # Of all its parts, if it was interrupted.
        self.record_seconds(timing, float(load_metrics(directory)["seconds"][-1]))
        jax.clear_caches()

    def chosen(self) -> dict[str, int]:
        """Of each that was meta-trained here from several seeds, the place of the best seed."""
        return {
            name: int(np.argmin(losses))
            for name, losses in self.validation_losses().items()
            if len(losses) > 1
        }

    def curves(self) -> dict[str, dict[int, dict[str, np.ndarray]]]:
        """The curves (see `load_metrics`) of those that were meta-trained here, by seed."""
        return {
            name: {seed: load_metrics(directory) for seed, directory in directories.items()}
            for name, directories in self._trained_here.items()
        }

    def validation_losses(self) -> dict[str, list[float]]:
        """Of each that was meta-trained here, by seed: see `zoo.validation_loss`."""
        return {
            name: [zoo.validation_loss(directory) for directory in directories.values()]
            for name, directories in self._trained_here.items()
        }

    @functools.cached_property
    def _trained_here(self) -> dict[str, dict[int, pathlib.Path]]:
        """Of those that are not trained already, where they are, by seed."""
        return {
            name: {
                seed: directory
                for seed in self.seeds(name)
                if (directory := self.directory_of(name, source, seed)) is not None
            }
            for name, source in self.experiment.optimizers.items()
            if is_configuration(source)
        }


def _check_is_one(source: str) -> None:
    """Raises ValueError where a meta-training is a population."""
    if gin.get_bindings("outer_train", resolve_references=False).get("seeds") is not None:
        raise ValueError(
            f"{source} with Experiment.bindings has outer_train.seeds: a study meta-trains seed by "
            "seed. Leave it out, and give Experiment.meta_training_seeds."
        )


def unpack(archive: pathlib.Path, directory: pathlib.Path) -> None:
    """Unpacks the archive, if there is one and no such directory yet; two processes may try.

    Args:
      archive: of a directory of that name.
      directory: where it goes.

    Raises:
      serialization.FileFormatError: the archive is damaged.
    """
    if directory.exists() or not archive.is_file():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as aside:
        try:
            with tarfile.open(archive, "r:xz") as packed:
                packed.extractall(aside, filter="data")
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            raise serialization.FileFormatError(
                f"{archive} is damaged ({errors.reason(error)}): restore it, e.g. from git, or "
                "delete it to meta-train again."
            ) from error
        with contextlib.suppress(OSError):  # Another process was first.
            (pathlib.Path(aside) / directory.name).rename(directory)


def _gin_lines() -> list[str]:
    """Gin's bindings, less those that do not change what is learned."""
    free = ("outer_train.log_every", "outer_train.checkpoint_every", "outer_train.progress")
    lines = gin.config_str(max_line_length=10_000).splitlines()
    return sorted(line for line in lines if line and not line.startswith(("#", "import", *free)))


def _check_configuration(directory: pathlib.Path) -> None:
    """Raises FileFormatError if a directory has another configuration than gin has now."""
    found = cache_lib.read_json(directory / EXPERIMENT_FILE).get("gin", configuration())
    if difference := sorted(set(found) ^ set(configuration())):
        raise serialization.FileFormatError(
            f"{directory} holds another meta-training than its name says (they differ in "
            f"{difference[0]!r}). Restore it, or delete it to meta-train again."
        )


def _finished(directory: pathlib.Path) -> bool:
    return (directory / _FINISHED).is_file()
