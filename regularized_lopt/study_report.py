"""A study from its configuration to its page: what launchers of studies end with."""

from __future__ import annotations

from regularized_lopt.report import html, markdown, terminal
from regularized_lopt.report.write import Reporter
from regularized_lopt.study.study import Study

NOTES = "NOTES.md"


def publish(study: Study, lead: str) -> None:
    """Runs an experiment as far as it has not been run, and writes its whole report.

    Args:
      study: of the experiment.
      lead: of the page, below its title.

    If the directory has a NOTES.md, RESULTS.md begins with it.
    """
    experiment = study.experiment
    reporter = Reporter(
        study.run(),
        study.out_dir,
        experiment.primary,
        experiment.alpha,
        experiment.test,
    )
    page = reporter.write(experiment.title, lead, study.seconds_per_step, study.optimizers.chosen())
    if not study.borrows_optimizers:
        if curves := study.optimizers.curves():
            reporter.meta_training(page, curves, study.optimizers.validation_losses())
        if updates := study.update_curves():
            reporter.smoothness(page, updates)
    if (found := study.early_evidence()) is not None:
        reporter.early_evidence(page, found)
    if spent := dict(study.cache.spent.items()):
        reporter.compute(page, spent)
    html.write(page, study.out_dir / "report.html")
    notes = study.out_dir / NOTES
    text = notes.read_text() if notes.is_file() else ""
    markdown.write(page, study.out_dir / "RESULTS.md", text)
    terminal.show(page)
    print(f"Results, figures and report: {study.out_dir / 'report.html'}")
