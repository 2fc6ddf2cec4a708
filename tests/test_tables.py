"""Tables, and the figures that show the same."""

import dataclasses

import numpy as np
from helpers_results import FLATNESS_CONFIG, curves, measured_task, optimizer, trained
from helpers_study import RELU

from regularized_lopt import statistics
from regularized_lopt.measure import dataset
from regularized_lopt.report import (
    figures,
    optimizer_tables,
    tables,
)


def test_seeds_are_compared_over_all_tasks_of_a_kind():
    """Accuracies are given: [tasks, seeds]; one optimizer has not been on the second CNN."""
    accuracy = {
        "none": [[0.9, 0.8, 0.7], [0.5, 0.4, 0.6], [0.9, 0.9, 0.2]],
        "sam": [[0.9, 0.9, 0.9], [0.7, 0.6, 0.9], [0.9, 0.9, 0.9]],
        "gam": [[0.1, 0.2], None, [0.3, 0.2]],
    }
    tasks = [
        dataset.of_task(
            f"task {i}",
            {"architecture": architecture},
            1,
            FLATNESS_CONFIG,
            "none",
            {key: trained(rows[i]) for key, rows in accuracy.items() if rows[i]},
        )
        for i, architecture in enumerate(("Conv", "LeNet", "MLP"))
    ]
    header, rows = tables.over_tasks(tasks)
    # A single MLP is no more than its own column.
    columns = ("tasks", "accuracy (%)", "IQM (95%)", "fail", "vs none (points, 95%)")
    assert header == ["optimizer", *(f"CNNs: {column}" for column in columns)]
    by_name = {name: others for name, *others in rows}
    means = {k: 100 * np.mean(v[:2], axis=0) for k, v in accuracy.items() if k != "gam"}
    difference = statistics.paired_difference(means["sam"], means["none"])
    middle = {
        k: str(statistics.interquartile_mean(100 * np.array(accuracy[k][:2]), shared_units=True))
        for k in means
    }
    summaries = {k: str(statistics.summarize(of)) for k, of in means.items()}
    assert by_name["none"] == ["2", summaries["none"], middle["none"], "4 of 6", ""]
    assert by_name["sam"] == ["2", summaries["sam"], middle["sam"], "2 of 6", str(difference)]
    assert by_name["gam"] == [""] * 5
    assert tables.over_tasks(tasks[:1])[1] == []


def test_every_meta_training_seed_is_drawn_and_the_lowest_is_told():
    """One seed of "none" diverged. "sam" has one seed, and two runs."""
    accuracies = (0.9, 0.6, np.nan)
    sam = dataclasses.replace(optimizer([0.0], [1.0]), curves=[curves([0.85, 0.8])])
    both = measured_task(
        RELU,
        sam=sam,
        none=dataclasses.replace(
            optimizer([0.0] * 3, [1.0] * 3), curves=[curves([one] * 2) for one in accuracies]
        ),
    )
    found = measured_task(RELU, none=sam, sam=sam)
    figure = figures.seeds([both, found])
    assert [len(axis.lines) for axis in figure.axes] == [2, 2]
    np.testing.assert_allclose(figure.axes[0].lines[1].get_xdata(), (10, 40, 100), rtol=1e-5)
    assert [len(line.get_xdata()) for line in figure.axes[1].lines] == [1, 1]
    # The seed that diverged is the worst, not left out.
    losses = {"none": (0.2, 0.3, 0.4)}
    assert optimizer_tables.validation_table([both], losses)[1] == [[RELU, "3", "-1.00", "0"]]
    assert optimizer_tables.validation_table([both], {"none": (0.2, 0.4, 0.3)})[1][0][2] == "-0.50"
    assert optimizer_tables.validation_table([found], {"none": (0.2,)})[1] == []
    (dots,) = figures.validation([both], losses).axes[0].lines
    np.testing.assert_allclose(dots.get_ydata(), (10, 40, 100), rtol=1e-5)
    header, rows = tables.quality_table([both])
    lowest = {row[1]: row[header.index("lowest")] for row in rows}
    assert lowest == {"none": "60.00", "sam": "80.00"}
    # The best is the seed with 90%: the one with 60% fails, and so does the one that diverged.
    assert tables.failures([both, found])[1] == [["none", "2 of 3", "0 of 1"]]
    assert tables.failures([found])[1] == []
