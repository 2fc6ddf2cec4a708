"""A study: a grid of optimizers, tasks and runs, each result computed once and kept."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import xarray as xr

from regularized_lopt import serialization
from regularized_lopt.measure import cubic_regression, flatness, selections
from regularized_lopt.measure import update_curves as update_curves_lib
from regularized_lopt.measure.optimizers import EvaluatedOptimizer
from regularized_lopt.study import cache as cache_lib
from regularized_lopt.study import locks
from regularized_lopt.study.cache import CacheKey
from regularized_lopt.study.cache_keys import CacheKeys, Identity, identity
from regularized_lopt.study.experiment import Experiment, is_configuration
from regularized_lopt.study.meta_training import MetaTrainedOptimizers
from regularized_lopt.study.steps import Step, cached_step
from regularized_lopt.study.task_runs import resident_task, step_timing
from regularized_lopt.study.task_study import TaskStudy

_Learned = Mapping[str, Sequence[EvaluatedOptimizer | None]]
"""By name, per meta-training seed; None: it is still to be meta-trained."""


class Study:
    """Runs an experiment in a directory; what is there already is not run again.

    Processes that run it in the same directory share the work: each takes a meta-training, then a
    task, that no other is at.

    It holds::

        optimizers/<name>-<digest>/   meta-training, resumable by itself
        cells/                        runs, measurements and tuned learning rates, see `cache`
        cells/ends/                   params of the runs: large, needed to measure around them
        manifest.json                 the parallelism of runs that was chosen for each task
        timings.json                  seconds per result; apart, for they are never the same twice
        spent.json                    the same, summed by kind
        locks/                        what a process is at
        rates.json                    seconds per unit of work, where `plan` measured them
    """

    def __init__(
        self,
        experiment: Experiment,
        out_dir: str | pathlib.Path,
        flatness_config: flatness.FlatnessConfig | None = None,
        given: Mapping[str, EvaluatedOptimizer] | None = None,
        progress: bool = True,
        optimizers_dir: str | pathlib.Path | None = None,
    ):
        """Initializer.

        Args:
          experiment: what is compared on what.
          out_dir: created if needed; what it holds of this or another experiment is reused.
          flatness_config: default: `FlatnessConfig()` with gin's parameters.
          given: the optimizers that `experiment` says are given.
          progress: show progress bars.
          optimizers_dir: where learned optimizers are meta-trained, in place of
            out_dir/optimizers: several experiments can share them.
        """
        self.experiment = experiment
        self.out_dir = pathlib.Path(out_dir)
        self.flatness_config = flatness_config or flatness.FlatnessConfig()
        self.progress = progress
        self.keys = CacheKeys(experiment, self.flatness_config)
        self.cache = cache_lib.TimedCache(self.out_dir)
        self.optimizers = MetaTrainedOptimizers(
            experiment,
            pathlib.Path(optimizers_dir or self.out_dir / "optimizers"),
            given or {},
            progress,
            self.cache.record_seconds,
        )

    @property
    def borrows_optimizers(self) -> bool:
        """Whether they are another experiment's, whose report tells how they were made."""
        return self.optimizers.directory.resolve() != (self.out_dir / "optimizers").resolve()

    def check(self) -> None:
        """Refuses what is wrong before anything is trained: names, files, bindings.

        Afterwards all that the study reads of gin's configuration has been read.

        Raises:
          errors.UnknownNameError: of a task.
          OSError, ValueError: an optimizer cannot be read.
          gin_files.UnreadBindingError: no meta-training reads one of `Experiment.bindings`.
        """
        for name in self.experiment.plans:
            task = resident_task(name, self.experiment.phase)
            if self.experiment.plans[name].num_measured:
                flatness.check_task(task, self.keys.flatness_config_of(name))
            # Reads how data are split and, below, which settings of a baseline are tried.
            self.keys.training_curves(name, "", Identity("", lasting=False))
            for baseline in self.experiment.baselines_on(name):
                self.keys.tune(name, baseline)
        early = {early_name(name): of for name, of in self.experiment.early_evidence.items()}
        sources = {**self.experiment.optimizers, **early}
        for name, source in sources.items():
            self.optimizers.trained(name, source, 0)
        self.optimizers.check_bindings(sources)

    def steps(self) -> Iterator[Step[Any]]:
        """All that comes before the report, in the order in which it is done."""
        for name, of in (meta_training := self._meta_training()).items():
            if is_configuration(self.experiment.optimizers[name]):
                yield from of.values()
        learned = {name: _found(of) for name, of in meta_training.items()}
        for task in self.experiment.plans:
            yield from self.on(task, learned).steps().values()
        for curves in self._update_curves(learned).values():
            yield from curves
        early = self._early_meta_training()
        for name, step in early.items():
            if is_configuration(self.experiment.early_evidence[name]):
                yield step
        if early:
            yield self._early_evidence(dict(zip(early, _found(early), strict=True)))

    def run(self) -> list[xr.Dataset]:
        """Meta-trains what is missing, meta-tests, measures; a dataset per task."""
        self.check()
        advice = "Choose another directory (launchers: --out_dir)."
        serialization.make_writable(self.out_dir, advice)
        meta_training = self._meta_training()
        trained = self._share(
            {
                f"{name}-seed{seed}": step.result
                for name, of in meta_training.items()
                for seed, step in of.items()
            }
        )
        learned = {
            name: [trained[f"{name}-seed{seed}"] for seed in of]
            for name, of in meta_training.items()
        }
        tested = self._share(
            {name: functools.partial(self._test, name, learned) for name in self.experiment.plans}
        )
        return list(tested.values())

    def _test(self, task: str, learned: _Learned) -> xr.Dataset:
        return self.on(task, learned).result()  # Its programs are let go of afterwards.

    def _meta_training(self) -> dict[str, dict[int, Step[EvaluatedOptimizer]]]:
        """By name and seed."""
        return {
            name: {
                seed: self.optimizers.step(name, source, seed, f"{name}, seed {seed}")
                for seed in self.optimizers.seeds(name)
            }
            for name, source in self.experiment.optimizers.items()
        }

    def on(self, task: str, learned: _Learned) -> TaskStudy:
        """The part of the study that is about one task, with learned optimizers."""
        return TaskStudy(
            self.experiment.plans[task],
            self.experiment,
            self.keys,
            self.cache,
            self.out_dir,
            self.progress,
            learned,
        )

    def _share(self, work: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        return locks.share(work, self.out_dir / "locks")

    def early_evidence(self) -> cubic_regression.EarlyEvidence | None:
        """The paper's early evidence, if the experiment asks for it."""
        steps = self._early_meta_training()
        if not steps:
            return None
        trained = self._share({early_name(name): step.result for name, step in steps.items()})
        return self._early_evidence({name: trained[early_name(name)] for name in steps}).result()

    def _early_meta_training(self) -> dict[str, Step[EvaluatedOptimizer]]:
        return {
            name: self.optimizers.step(early_name(name), source, 0, f"early evidence, {name}")
            for name, source in self.experiment.early_evidence.items()
        }

    def _early_evidence(
        self, found: Mapping[str, EvaluatedOptimizer | None]
    ) -> Step[cubic_regression.EarlyEvidence]:
        learned = {name: one for name, one in found.items() if one is not None}

        def key() -> CacheKey | None:
            if len(learned) < len(found):
                return None
            return self.keys.early_evidence({name: identity(one) for name, one in learned.items()})

        def compute() -> dict[str, Any]:
            tree = serialization.fields(cubic_regression.early_evidence(learned))
            tree["fits"] = {name: serialization.fields(fits) for name, fits in tree["fits"].items()}
            return tree

        def read(tree: dict[str, Any]) -> cubic_regression.EarlyEvidence:
            tree["fits"] = {
                name: cubic_regression.Fits(**tree["fits"][name])
                for name in [*learned, *sorted(tree["fits"].keys() - learned.keys())]
            }
            return cubic_regression.EarlyEvidence(**tree)

        return cached_step(
            self.cache,
            "early evidence",
            "cubic polynomials",
            "early evidence",
            key,
            compute,
            read,
            lambda rates: rates.early_evidence(),
        )

    def update_curves(self) -> dict[str, list[list[update_curves_lib.UpdateCurve]]]:
        """Updates by gradient of the learned optimizers: by meta-training seed, then by scale.

        Of those that are another experiment's there are none.
        """
        learned = {
            name: [step.result() for step in of.values()]
            for name, of in self._meta_training().items()
        }
        steps = self._update_curves(learned)
        return {name: [step.result() for step in of] for name, of in steps.items()}

    def _update_curves(
        self, learned: _Learned
    ) -> dict[str, list[Step[list[update_curves_lib.UpdateCurve]]]]:
        steps: dict[str, list[Step[list[update_curves_lib.UpdateCurve]]]] = {}
        for name, of in {} if self.borrows_optimizers else learned.items():
            for seed, one in enumerate(of):
                if one is None or one.learning_rate is None:  # No baseline that was given.
                    steps.setdefault(name, []).append(self._update_curves_of(name, seed, one))
        return steps

    def _update_curves_of(
        self, name: str, seed: int, one: EvaluatedOptimizer | None
    ) -> Step[list[update_curves_lib.UpdateCurve]]:
        def compute() -> dict[str, Any]:
            assert one is not None, name
            curves = update_curves_lib.update_curves(one.make(one.hyper))
            return {str(index): curve._asdict() for index, curve in enumerate(curves)}

        return cached_step(
            self.cache,
            "update curves",
            name + (f", #{seed}" if seed else ""),
            f"update curves {name}",
            lambda: None if one is None else self.keys.update_curves(name, identity(one)),
            compute,
            lambda tree: [update_curves_lib.UpdateCurve(**tree[str(i)]) for i in range(len(tree))],
            lambda rates: rates.update_curves(name),
        )

    def seconds_per_step(self, task: xr.Dataset) -> dict[str, float]:
        """Wall-clock of one inner step of one run by optimizer, where it was timed."""
        steps = {key: step_timing(task.attrs["task"], key) for key in selections.keys(task)}
        timings = {key: self.cache.timings.get(step) for key, step in steps.items()}
        return {key: seconds for key, seconds in timings.items() if seconds is not None}


def _found(steps: Mapping[Any, Step[EvaluatedOptimizer]]) -> list[EvaluatedOptimizer | None]:
    return [step.find() for step in steps.values()]


def early_name(name: str) -> str:
    """What an optimizer of the early evidence is called among the optimizers."""
    return f"early-{name}"
