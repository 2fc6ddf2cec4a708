"""The laboratory: a grid of optimizers, tasks and runs, each cell computed once and kept."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from regularized_lopt import tasks
from regularized_lopt.evaluation import contestants as contestants_lib
from regularized_lopt.evaluation import (
    early_evidence,
    landscape,
    properties,
    smoothness,
    store,
    training,
    verdicts,
)
from regularized_lopt.evaluation.cells import Cells, identity
from regularized_lopt.evaluation.contestants import Contestant
from regularized_lopt.evaluation.experiment import Experiment
from regularized_lopt.evaluation.optimizers import Optimizers
from regularized_lopt.evaluation.runs import Ends, Runs
from regularized_lopt.evaluation.store import Cell
from regularized_lopt.evaluation.training import Layout
from regularized_lopt.tasks import data as data_lib

_MANIFEST = "manifest.json"


class Laboratory:
    """Runs an experiment in a directory; what is there already is not run again.

    It holds::

        optimizers/<name>-<digest>/   meta-training, resumable by itself
        cells/                        runs, measurements and tuned learning rates, see `store`
        cells/ends/                   params of the runs: large, needed to measure around them
        manifest.json                 the layout of runs that was chosen for each task
        timings.json                  seconds per cell; apart, for they are never the same twice
        spent.json                    the same, summed by kind
        rates.json                    seconds per unit of work, where `plan` measured them
    """

    def __init__(
        self,
        experiment: Experiment,
        out_dir: str | pathlib.Path,
        measurement: properties.Measurement | None = None,
        given: Mapping[str, Contestant] | None = None,
        progress: bool = True,
    ):
        """Initializer.

        Args:
          experiment: what is compared on what.
          out_dir: created if needed; what it holds of this or another experiment is reused.
          measurement: default: `Measurement()` with gin's parameters.
          given: the optimizers that `experiment` says are given.
          progress: show progress bars.
        """
        self.experiment = experiment
        self.out_dir = pathlib.Path(out_dir)
        self.measurement = measurement or properties.Measurement()
        self.progress = progress
        self.cells = Cells(experiment, self.measurement)
        self.store = store.Store(self.out_dir / "cells")
        self.timings = store.Numbers(self.out_dir / "timings.json")
        self.spent = store.Numbers(self.out_dir / "spent.json")
        self.optimizers = Optimizers(experiment, self.out_dir, given or {}, progress, self._took)

    def run(self) -> list[verdicts.TaskResult]:
        """Meta-trains what is missing, meta-tests, measures."""
        for name in self.experiment.tasks:
            image_task(
                name, self.experiment.phase
            )  # An unknown name is refused before anything is trained.
        early = {early_name(name): of for name, of in self.experiment.early_evidence.items()}
        for name, source in {**self.experiment.optimizers, **early}.items():
            self.optimizers.trained(name, source, 0)  # As is what cannot be read.
        optimizers = {
            name: [
                self.optimizers.train(name, source, seed) for seed in self.optimizers.seeds(name)
            ]
            for name, source in self.experiment.optimizers.items()
        }
        return [self._task_result(name, optimizers) for name in self.experiment.tasks]

    def early_evidence(self) -> early_evidence.EarlyEvidence | None:
        """The paper's early evidence, if the experiment asks for it."""
        if not self.experiment.early_evidence:
            return None
        learned = {
            name: self.optimizers.train(early_name(name), source, 0)
            for name, source in self.experiment.early_evidence.items()
        }
        cell = self.cells.early_evidence({name: identity(one) for name, one in learned.items()})

        def compute() -> dict[str, Any]:
            found = store.fields(early_evidence.early_evidence(learned))
            found["fits"] = {name: store.fields(fits) for name, fits in found["fits"].items()}
            return found

        tree = self._cell(cell, "early evidence", compute)
        tree["fits"] = {
            name: early_evidence.Fits(**tree["fits"][name])
            for name in [*learned, *sorted(tree["fits"].keys() - learned.keys())]
        }
        return early_evidence.EarlyEvidence(**tree)

    def update_curves(self) -> dict[str, list[smoothness.UpdateCurve]]:
        """Updates by gradient of the learned optimizers, of the first meta-training seed."""
        found = {}
        for name, source in self.experiment.optimizers.items():
            contestant = self.optimizers.train(name, source, self.optimizers.seeds(name)[0])
            if contestant.learning_rate is None:  # Not a baseline that was given.
                tree = self._cell(
                    self.cells.update_curves(name, identity(contestant)),
                    f"update curves {name}",
                    functools.partial(_update_curves, contestant),
                )
                found[name] = [smoothness.UpdateCurve(**tree[str(i)]) for i in range(len(tree))]
        return found

    def seconds_per_step(self, task: str, contestant: str) -> float | None:
        """Wall-clock of one inner step of one run, as measured when the cell was computed."""
        return self.timings.get(f"step {task} {contestant}")

    # Cells of one task.

    def _task_result(
        self, task_name: str, optimizers: Mapping[str, Sequence[Contestant]]
    ) -> verdicts.TaskResult:
        trainer = self.trainer(task_name, [one for of in optimizers.values() for one in of])
        contestants = {name: list(trained) for name, trained in optimizers.items()}
        for name in self.experiment.baselines:
            contestants[name] = [self._tune(task_name, trainer, name)]
        all_runs = self._train(task_name, trainer, contestants)
        found: dict[str, verdicts.Result] = {}
        for name in self.experiment.contestants:
            first = contestants[name][0]
            found[name] = verdicts.Result(
                name=first.label,
                own_property=self.experiment.property_of(name),
                targeted=self.experiment.is_targeted(name),
                gradients_per_step=first.gradients_per_step,
                learning_rate=first.learning_rate,
                runs=all_runs[name],
                at={
                    point: [
                        self._measure(trainer.task, task_name, one, point)
                        for one in contestants[name]
                    ]
                    for point in verdicts.POINTS
                },
                matched=[]
                if name == self.experiment.reference
                else self._matched(trainer.task, task_name, name, contestants, all_runs),
                slices=self._slices(trainer.task, task_name, first)
                if name in self.experiment.optimizers
                else None,
            )
        return verdicts.TaskResult(
            task_name,
            self.experiment.num_steps,
            self.cells.measurement_of(task_name),
            self.experiment.reference,
            found,
        )

    def trainer(self, task_name: str, learned: Sequence[Contestant]) -> training.Trainer:
        """Of a task, in the layout given, or found in the manifest, or measured and put there.

        Args:
          task_name: the task.
          learned: the learned optimizers that are to be trained with.
        """
        trainer = training.Trainer(
            image_task(task_name, self.experiment.phase),
            self.experiment.runs_of(task_name),
            self.experiment.num_steps,
            self.experiment.seed,
            progress=self.progress,
        )
        if self.experiment.layout is not None:
            trainer.layout = Layout(*self.experiment.layout)
            return trainer
        path = self.out_dir / _MANIFEST
        manifest = store.read_json(path)
        chosen = manifest.setdefault("layouts", {})
        size = f"{task_name}, {trainer.num_runs} runs"
        if size not in chosen:
            alike = [one for one in learned if one.kind == learned[0].kind]
            speeds = training.measure_layouts(trainer, alike)
            chosen[size] = dataclasses.asdict(max(speeds, key=lambda layout: speeds[layout]))
            store.write_json(path, manifest)
        trainer.layout = Layout(**chosen[size])
        return trainer

    def _tune(self, task_name: str, trainer: training.Trainer, name: str) -> Contestant:
        def compute() -> dict[str, Any]:
            tuned = training.tune(
                name,
                trainer.task,
                self.experiment.num_steps,
                self.experiment.seed,
                self.experiment.tuning_runs,
                layout=trainer.layout,
                programs=trainer.programs,
                progress=self.progress,
            )
            return {"learning_rate": np.asarray(tuned.learning_rate)}

        self._cell(self.cells.tune(task_name, name), f"tune {task_name} {name}", compute)
        found = self.tuned(task_name, name)
        assert found is not None
        return found

    def tuned(self, task_name: str, name: str) -> Contestant | None:
        """A baseline with its learning rate; None: that is still to be tuned."""
        cell = self.cells.tune(task_name, name)
        if cell not in self.store:
            return None
        return contestants_lib.baseline(name, float(self.store.load(cell)["learning_rate"]))

    def _train(
        self,
        task_name: str,
        trainer: training.Trainer,
        contestants: Mapping[str, Sequence[Contestant]],
    ) -> dict[str, list[Runs]]:
        """The runs of all; where the layout is that wide, several contestants in one program."""
        cells = {
            name: [self.cells.runs(task_name, name, identity(one)) for one in contestants[name]]
            for name in self.experiment.contestants
        }
        missing: dict[str, list[tuple[Cell, Contestant]]] = {}
        for name, of in cells.items():
            for cell, one in zip(of, contestants[name], strict=True):
                if cell not in self.store:
                    missing.setdefault(one.kind, []).append((cell, one))
        together = max(1, trainer.layout.lanes // trainer.num_runs)
        for alike in missing.values():
            for begin in range(0, len(alike), together):
                self._train_group(task_name, trainer, alike[begin : begin + together])
        return {name: [Runs(**self.store.load(cell)) for cell in of] for name, of in cells.items()}

    def _train_group(
        self, task_name: str, trainer: training.Trainer, group: Sequence[tuple[Cell, Contestant]]
    ) -> None:
        named = [dataclasses.replace(one, name=cell.file_name) for cell, one in group]
        label = f"{task_name}: " + ", ".join(one.label for _, one in group)
        start = time.monotonic()
        trainer.compile(named)
        compiled = time.monotonic()
        found = trainer.train(named, label)
        trained = (time.monotonic() - compiled) / len(group)
        for cell, one in group:
            runs = store.fields(found[cell.file_name])
            ends = self.cells.ends(task_name, one.name, identity(one))
            self.store.save(ends, store.fields(runs.pop("ends")))
            self.store.save(cell, runs)
            steps = trainer.num_runs * self.experiment.num_steps
            self.timings[f"step {task_name} {one.name}"] = trained / steps
            self._took(f"train {task_name} {one.name}", trained + (compiled - start))

    def _measure(
        self,
        task: tasks.ImageTask,
        task_name: str,
        contestant: Contestant,
        point: str,
    ) -> properties.Surroundings:
        cell = self.cells.surroundings(task_name, contestant.name, identity(contestant), point)

        def compute() -> dict[str, Any]:
            ends = self._ends(task_name, contestant)
            ends = ends.first(self.experiment.measured_runs(task_name))
            params = ends.poc if point == "poc" else ends.final
            what = self.cells.measurement_of(task_name)
            return store.fields(properties.measure(task, params, what))

        return properties.Surroundings(**self._cell(cell, f"measure {task_name}", compute))

    def _matched(
        self,
        task: tasks.ImageTask,
        task_name: str,
        name: str,
        contestants: Mapping[str, Sequence[Contestant]],
        all_runs: Mapping[str, Sequence[Runs]],
    ) -> list[verdicts.Matched]:
        """Of each meta-training seed, against the reference's of the same place."""
        reference = self.experiment.reference
        return [
            self._match(task, task_name, contestant, other, own, theirs)
            for contestant, own, other, theirs in zip(
                contestants[name],
                all_runs[name],
                itertools.cycle(contestants[reference]),
                itertools.cycle(all_runs[reference]),
                strict=False,
            )
        ]

    def _match(
        self,
        task: tasks.ImageTask,
        task_name: str,
        contestant: Contestant,
        reference: Contestant,
        runs: Runs,
        reference_runs: Runs,
    ) -> verdicts.Matched:
        cell = self.cells.matched(
            task_name, contestant.name, identity(contestant), identity(reference)
        )

        def compute() -> dict[str, Any]:
            count = self.experiment.measured_runs(task_name)
            own, other = runs.first(count), reference_runs.first(count)
            what = self.cells.measurement_of(task_name).headline_alone()
            level = properties.matched_level(own, other)
            out: dict[str, Any] = {"level": properties.level_loss(level)}
            for side, who, one in (("own", contestant, own), ("reference", reference, other)):
                ends = self._ends(task_name, who).first(count)
                params, out[f"{side}_step"] = properties.params_at_level(one, ends, level)
                out[side] = store.fields(properties.measure(task, params, what))
            return out

        tree = self._cell(cell, f"match {task_name}", compute)
        for side in ("own", "reference"):
            tree[side] = properties.Surroundings(**tree[side])
        return verdicts.Matched(**tree)

    def _slices(
        self, task: tasks.ImageTask, task_name: str, contestant: Contestant
    ) -> landscape.LossSlices:
        cell = self.cells.slices(task_name, contestant.name, identity(contestant))

        def compute() -> dict[str, Any]:
            ends = self._ends(task_name, contestant)
            params = jax.tree.map(lambda leaf: leaf[0], ends.poc)
            return store.fields(landscape.loss_slices(task, params))

        return landscape.LossSlices(**self._cell(cell, f"slice {task_name}", compute))

    def _ends(self, task_name: str, contestant: Contestant) -> Ends:
        """The params of a contestant's runs.

        Raises:
          FileNotFoundError: they were not kept beside the runs.
        """
        who = (task_name, contestant.name, identity(contestant))
        cell = self.cells.ends(*who)
        if cell not in self.store:
            raise FileNotFoundError(
                f"{self.out_dir} has the runs of {contestant.label} on {task_name}, but not their "
                "params, around which something is still to be measured. To train these networks "
                f"again, delete cells/{self.cells.runs(*who).file_name}."
            )
        return Ends(**self.store.load(cell))

    def _cell(self, cell: Cell, what: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if cell not in self.store:
            start = time.monotonic()
            self.store.save(cell, compute())
            self._took(what, time.monotonic() - start)
        return self.store.load(cell)

    def _took(self, what: str, seconds: float) -> None:
        self.timings[what] = seconds
        kind = what.split(" ", maxsplit=1)[0]
        self.spent[kind] = (self.spent.get(kind) or 0.0) + seconds


def image_task(name: str, phase: str = "meta_test") -> tasks.ImageTask:
    """An image task of ours.

    Raises:
      errors.UnknownNameError: nothing is registered under `name`.
      TypeError: the task is not an image task of ours.
    """
    task = tasks.get(name, phase)
    if not isinstance(task, tasks.ImageTask) or not isinstance(
        task.datasets, data_lib.ResidentDatasets
    ):
        raise TypeError(f"Only image tasks of regularized_lopt are meta-tested; {name!r} is none.")
    return task


def _update_curves(contestant: Contestant) -> dict[str, Any]:
    curves = smoothness.update_curves(contestant.make(contestant.hyper))
    return {str(index): curve._asdict() for index, curve in enumerate(curves)}


def early_name(name: str) -> str:
    """What an optimizer of the early evidence is called among the optimizers."""
    return f"early-{name}"
