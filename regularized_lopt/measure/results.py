"""What is found on a task with every optimizer: training curves, and what is around the params."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from regularized_lopt.measure.cubic_regression import EarlyEvidence
from regularized_lopt.measure.flatness import FlatnessConfig, KeptFlatness
from regularized_lopt.measure.loss_slices import LossSlices
from regularized_lopt.measure.training_curves import TrainingCurves
from regularized_lopt.measure.update_curves import UpdateCurve

POINTS = ("poc", "completion")
_USUAL_SIZES = {"MLP": "20", "Conv": "16x32"}  # The paper's, which labels leave out.


@dataclasses.dataclass(frozen=True)
class Matched:
    """An optimizer and the reference, each when it first reached the same training loss.

    Attributes:
      level: [runs], the training loss (nats); NaN where it was not comparable.
      own_step, reference_step: [runs].
      own, reference: what was measured around the params there, at the headline radius alone.
    """

    level: np.ndarray
    own_step: np.ndarray
    reference_step: np.ndarray
    own: KeptFlatness
    reference: KeptFlatness


@dataclasses.dataclass(frozen=True)
class Result:
    """One optimizer on one task: what was found with each of its meta-training seeds.

    Attributes:
      name: in tables, with the learning rate of a baseline.
      own_property: which one it should have learned: "sam", "gsam" or "gam".
      gradients_per_step: of the loss.
      learning_rate: of a baseline; None: it was learned.
      curves: per seed.
      at: per point ("poc", "completion"), per seed; empty: nothing was measured.
      matched: per pair of seeds, see `seed_pairs`; empty for the reference, and where that was not
        measured.
      slices: of the loss around the PoC of the first run, if they were asked for.
      targeted: whether it was trained for its own property, which else is merely what to show.
      regularizer, space, strength: of its training, see `optimizers.TrainedWith`.
    """

    name: str
    own_property: str
    gradients_per_step: int
    learning_rate: float | None
    curves: Sequence[TrainingCurves]
    at: Mapping[str, Sequence[KeptFlatness]]
    matched: Sequence[Matched]
    slices: LossSlices | None = None
    targeted: bool = True
    regularizer: str = "none"
    space: str = "none"
    strength: float | None = None

    @property
    def is_learned(self) -> bool:
        """Not a baseline."""
        return self.learning_rate is None

    @property
    def judged_by(self) -> str:
        """The property that tells whether it finds flat minima: for SAM's the rise, max L - L.

        The larger part of max L is L itself, which is how well a network was trained.
        """
        return "gsam" if self.own_property == "sam" else self.own_property

    def accuracy(self) -> np.ndarray:
        """[seeds, runs], percent, at completion."""
        return np.stack([100 * curves.test_accuracy[:, -1] for curves in self.curves])

    def final_train_loss(self) -> np.ndarray:
        """[seeds, runs], nats."""
        return np.stack([curves.final_train_loss for curves in self.curves])

    def param_norm(self) -> np.ndarray:
        """[seeds, runs], at completion."""
        return np.stack([curves.param_norm[:, -1] for curves in self.curves])

    def last(self, name: str, point: str, radius: int, scale: str = "absolute") -> np.ndarray:
        """[seeds, runs]: a property after the last ascent step at one radius (index)."""
        return np.stack([s.last(name, scale)[:, radius] for s in self.at[point]])


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """All optimizers on one task.

    Attributes:
      task: its name.
      num_steps: inner steps.
      flatness_config: what was measured.
      reference: name (key) of the optimizer that others are compared with.
      optimizers: by key.
      facts: of the task, see `tasks.ImageTask`.
    """

    task: str
    num_steps: int
    flatness_config: FlatnessConfig
    reference: str
    optimizers: Mapping[str, Result]
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its name where there is little room, of what its facts say: "Mnist, Sigmoid"."""
        facts = {"architecture": "", "dataset": "", "sizes": "", "activation": "", **self.facts}
        is_mlp = facts["architecture"] == "MLP"
        usual = facts["sizes"] == _USUAL_SIZES.get(facts["architecture"])
        parts = [
            "" if is_mlp else facts["architecture"],
            facts["dataset"],
            "" if usual else facts["sizes"],
            facts["activation"] if is_mlp else "",
        ]
        return ", ".join(part for part in parts if part) if facts["architecture"] else self.task

    @property
    def is_measured(self) -> bool:
        """Whether anything was measured around the params."""
        return bool(self.reference_result.at)

    @property
    def others(self) -> Iterator[tuple[str, Result]]:
        """All optimizers but the reference."""
        return ((k, r) for k, r in self.optimizers.items() if k != self.reference)

    @property
    def learned(self) -> Iterator[tuple[str, Result]]:
        """The learned ones among the others."""
        return ((k, r) for k, r in self.others if r.is_learned)

    @property
    def reference_result(self) -> Result:
        """The optimizer that others are compared with."""
        return self.optimizers[self.reference]


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """All that the page of a study is made from.

    Attributes:
      title, lead: of the page.
      primary: (optimizer, property) of the declared tests, or None.
      alpha, test: of these, see `statistics.decide`.
      tasks: the results, task by task.
      seconds_per_step: by task and optimizer, of one inner step of one run, where it was timed.
      chosen: by optimizer, the place of the meta-training seed that validation chose.
      meta_training: the curves of meta-training, by optimizer and seed, see `load_metrics`.
      validation_losses: of meta-training (nats), by optimizer, one per seed.
      updates: updates by gradient, by optimizer, meta-training seed and scale.
      early_evidence: the regression on cubic polynomials, if it was asked for.
      spent: seconds of computing, by kind of result.
    """

    title: str
    lead: str
    tasks: Sequence[TaskResult]
    primary: tuple[str, str] | None = None
    alpha: float = 0.05
    test: str = "auto"
    seconds_per_step: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    chosen: Mapping[str, int] = dataclasses.field(default_factory=dict)
    meta_training: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]] = dataclasses.field(
        default_factory=dict
    )
    validation_losses: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    updates: Mapping[str, Sequence[Sequence[UpdateCurve]]] = dataclasses.field(default_factory=dict)
    early_evidence: EarlyEvidence | None = None
    spent: Mapping[str, float] = dataclasses.field(default_factory=dict)


def names(results: Sequence[TaskResult]) -> list[str]:
    """Keys of all optimizers in order of appearance, the learned ones before the baselines."""
    learned = {k: one.is_learned for result in results for k, one in result.optimizers.items()}
    return sorted(learned, key=lambda name: not learned[name])


def seed_pairs(own: int, reference: int) -> list[tuple[int, int]]:
    """Places of the meta-training seeds that are compared, of two numbers of seeds.

    One seed (a baseline has no more) goes with every seed of the other; of two unequal numbers, the
    seeds that both have are paired.
    """
    if 1 in (own, reference):
        return list(itertools.product(range(own), range(reference)))
    return [(place, place) for place in range(min(own, reference))]
