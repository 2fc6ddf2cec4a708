"""A search for hyperparameters that never sees meta-test data, logged in full.

Every variant gets the same number of trials, each with the same number of outer steps. A trial's
optimizer trains fresh networks on the meta-train images; its score is their loss, at the end, on
the images that are held out of that half. The lowest mean wins.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import xarray as xr

from regularized_lopt import errors
from regularized_lopt.configurable import configurable
from regularized_lopt.measure import selections
from regularized_lopt.measure.flatness import HEADLINE_RADIUS, FlatnessConfig
from regularized_lopt.measure.trial import Bindings, Trial
from regularized_lopt.study import locks
from regularized_lopt.study.experiment import Experiment, task_plan
from regularized_lopt.study.study import Study


@configurable()
@dataclasses.dataclass(frozen=True)
class Search:
    """What is tried.

    Attributes:
      variants: gin file of each variant, by name. The first is the base: what it finds holds for
        the others too, so that they search for what is theirs.
      trials: gin bindings of each trial, by variant; as many for each.
      task: name of the image task that is meta-trained on.
      bindings: gin bindings of all trials, e.g. a number of outer steps.
      num_runs: networks that judge a trial, > 0.
      num_steps: inner steps of each, > 0.
      seed: of meta-training and of those networks, 0 to 2^32 - 1.
    """

    variants: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trials: Mapping[str, Sequence[Bindings]] = dataclasses.field(default_factory=dict)
    task: str = "ImageMLP_Mnist_20_Sigmoid"
    bindings: Bindings = ()
    num_runs: int = 4
    num_steps: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {name: len(self.trials.get(name, ())) for name in self.variants}
        alike = len(set(counts.values())) == 1 and 0 not in counts.values()
        if set(self.trials) != set(self.variants) or not alike:
            raise ValueError(
                f"Search.trials gives {counts} for Search.variants {sorted(self.variants)}: give "
                "each variant, and no other, the same number of trials, at least one."
            )
        errors.check_count("Search.num_runs", self.num_runs)
        errors.check_count("Search.num_steps", self.num_steps)
        errors.check_seed("Search.seed", self.seed)


def search(
    what: Search, out_dir: str | pathlib.Path, progress: bool = True
) -> Iterator[list[Trial]]:
    """Runs what is missing; yields the trials of one variant after the other.

    What is wrong with one is said when it is reached, or of all at once by `check`.

    Args:
      what: is tried.
      out_dir: keeps trained optimizers and runs; what is there is not made again. Processes that
        search in the same one share the trials.
      progress: show progress bars.
    """
    out_dir = pathlib.Path(out_dir)
    base: Bindings = ()
    first = next(iter(what.variants))
    for variant, source in what.variants.items():
        trials = {
            f"{variant}-{number}": (*base, *bindings)
            for number, bindings in enumerate(what.trials[variant], 1)
        }
        done = locks.share(
            {
                name: functools.partial(_try, what, name, source, bindings, out_dir, progress)
                for name, bindings in trials.items()
            },
            out_dir / "locks",
        )
        tried = [Trial(variant, trials[name], found) for name, found in done.items()]
        best = int(np.argmin([trial.score for trial in tried]))
        tried[best] = dataclasses.replace(tried[best], chosen=True)
        if variant == first:
            base = tried[best].bindings
        yield tried


def check(what: Search, out_dir: str | pathlib.Path) -> None:
    """Refuses what is wrong before anything is trained, as `Study.check` does.

    That is every trial, with whatever the first variant may find.
    """
    first = next(iter(what.variants))
    for variant, source in what.variants.items():
        for base in [()] if variant == first else what.trials[first]:
            for bindings in what.trials[variant]:
                _study(what, variant, source, (*base, *bindings), out_dir).check()


def _try(
    what: Search,
    name: str,
    source: str,
    bindings: Bindings,
    out_dir: pathlib.Path,
    progress: bool,
) -> xr.Dataset:
    (found,) = _study(what, name, source, bindings, out_dir, progress).run()
    return selections.optimizer(found, name)


def _study(
    what: Search,
    name: str,
    source: str,
    bindings: Bindings,
    out_dir: str | pathlib.Path,
    progress: bool = True,
) -> Study:
    experiment = Experiment(
        optimizers={name: source},
        tasks=(task_plan(what.task, runs=what.num_runs),),
        phase="meta_train",
        reference=name,
        baselines=(),
        num_steps=what.num_steps,
        seed=what.seed,
        meta_training_seeds=(what.seed,),
        bindings=(*what.bindings, *bindings),
    )
    flatness_config = FlatnessConfig(radii=(HEADLINE_RADIUS,), num_probes=0)
    return Study(experiment, out_dir, flatness_config, progress=progress)
