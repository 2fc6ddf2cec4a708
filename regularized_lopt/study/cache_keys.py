"""The keys of an experiment's results: what each of them depends on.

The words of a spec are in the files that are kept, and in their digests. They stay as they are,
whatever the code calls these things by now.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure.flatness import FlatnessConfig
from regularized_lopt.measure.optimizers import EvaluatedOptimizer
from regularized_lopt.measure.training_curves import LEVEL_RATIO, LEVELS_KEPT
from regularized_lopt.study import cache as cache_lib
from regularized_lopt.study.cache import CacheKey
from regularized_lopt.study.experiment import Experiment
from regularized_lopt.tasks import data as data_lib


@dataclasses.dataclass(frozen=True)
class Identity:
    """What an optimizer is called in the keys of the results that depend on it.

    Attributes:
      name: unlike any other's.
      lasting: it is called so in every process.
      gradients_per_step: on which the number of its steps may depend.
    """

    name: str
    lasting: bool
    gradients_per_step: int = 1


def identity(optimizer: EvaluatedOptimizer) -> Identity:
    """Of an optimizer."""
    name = f"{optimizer.kind} {cache_lib.digest(optimizer.hyper)}"
    return Identity(name, optimizer.lasting, optimizer.gradients_per_step)


@dataclasses.dataclass(frozen=True)
class CacheKeys:
    """The keys of an experiment's results.

    Attributes:
      experiment: what is compared on what.
      flatness_config: what is measured.
    """

    experiment: Experiment
    flatness_config: FlatnessConfig

    def flatness_config_of(self, task: str) -> FlatnessConfig:
        """What is measured on a task."""
        examples = self.experiment.plans[task].examples
        if examples is None:
            return self.flatness_config
        return dataclasses.replace(self.flatness_config, num_examples=examples)

    def tune(self, task: str, baseline: str) -> CacheKey:
        """The learning rate of a baseline."""
        one = optimizers_lib.BASELINES[baseline]
        num_steps = self.experiment.tuning_steps_on(task)
        spec = {
            **self._spec(task),
            "num_steps": num_steps,
            "baseline": baseline,
            "rates": [float(rate) for rate in one.learning_rates],
            "tuning_runs": self.experiment.tuning_runs,
            **self._fewer_steps("steps", num_steps, one.gradients_per_step),
        }
        return CacheKey("tune", f"{task} {baseline}", spec)

    def training_curves(self, task: str, name: str, optimizer: Identity) -> CacheKey:
        """`TrainingCurves` of an optimizer, whose `identity` is given."""
        spec = {
            **self._spec(task),
            "num_runs": self.experiment.plans[task].runs,
            "contestant": optimizer.name,
            "levels": [LEVEL_RATIO, LEVELS_KEPT],
            **self._fewer_steps("steps", self.experiment.num_steps, optimizer.gradients_per_step),
        }
        return CacheKey("runs", f"{task} {name}", spec, optimizer.lasting)

    def saved_params(self, task: str, name: str, optimizer: Identity) -> CacheKey:
        """`SavedParams` of those runs: large, and needed only to measure around them."""
        return dataclasses.replace(self.training_curves(task, name, optimizer), kind="ends")

    def flatness(self, task: str, name: str, optimizer: Identity, point: str) -> CacheKey:
        """`flatness.Flatness` of those runs."""
        spec = {
            **self._measured(task, name, optimizer),
            "point": point,
            "measurement": self.flatness_config_of(task).at_ends().record(),
        }
        return CacheKey("surroundings", f"{task} {name} {point}", spec, optimizer.lasting)

    def matched(self, task: str, name: str, optimizer: Identity, reference: Identity) -> CacheKey:
        """`dataset.Matched` of those runs and the reference's."""
        spec = {
            **self._measured(task, name, optimizer),
            "reference": reference.name,
            **self._fewer_steps(
                "reference_steps", self.experiment.num_steps, reference.gradients_per_step
            ),
            "measurement": self.flatness_config_of(task).headline_alone().record(),
        }
        lasting = optimizer.lasting and reference.lasting
        return CacheKey("matched", f"{task} {name}", spec, lasting)

    def slices(self, task: str, name: str, optimizer: Identity) -> CacheKey:
        """`loss_slices.LossSlices` around the first of those runs."""
        spec = {**self.training_curves(task, name, optimizer).spec, "reach": 1.0, "points": 25}
        return CacheKey("slices", f"{task} {name}", spec, optimizer.lasting)

    def update_curves(self, name: str, optimizer: Identity) -> CacheKey:
        """`measure.update_curves` of an optimizer."""
        return CacheKey("updates", name, {"contestant": optimizer.name}, optimizer.lasting)

    def early_evidence(self, learned: Mapping[str, Identity]) -> CacheKey:
        """`cubic_regression.EarlyEvidence` with learned optimizers, by name."""
        names = {name: one.name for name, one in learned.items()}
        lasting = all(one.lasting for one in learned.values())
        return CacheKey("early", "cubic polynomials", {"learned": names}, lasting)

    def _spec(self, task: str) -> dict[str, Any]:
        """What every result on a task depends on."""
        return {
            "task": task,
            "phase": self.experiment.phase,
            "num_steps": self.experiment.num_steps,
            "seed": self.experiment.seed,
            # Changes where gin's parameters of the data splits do.
            "splits": cache_lib.digest(data_lib.meta_splits(1000)),
        }

    def _fewer_steps(self, what: str, num_steps: int, gradients_per_step: int) -> dict[str, int]:
        """The steps that an optimizer takes, where those are fewer than `num_steps`."""
        steps = optimizers_lib.steps_within(self.experiment.budget, num_steps, gradients_per_step)
        return {} if steps == num_steps else {what: steps}

    def _measured(self, task: str, name: str, optimizer: Identity) -> dict[str, Any]:
        return {
            **self.training_curves(task, name, optimizer).spec,
            "measured_runs": self.experiment.plans[task].num_measured,
        }
