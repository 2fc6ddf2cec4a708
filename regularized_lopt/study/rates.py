"""What units of a study's work cost on this machine."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import gin
import jax

from regularized_lopt import tasks
from regularized_lopt.learned_optimizers import LSTMLOpt
from regularized_lopt.measure import cubic_regression, flatness, points
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure import trainer as trainer_lib
from regularized_lopt.measure import update_curves as update_curves_lib
from regularized_lopt.measure.optimizers import EvaluatedOptimizer
from regularized_lopt.outer_training import outer_train
from regularized_lopt.run_files import load_metrics
from regularized_lopt.study import cache as cache_lib
from regularized_lopt.study import study as study_lib
from regularized_lopt.study.task_runs import resident_task

_STEPS = 20  # Inner or outer, to time.


class NotMeasuredError(Exception):
    """A rate is neither there nor to be measured."""


class Rates:
    """Seconds per unit of work on this machine; each is measured once and kept, if at all."""

    def __init__(self, study: study_lib.Study, measure: bool):
        self._study = study
        self._measure = measure
        self._experiment = study.experiment
        self._kept = cache_lib.Numbers(study.out_dir / "rates.json")
        self._trainers: dict[str, trainer_lib.Trainer] = {}

    def meta_training(self, source: str, seed: int) -> float:
        """Of a configuration, less its validations."""

        def measure() -> float:
            with tempfile.TemporaryDirectory() as scratch:
                outer_train(scratch, num_outer_steps=_STEPS, log_every=1, progress=False)
                seconds = load_metrics(scratch)["seconds"]
            jax.clear_caches()
            # The first step compiles.
            return float(seconds[-1] - seconds[0]) / (len(seconds) - 1)

        with self._study.optimizers.configured(source, seed):
            default = inspect.signature(outer_train).parameters["num_outer_steps"].default
            steps = gin.get_bindings("outer_train").get("num_outer_steps", default)
            return int(steps) * self._rate(f"outer step {source}", measure)

    def tuning(self, task: str, name: str) -> float:
        """Of a baseline."""
        rates = optimizers_lib.BASELINES[name].learning_rates
        runs = self._experiment.tuning_runs * len(rates)
        steps = self._steps(name, self._experiment.tuning_steps_on(task))
        return runs * steps * self._inner_step(task, name)

    def training(self, task: str, name: str) -> float:
        """Of all runs of an optimizer."""
        runs = self._experiment.plans[task].runs
        steps = self._steps(name, self._experiment.num_steps)
        return runs * steps * self._inner_step(task, name)

    def measuring(self, task: str) -> float:
        """At one point of all measured runs."""
        what = self._study.flatness_config
        ascents = len(what.radii) - 1 + what.headline_starts
        return self._experiment.plans[task].num_measured * ascents * self._ascent(task)

    def matching(self, task: str) -> float:
        """Of both sides."""
        ascents = 2 * self._study.flatness_config.headline_starts
        return self._experiment.plans[task].num_measured * ascents * self._ascent(task)

    def slicing(self, task: str) -> float:
        """625 losses of a quarter of the examples: about the work of an ascent."""
        return self._ascent(task)

    def update_curves(self, name: str) -> float:
        """Of one meta-training seed of an optimizer."""
        one = self._like(name)

        def measure() -> float:
            return _second_time(lambda: update_curves_lib.update_curves(one.make(one.hyper)))

        return self._rate(f"update curves {one.kind}", measure)

    def early_evidence(self) -> float:
        """Of the fits by learned optimizers, beside which SGD's take no time."""
        return sum(self._fits(*item) for item in self._experiment.early_evidence.items())

    # The units.

    def _rate(self, name: str, measure: Callable[[], float]) -> float:
        if (kept := self._kept.get(name)) is not None:
            return kept
        if not self._measure:
            raise NotMeasuredError
        if self._study.progress:
            print(f"Timing: {name}", file=sys.stderr)
        self._kept[name] = seconds = measure()
        return seconds

    def _steps(self, name: str, num_steps: int) -> int:
        """Those that an optimizer takes within the experiment's budget."""
        is_learned = name in self._experiment.optimizers
        one = self._like(name) if is_learned else optimizers_lib.BASELINES[name]
        return optimizers_lib.steps_within(
            self._experiment.budget, num_steps, one.gradients_per_step
        )

    def _inner_step(self, task: str, name: str) -> float:
        """Seconds per step of one run, as parallel as the runs will be."""
        if name in self._experiment.optimizers:
            optimizer = self._like(name)
            return self._rate(
                f"inner step {task} {optimizer.kind}", lambda: self._time_steps(task, optimizer)
            )
        # Baselines cost little but their gradients.
        sgd = optimizers_lib.baseline("SGD", 0.01)
        seconds = self._rate(f"inner step {task} SGD", lambda: self._time_steps(task, sgd))
        return seconds * optimizers_lib.BASELINES[name].gradients_per_step

    def _time_steps(self, task: str, optimizer: EvaluatedOptimizer) -> float:
        trainer = self._trainer(task)
        trial = trainer.like(num_steps=_STEPS, seed=0, eval_steps=[], progress=False)
        return _second_time(lambda: trial.train([optimizer])) / (_STEPS * trainer.num_runs)

    def _trainer(self, task: str) -> trainer_lib.Trainer:
        if task not in self._trainers:
            optimizers = {name: [self._like(name)] for name in self._experiment.optimizers}
            self._trainers[task] = self._study.on(task, optimizers).trainer
        return self._trainers[task]

    def _like(self, name: str) -> EvaluatedOptimizer:
        """An optimizer, or an untrained one of its kind."""
        source = self._experiment.optimizers[name]
        seed = self._study.optimizers.seeds(name)[0]
        return self._study.optimizers.trained(name, source, seed) or self._untrained(source)

    def _untrained(self, source: str) -> EvaluatedOptimizer:
        with self._study.optimizers.configured(source, 0):
            lopt = gin.get_bindings("outer_train").get("learned_opt") or LSTMLOpt()
        return optimizers_lib.learned(source, lopt, lopt.init(jax.random.PRNGKey(0)))

    def _ascent(self, task: str) -> float:
        """Seconds per run and start, at one radius, the Hessian's share included."""

        def measure() -> float:
            on = resident_task(task, self._experiment.phase)
            point = points.joined(*on.init_with_state(jax.random.PRNGKey(0)))
            point = jax.tree.map(lambda leaf: leaf[None], point)
            what = dataclasses.replace(
                self._study.keys.flatness_config_of(task),
                radii=self._study.flatness_config.headline_alone().radii,
                headline_starts=1,
            )
            return _second_time(lambda: flatness.measure(on, point, what))

        more = [of for of in self._study.flatness_config.scales if of not in flatness.SCALES]
        return self._rate(" ".join([f"ascent {task}", *more]), measure)

    def _fits(self, name: str, source: str) -> float:
        """Seconds of the early evidence's fits with one optimizer."""
        trained = self._study.optimizers.trained(study_lib.early_name(name), source, 0)
        optimizer, family = trained or self._untrained(source), tasks.CubicRegressionFamily()

        def measure() -> float:
            return _second_time(lambda: cubic_regression.fit(optimizer, family, num_steps=_STEPS))

        whole = inspect.signature(cubic_regression.fit).parameters["num_steps"].default
        return whole / _STEPS * self._rate(f"{_STEPS} steps of all fits {optimizer.kind}", measure)


def _second_time(function: Callable[[], Any]) -> float:
    """Seconds, once compiled."""
    function()
    start = time.monotonic()
    function()
    return time.monotonic() - start
