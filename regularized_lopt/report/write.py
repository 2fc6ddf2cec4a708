"""Reports on experiments: files, figures and a page."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib import figure as mpl_figure

from regularized_lopt.measure import selections
from regularized_lopt.measure.cubic_regression import EarlyEvidence
from regularized_lopt.measure.flatness import LIVE_SCALES, SCALES
from regularized_lopt.measure.results import POINTS, StudyResults
from regularized_lopt.measure.update_curves import UpdateCurve
from regularized_lopt.report import (
    dose_response,
    export,
    log_ratios,
    optimizer_tables,
    paper_claims,
    plot_style,
    tables,
    update_figures,
)
from regularized_lopt.report import figures as figures_lib
from regularized_lopt.report import verdicts as verdicts_lib
from regularized_lopt.report.sections import Page, Table


def write(study: StudyResults, out_dir: pathlib.Path) -> Page:
    """Writes tables and figures of a study, and returns its page, not written yet.

    The paper's claims are gone through if a test was declared.
    """
    reporter = Reporter(study, out_dir)
    page = reporter.write()
    if study.meta_training:
        reporter.meta_training(page, study.meta_training, study.validation_losses)
    if study.updates:
        reporter.smoothness(page, study.updates)
    if study.early_evidence is not None:
        reporter.early_evidence(page, study.early_evidence)
    if study.spent:
        reporter.compute(page, study.spent)
    return page


class Reporter:
    """Writes the results of an experiment: files, figures, and a page."""

    def __init__(self, study: StudyResults, out_dir: pathlib.Path):
        """Judges the results; the declared tests are those of `verdicts.judge`."""
        self._study = study
        self._tasks = study.tasks
        self._classified = [task for task in study.tasks if selections.has_accuracy(task)]
        others = [task for task in study.tasks if not selections.has_accuracy(task)]
        self._groups = [group for group in (self._classified, others) if group]
        self._out_dir = out_dir
        self._primary = study.primary
        self.judged = verdicts_lib.judge(study.tasks, study.primary, study.alpha, study.test)
        self.claims = paper_claims.check_claims(study.tasks, self.judged)

    def write(self) -> Page:
        """Writes files and figures, and returns the page, without the studies' own sections."""
        claims = self.claims if self._primary is not None else []
        export.write(self._tasks, self.judged, claims, self._out_dir)
        page = Page(self._study.title, self._study.lead)
        self._quality(page)
        if any(one["seeds"] > 1 for task in self._tasks for one in selections.learned(task)):
            self._seeds(page)
        if self._study.chosen:
            self._chosen(page, self._study.chosen)
        if self._primary is not None:
            page.claims(self.claims, paper_claims.NOTE)
        self._in_detail(page)
        if self._primary is not None:
            self._declared(page)
        self._doses(page)
        self._against_sam(page)
        self._properties(page)
        for task in self._tasks:
            self._task(page, task, self._study.seconds_per_step.get(task.attrs["task"], {}))
        return page

    def _quality(self, page: Page) -> None:
        for group in self._groups:
            page.table_section(
                _at_completion(group),
                self._labelled(tables.table_1(group)),
                tables.TABLE_1_NOTE,
            )

    def _seeds(self, page: Page) -> None:
        self._add(
            page,
            figures_lib.seeds(self._tasks),
            "seeds",
            "One dot per meta-training seed, the mean over runs; hollow: baselines. Left is "
            "better.",
        )
        if not self._classified:
            return
        page.table_section(
            "Meta-training seeds that fail",
            self._labelled(tables.failures(self._classified)),
            tables.FAILURES_NOTE,
        )
        if (over := tables.over_tasks(self._classified))[1]:
            page.table_section("Over several tasks", over, tables.OVER_TASKS_NOTE)

    def _labelled(self, table: Table) -> Table:
        """With short names of the tasks, which head the columns."""
        header, rows = table
        labels = {task.attrs["task"]: selections.label(task) for task in self._tasks}
        return [header[0], *(labels[task] for task in header[1:])], rows

    def _chosen(self, page: Page, seeds: Mapping[str, int]) -> None:
        of = ", ".join(f"{name}: #{seed}" for name, seed in seeds.items())
        for group in self._groups:
            page.table_section(
                "The seed that validation chose",
                self._labelled(tables.table_1(group, seeds)),
                f"{_at_completion(group)} with one optimizer of each name: of several "
                f"meta-training seeds the one with the lowest validation loss ({of}, counted from "
                "0), which no meta-test image decides. Means ± standard deviation over runs.",
            )

    def _in_detail(self, page: Page) -> None:
        for group in self._groups:
            page.table_section(
                f"{selections.quality_name(group[0]).capitalize()} in detail",
                table := tables.quality_table(group),
                "Means ± standard deviation over runs (over meta-training seeds where there are "
                f"several), and the {table[0][3]} of them. Differences are paired, by init and "
                "batches, with 95% intervals (studentized bootstrap; Student's t below 8 units). "
                "Params at completion.",
            )

    def _declared(self, page: Page) -> None:
        tested = [v for v in self.judged if v.decision is not None]
        page.table_section(
            "Declared tests",
            tables.verdict_table(tested),
            "The family of tests that was declared beforehand, under Holm's procedure: one per "
            "task, at the headline radius, absolute, and at completion. Everything else on this "
            "page describes, each measure by its own 95% interval.",
        )

    def _doses(self, page: Page) -> None:
        colors = plot_style.palette(self._tasks)
        for family in dose_response.families(self._tasks):
            page.heading(title := f"Doses of {family.title}")
            figure = dose_response.draw(family, colors)
            self._add(page, figure, family.file, dose_response.CAPTION)
            page.table(dose_response.table(family), title)
            page.note(dose_response.NOTE)

    def _against_sam(self, page: Page) -> None:
        if (against := tables.against_sam(self._tasks))[1]:
            page.table_section(
                "Against SAM in the inner loss, with a tuned learning rate",
                against,
                "Differences at completion with 95% intervals, to a baseline that takes two "
                "gradients per step; negative in a radius: flatter than that.",
            )

    def _properties(self, page: Page) -> None:
        """Of each that an optimizer should have learned."""
        measured = [task for task in self._tasks if selections.is_measured(task)]
        keys: dict[str, list[str]] = {}
        for one in (one for task in measured for one in selections.learned(task)):
            own = keys.setdefault(one["own_property"].item(), [one.attrs["reference"]])
            own.append(one["optimizer"].item())
        for name, of in keys.items():
            self._property(page, name, measured, of)

    def _property(
        self, page: Page, name: str, measured: Sequence[xr.Dataset], keys: Sequence[str]
    ) -> None:
        page.heading(f"{name.upper()}'s property: {figures_lib.LABELS[name]}")
        scales = [set(selections.flatness_config(task).scales) for task in measured]
        for scale in (of for of in SCALES + LIVE_SCALES if of in set.intersection(*scales)):
            self._add(
                page,
                figures_lib.property_by_radius(measured, name, keys, scale),
                f"{name}_by_{scale}_radius",
                f"After the last ascent step, by {scale} radius; lower is flatter. Bands: one "
                "standard deviation.",
            )

    def _task(
        self,
        page: Page,
        task: xr.Dataset,
        seconds_per_step: Mapping[str, float],
    ) -> None:
        name = task.attrs["task"]
        (self._out_dir / name).mkdir(parents=True, exist_ok=True)
        page.heading(f"{name}: {task.attrs['runs']} runs of {task.attrs['num_steps']} steps")
        self._add(
            page,
            figures_lib.training_curves(task),
            f"{name}/training_curves",
            "Mean over runs; bands: one standard deviation.",
            detail=True,
        )
        if selections.is_measured(task):
            self._flatness(page, task)
        if seconds_per_step:
            costs = [seconds_per_step.get(key) for key in selections.keys(task)]
            page.note("What a step of one run costs, compilation excluded, evaluations included:")
            known = zip(task["name"].values, task["gradients_per_step"].values, costs, strict=True)
            rows = [
                [str(label), str(gradients), "" if s is None else f"{1000 * s:.2f}"]
                for label, gradients, s in known
            ]
            page.table((["optimizer", "gradients per step", "ms per step"], rows))

    def _flatness(self, page: Page, task: xr.Dataset) -> None:
        name = task.attrs["task"]
        self._add(
            page,
            figures_lib.differences(task, self.judged),
            f"{name}/differences",
            "Dots: mean paired difference; lines: 95% interval.",
            detail=True,
        )
        for point in POINTS:
            page.note(f"Properties at {point}, radius {selections.headline(task):g}:")
            page.table(tables.property_table(task, point), f"{name}, properties at {point}")
        if (ratios := log_ratios.table(task))[1]:
            page.note(log_ratios.NOTE)
            page.table(ratios, f"{name}, ratios at radius {selections.headline(task):g}")
        self._add(
            page,
            figures_lib.ascent_curves(task),
            f"{name}/ascent_curves",
            "Along the ascent from a random start in the ball.",
            detail=True,
        )
        if slices := selections.slices(task):
            self._add(
                page,
                figures_lib.loss_slices(slices, selections.label(task)),
                f"{name}/loss_slices",
                "Around the PoC of run 0; 1 is as far as the filters are long.",
                detail=True,
            )

    def meta_training(
        self,
        page: Page,
        curves: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]],
        losses: Mapping[str, Sequence[float]],
    ) -> None:
        """A section on how the optimizers were made, and what went wrong meanwhile.

        Args:
          page: to add to.
          curves: by optimizer and meta-training seed.
          losses: the validation losses (nats) by which a seed is chosen, by optimizer.
        """
        page.table_section(
            "Meta-training",
            optimizer_tables.meta_training_table(curves, losses),
            "Validation loss: the lowest in the last stage of the curriculum, by which a seed is "
            "chosen. Skipped: outer steps whose loss or gradient was not finite. Drawn anew: "
            "trajectories that exploded. Returns: to a checkpoint, with a lower learning rate of "
            "theta.",
        )
        self._add(
            page,
            figures_lib.outer_training(curves),
            "meta_training",
            "Losses are the plain ones, without regularizers.",
        )
        reference = self._tasks[0].attrs["reference"]
        if (learned := optimizer_tables.objective_table(curves, reference))[1]:
            page.table_section("Is the objective learned?", learned, optimizer_tables.LEARNED_NOTE)
        made = {name: of for name, of in losses.items() if np.isfinite(of).all()}
        if (foretold := optimizer_tables.validation_table(self._tasks, made))[1]:
            page.table_section(
                "What the validation loss of meta-training foretells",
                foretold,
                "Spearman's rank correlation, over all optimizers and seeds, of the validation "
                "loss and the test accuracy at completion; -1: the lower the loss, the higher the "
                "accuracy. p is for no relation, not corrected for the number of tasks.",
            )
            self._add(
                page,
                figures_lib.validation(self._tasks, made),
                "validation",
                "One dot per meta-training seed.",
            )

    def smoothness(self, page: Page, curves: Mapping[str, Sequence[Sequence[UpdateCurve]]]) -> None:
        """A section on the optimizers themselves: their updates as functions of the gradient.

        Args:
          page: to add to.
          curves: by optimizer, meta-training seed and scale.
        """
        page.table_section(
            "Updates as functions of the gradient",
            optimizer_tables.smoothness_table(curves, self._tasks[0].attrs["reference"]),
            "The steepest slope of the update of one coordinate, hidden state fixed, which the "
            "smoothing term should lower. Means ± standard deviation over meta-training seeds; "
            "differences with 95% intervals.",
        )
        caption = "One coordinate, hidden state fixed (Fig. 7 of Xiong & Hsieh 2022), first seed."
        first = {name: of[0] for name, of in curves.items()}
        self._add(page, update_figures.draw(first), "smoothness", caption)

    def compute(self, page: Page, seconds: Mapping[str, float]) -> None:
        """A section on what all of it took."""
        page.table_section(
            "Compute spent",
            optimizer_tables.compute_table(seconds),
            "Wall-clock on the machine that computed the cells, which may have had other work.",
        )

    def early_evidence(self, page: Page, found: EarlyEvidence) -> None:
        """A section on the regression of cubic polynomials."""
        page.table_section(
            "Early evidence: regression on noisy cubic polynomials",
            optimizer_tables.early_evidence_table(found),
            f"{len(found.x)} polynomials, each fitted from its own init by every optimizer. "
            "Differences are to the first, paired, with 95% intervals.",
        )
        self._add(
            page,
            figures_lib.early_evidence(found),
            "early_evidence",
            "Dots: one polynomial each. Below: the first fits, in the same colours.",
        )

    def _add(
        self, page: Page, figure: mpl_figure.Figure, name: str, caption: str, detail: bool = False
    ) -> None:
        """To the page and as a file; details are left out in Markdown, which stays short."""
        png = page.figure(figure, caption, None if detail else f"{name}.png")
        (self._out_dir / f"{name}.png").write_bytes(png)


def _at_completion(group: Sequence[xr.Dataset]) -> str:
    """What a group of tasks is judged by."""
    title = f"{selections.quality_name(group[0]).capitalize()} at completion"
    return f"{title} (%)" if selections.has_accuracy(group[0]) else title
