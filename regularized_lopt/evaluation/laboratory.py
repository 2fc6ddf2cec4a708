"""The laboratory: a grid of optimizers, tasks and runs, each cell computed once and kept."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gin
import jax
import numpy as np

from regularized_lopt import launch, tasks, upstream
from regularized_lopt.evaluation import contestants as contestants_lib
from regularized_lopt.evaluation import (
    early_evidence,
    landscape,
    properties,
    store,
    training,
    verdicts,
)
from regularized_lopt.evaluation.contestants import Contestant
from regularized_lopt.evaluation.experiment import GIVEN, Experiment
from regularized_lopt.evaluation.store import Cell
from regularized_lopt.evaluation.training import Layout
from regularized_lopt.outer_training import outer_train
from regularized_lopt.tasks import data as data_lib

_MANIFEST = "manifest.json"
_TIMINGS = "timings.json"


@dataclasses.dataclass(frozen=True)
class PlannedCell:
    """A line of the plan.

    Attributes:
      stage: "meta-train", "tune", "train", "measure" or "match".
      label: of the cell.
      cached: it is there.
      seconds: what it took, or is estimated to take; None: nothing measured to go by.
    """

    stage: str
    label: str
    cached: bool
    seconds: float | None


class Laboratory:
    """Runs an experiment in a directory; what is there already is not run again.

    optimizers/<name>-<digest>/   meta-training, resumable by itself
    cells/                        runs, measurements and tuned learning rates, see `store`
    manifest.json                 the layout of runs that was chosen for each task
    timings.json                  seconds per cell; apart, because they are never the same twice
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
        self._given = given or {}
        self.out_dir = pathlib.Path(out_dir)
        self.measurement = measurement or properties.Measurement()
        self._progress = progress
        self._store = store.Store(self.out_dir / "cells")
        self._timings: dict[str, float] = _read_json(self.out_dir / _TIMINGS)

    def run(self) -> list[verdicts.TaskResult]:
        """Meta-trains what is missing, meta-tests, measures."""
        for name in self.experiment.tasks:
            image_task(name)  # An unknown name is refused before anything is trained.
        optimizers = {
            name: [self._optimizer(name, source, seed) for seed in self._seeds(source)]
            for name, source in self.experiment.optimizers.items()
        }
        return [self._task_result(name, optimizers) for name in self.experiment.tasks]

    def learned(self) -> dict[str, upstream.Optimizer]:
        """The learned optimizers of the experiment, of its first meta-training seed."""
        found = {}
        for name, source in self.experiment.optimizers.items():
            contestant = self._optimizer(name, source, self._seeds(source)[0])
            found[name] = contestant.make(contestant.hyper)
        return found

    def seconds_per_step(self, task: str, contestant: str) -> float | None:
        """Wall-clock of one inner step of one run, as measured when the cell was computed."""
        return self._timings.get(f"step {task} {contestant}")

    # The plan.

    def plan(self) -> list[PlannedCell]:
        """All cells, in the order in which they are computed; computes none."""
        lines = []
        digests: dict[str, list[str | None]] = {}
        for name, source in self.experiment.optimizers.items():
            digests[name] = []
            for seed in self._seeds(source):
                directory = self._directory(name, source, seed)
                done = directory is None or _finished(directory)
                label = f"{name}, seed {seed}" if directory else f"{name}, given"
                identity = _identity(self._load(name, source, seed)) if done else None
                digests[name].append(identity)
                lines.append(self._line("meta-train", label, done, f"meta-train {name}"))
        for name, source in self.experiment.early_evidence.items():
            directory = self._directory(f"early-{name}", source, 0)
            done = directory is None or _finished(directory)
            lines.append(
                self._line(
                    "meta-train", f"early evidence, {name}", done, f"meta-train early-{name}"
                )
            )
        for task_name in self.experiment.tasks:
            lines += self._plan_task(task_name, digests)
        return lines

    def _plan_task(
        self, task_name: str, digests: Mapping[str, Sequence[str | None]]
    ) -> Iterator[PlannedCell]:
        identities: dict[str, list[str | None]] = {n: list(d) for n, d in digests.items()}
        for name in self.experiment.baselines:
            search = self._tune_cell(task_name, name)
            cached = search in self._store
            yield self._line("tune", search.label, cached, f"tune {task_name} {name}")
            tuned = self._tuned(search, name) if cached else None
            identities[name] = [None if tuned is None else _identity(tuned)]
        reference = identities[self.experiment.reference]
        for name in self.experiment.contestants:
            for index, identity in enumerate(identities[name]):
                label = f"{task_name}, {name}" + (f", #{index}" if index else "")
                other = reference[index % len(reference)]
                points = [f"{label}, {point}" for point in verdicts.POINTS]
                stages = ["train", *["measure"] * len(points)]
                labels = [label, *points]
                cells: list[Cell | None] = [None] * len(stages)
                if identity:
                    cells = [
                        self._runs_cell(task_name, name, identity),
                        *(
                            self._measure_cell(task_name, name, identity, point)
                            for point in verdicts.POINTS
                        ),
                    ]
                if name != self.experiment.reference:
                    stages, labels = [*stages, "match"], [*labels, label]
                    cells.append(
                        self._match_cell(task_name, name, identity, other)
                        if identity and other
                        else None
                    )
                for stage, text, cell in zip(stages, labels, cells, strict=True):
                    rate = f"{stage} {task_name}" + (f" {name}" if stage == "train" else "")
                    yield self._line(stage, text, cell is not None and cell in self._store, rate)

    def _line(self, stage: str, label: str, cached: bool, rate: str) -> PlannedCell:
        # Of the same work, else of the same kind of work elsewhere in this experiment.
        kind = rate.partition(" ")[0]
        alike = [seconds for key, seconds in self._timings.items() if key.startswith(f"{kind} ")]
        seconds = self._timings.get(rate, max(alike, default=None))
        return PlannedCell(stage, label, cached, seconds)

    # Optimizers.

    def _seeds(self, source: str) -> tuple[int, ...]:
        return self.experiment.meta_training_seeds if source.endswith(".gin") else (0,)

    def _directory(self, name: str, source: str, seed: int) -> pathlib.Path | None:
        """Where an optimizer is meta-trained; None: it is trained already."""
        if not source.endswith(".gin"):
            return None
        with _other_gin([source], self._bindings(seed)):
            digest = hashlib.sha256("\n".join(_gin_lines()).encode()).hexdigest()[:12]
        return self.out_dir / "optimizers" / f"{name}-seed{seed}-{digest}"

    def _bindings(self, seed: int) -> list[str]:
        return [*self.experiment.bindings, f"outer_train.seed = {seed}"]

    def _optimizer(self, name: str, source: str, seed: int) -> Contestant:
        """Meta-trained now, unless it is there."""
        directory = self._directory(name, source, seed)
        if directory is not None and not _finished(directory):
            start = time.monotonic()
            with _other_gin([source], self._bindings(seed)):
                outer_train(directory, progress=self._progress)
            (directory / "finished").touch()
            self._record(f"meta-train {name}", time.monotonic() - start)
            jax.clear_caches()
        return self._load(name, source, seed)

    def _load(self, name: str, source: str, seed: int) -> Contestant:
        if source == GIVEN:
            return dataclasses.replace(self._given[name], name=name)
        return contestants_lib.load(name, self._directory(name, source, seed) or source)

    def early_evidence(self) -> early_evidence.EarlyEvidence | None:
        """The paper's early evidence, if the experiment asks for it."""
        if not self.experiment.early_evidence:
            return None
        learned = {
            name: self._optimizer(f"early-{name}", source, 0)
            for name, source in self.experiment.early_evidence.items()
        }
        spec = {"learned": {name: _identity(one) for name, one in learned.items()}}
        cell = Cell("early", "cubic polynomials", spec)

        def compute() -> dict[str, Any]:
            found = store.fields(early_evidence.early_evidence(learned))
            found["fits"] = {name: store.fields(fits) for name, fits in found["fits"].items()}
            return found

        tree = self._cell(cell, "early evidence", compute)
        tree["fits"] = {
            name: early_evidence.Fits(**tree["fits"][name])
            for name in sorted(tree["fits"], key=lambda name: (name not in learned, name))
        }
        return early_evidence.EarlyEvidence(**tree)

    # Cells of one task.

    def _task_result(
        self, task_name: str, optimizers: Mapping[str, Sequence[Contestant]]
    ) -> verdicts.TaskResult:
        task = image_task(task_name)
        entries = {
            name: [(one, _identity(one)) for one in trained] for name, trained in optimizers.items()
        }
        trainer = training.Trainer(
            task,
            self.experiment.num_runs,
            self.experiment.num_steps,
            self.experiment.seed,
            progress=self._progress,
        )
        trainer.layout = self._layout(task_name, trainer, entries[next(iter(entries))][0][0])
        for name in self.experiment.baselines:
            tuned = self._tune(task_name, trainer, name)
            entries[name] = [(tuned, _identity(tuned))]
        runs = {
            name: [self._train(task_name, trainer, *entry) for entry in entries[name]]
            for name in self.experiment.contestants
        }
        found: dict[str, verdicts.Result] = {}
        for name in self.experiment.contestants:
            identities = [identity for _, identity in entries[name]]
            at = {
                point: [
                    self._measure(
                        task, self._measure_cell(task_name, name, identity, point), one, point
                    )
                    for identity, one in zip(identities, runs[name], strict=True)
                ]
                for point in verdicts.POINTS
            }
            matched = []
            if name != self.experiment.reference:
                others = entries[self.experiment.reference]
                for index, identity in enumerate(identities):
                    other = index % len(others)
                    cell = self._match_cell(task_name, name, identity, others[other][1])
                    matched.append(
                        self._match(
                            task, cell, runs[name][index], runs[self.experiment.reference][other]
                        )
                    )
            contestant = entries[name][0][0]
            found[name] = verdicts.Result(
                name=contestant.label,
                own_property=self.experiment.property_of(name),
                gradients_per_step=contestant.gradients_per_step,
                learning_rate=contestant.learning_rate,
                runs=runs[name],
                at=at,
                matched=matched,
                slices=self._slices(task_name, task, name, entries[name][0][1], runs[name][0]),
            )
        return verdicts.TaskResult(
            task_name,
            self.experiment.num_steps,
            self.measurement,
            self.experiment.reference,
            found,
        )

    def _layout(self, task_name: str, trainer: training.Trainer, contestant: Contestant) -> Layout:
        """Given, or found in the manifest, or measured and put there."""
        if self.experiment.layout is not None:
            return Layout(*self.experiment.layout)
        path = self.out_dir / _MANIFEST
        manifest = _read_json(path)
        chosen = manifest.setdefault("layouts", {})
        size = f"{task_name}, {self.experiment.num_runs} runs"
        if size not in chosen:
            speeds = training.measure_layouts(trainer, contestant)
            chosen[size] = dataclasses.asdict(max(speeds, key=lambda layout: speeds[layout]))
            _write_json(path, manifest)
        return Layout(**chosen[size])

    def _spec(self, task_name: str) -> dict[str, Any]:
        """What every cell of a task depends on."""
        return {
            "task": task_name,
            "num_steps": self.experiment.num_steps,
            "seed": self.experiment.seed,
            "splits": _splits_identity(),
        }

    def _tune_cell(self, task_name: str, name: str) -> Cell:
        rates = contestants_lib.BASELINES[name].learning_rates
        spec = {**self._spec(task_name), "baseline": name, "rates": [float(r) for r in rates]}
        return Cell("tune", f"{task_name} {name}", spec)

    def _tune(self, task_name: str, trainer: training.Trainer, name: str) -> Contestant:
        def compute() -> dict[str, Any]:
            tuned = training.tune(
                name,
                trainer.task,
                self.experiment.num_steps,
                self.experiment.seed,
                layout=trainer.layout,
                programs=trainer.programs,
                progress=self._progress,
            )
            return {"learning_rate": np.asarray(tuned.learning_rate)}

        cell = self._tune_cell(task_name, name)
        self._cell(cell, f"tune {task_name} {name}", compute)
        return self._tuned(cell, name)

    def _tuned(self, cell: Cell, name: str) -> Contestant:
        return contestants_lib.baseline(name, float(self._store.load(cell)["learning_rate"]))

    def _runs_cell(self, task_name: str, name: str, identity: str) -> Cell:
        spec = {
            **self._spec(task_name),
            "num_runs": self.experiment.num_runs,
            "contestant": identity,
        }
        return Cell("runs", f"{task_name} {name}", spec)

    def _train(
        self, task_name: str, trainer: training.Trainer, contestant: Contestant, identity: str
    ) -> training.Runs:
        name = contestant.name
        cell = self._runs_cell(task_name, name, identity)

        def compute() -> dict[str, Any]:
            start = time.monotonic()
            runs = trainer.train([contestant])[name]
            steps = self.experiment.num_runs * self.experiment.num_steps
            self._record(f"step {task_name} {name}", (time.monotonic() - start) / steps)
            return store.fields(runs)

        return training.Runs(**self._cell(cell, f"train {task_name} {name}", compute))

    def _measure_cell(self, task_name: str, name: str, identity: str, point: str) -> Cell:
        spec = {
            **self._runs_cell(task_name, name, identity).spec,
            "point": point,
            "measurement": dataclasses.asdict(self.measurement),
        }
        return Cell("surroundings", f"{task_name} {name} {point}", spec)

    def _measure(
        self, task: tasks.ImageTask, cell: Cell, runs: training.Runs, point: str
    ) -> properties.Surroundings:
        params = runs.poc_params if point == "poc" else runs.final_params

        def compute() -> dict[str, Any]:
            return store.fields(properties.measure(task, params, self.measurement))

        return properties.Surroundings(**self._cell(cell, f"measure {task.name}", compute))

    def _slices(
        self,
        task_name: str,
        task: tasks.ImageTask,
        name: str,
        identity: str,
        runs: training.Runs,
    ) -> landscape.LossSlices | None:
        """Of learned optimizers."""
        if name not in self.experiment.optimizers:
            return None
        spec = {**self._runs_cell(task_name, name, identity).spec, "reach": 1.0, "points": 25}
        cell = Cell("slices", f"{task_name} {name}", spec)

        def compute() -> dict[str, Any]:
            params = jax.tree.map(lambda leaf: leaf[0], runs.poc_params)
            return store.fields(landscape.loss_slices(task, params))

        return landscape.LossSlices(**self._cell(cell, f"slices {task_name}", compute))

    def _match_cell(self, task_name: str, name: str, identity: str, reference: str) -> Cell:
        spec = {
            **self._runs_cell(task_name, name, identity).spec,
            "reference": reference,
            "measurement": dataclasses.asdict(_headline_alone(self.measurement)),
        }
        return Cell("matched", f"{task_name} {name}", spec)

    def _match(
        self, task: tasks.ImageTask, cell: Cell, runs: training.Runs, reference: training.Runs
    ) -> verdicts.Matched:
        def compute() -> dict[str, Any]:
            level = properties.matched_level(runs, reference)
            out: dict[str, Any] = {"level": properties.level_loss(level)}
            for side, one in (("own", runs), ("reference", reference)):
                params, out[f"{side}_step"] = properties.params_at_level(one, level)
                measured = properties.measure(task, params, _headline_alone(self.measurement))
                out[side] = store.fields(measured)
            return out

        tree = self._cell(cell, f"match {task.name}", compute)
        for side in ("own", "reference"):
            tree[side] = properties.Surroundings(**tree[side])
        return verdicts.Matched(**tree)

    def _cell(self, cell: Cell, rate: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if cell not in self._store:
            start = time.monotonic()
            self._store.save(cell, compute())
            self._record(rate, time.monotonic() - start)
        return self._store.load(cell)

    def _record(self, rate: str, seconds: float) -> None:
        self._timings[rate] = seconds
        _write_json(self.out_dir / _TIMINGS, self._timings)


def image_task(name: str) -> tasks.ImageTask:
    """An image task of ours in phase "meta_test".

    Raises:
      errors.UnknownNameError: nothing is registered under `name`.
      TypeError: the task is not an image task of ours.
    """
    task = tasks.get(name, "meta_test")
    if not isinstance(task, tasks.ImageTask) or not isinstance(
        task.datasets, data_lib.ResidentDatasets
    ):
        raise TypeError(f"Only image tasks of regularized_lopt are meta-tested; {name!r} is none.")
    return task


@contextlib.contextmanager
def _other_gin(files: Sequence[str], bindings: Sequence[str]) -> Iterator[None]:
    """Gin's configuration replaced by another for a while."""
    outside = gin.config_str(max_line_length=10_000)
    gin.clear_config()
    try:
        launch.parse_gin(files, bindings)
        yield
    finally:
        gin.clear_config()
        gin.parse_config(outside)


def _gin_lines() -> list[str]:
    """Gin's bindings, less those that do not change what is learned."""
    free = ("outer_train.log_every", "outer_train.checkpoint_every", "outer_train.progress")
    lines = gin.config_str(max_line_length=10_000).splitlines()
    return sorted(line for line in lines if line and not line.startswith(("#", "import", *free)))


def _headline_alone(what: properties.Measurement) -> properties.Measurement:
    """For runs at matched training loss: one radius, no Hessian."""
    return dataclasses.replace(what, radii=(what.radii[what.headline],), num_probes=0)


def _identity(contestant: Contestant) -> str:
    return f"{contestant.kind} {store.digest(contestant.hyper)}"


def _splits_identity() -> str:
    """Changes where gin's parameters of the data splits do."""
    return store.digest(data_lib.meta_splits(1000))


def _finished(directory: pathlib.Path) -> bool:
    return (directory / "finished").is_file()


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _write_json(path: pathlib.Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(json.dumps(value, indent=1, sort_keys=True))
    scratch.replace(path)
