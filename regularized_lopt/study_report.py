"""A study from its configuration to its page: what launchers of studies end with."""

from __future__ import annotations

import pathlib

from regularized_lopt.measure import results_file
from regularized_lopt.measure.results import StudyResults
from regularized_lopt.report import pages
from regularized_lopt.report import write as write_lib
from regularized_lopt.study.study import Study


def publish(study: Study, lead: str) -> None:
    """Runs an experiment as far as it has not been run, keeps its results, and writes its report.

    Args:
      study: of the experiment.
      lead: of the page, below its title.
    """
    results_file.save(results(study, lead), study.out_dir / results_file.FILE)
    rewrite(study.out_dir)


def results(study: Study, lead: str) -> StudyResults:
    """All that the page is made from; what is missing is computed."""
    experiment, owns = study.experiment, not study.borrows_optimizers
    tasks = study.run()
    return StudyResults(
        experiment.title,
        lead,
        tasks,
        experiment.primary,
        experiment.alpha,
        experiment.test,
        seconds_per_step={task.attrs["task"]: study.seconds_per_step(task) for task in tasks},
        chosen=study.optimizers.chosen(),
        meta_training=study.optimizers.curves() if owns else {},
        validation_losses=study.optimizers.validation_losses() if owns else {},
        updates=study.update_curves(),
        early_evidence=study.early_evidence(),
        spent=dict(study.cache.spent.items()),
    )


def rewrite(out_dir: pathlib.Path) -> None:
    """Writes tables, figures and pages from the results that a study has kept; computes nothing.

    If the directory has a NOTES.md, RESULTS.md begins with it.

    Raises:
      FileNotFoundError: there are no results.
      serialization.FileFormatError: they are damaged.
    """
    report(results_file.load(out_dir / results_file.FILE), out_dir)


def report(found: StudyResults, out_dir: pathlib.Path) -> None:
    """`rewrite` of results that have been loaded."""
    pages.write(write_lib.write(found, out_dir), out_dir)
    print(f"Results, figures and report: {out_dir / pages.REPORT}")
