"""The measures of experiments/star/PROTOCOL.md, and the verdicts that rest on them."""

import json
import sys

import numpy as np
import pytest
import xarray as xr
from conftest import script

from regularized_lopt.measure.results import StudyResults
from regularized_lopt.measure.training_curves import loss_grid

verdicts = script("experiments/star/verdicts.py")
sys.modules["verdicts"] = verdicts  # figures.py lies beside it.
figures = script("experiments/star/figures.py")
STEPS = loss_grid(200_000)
NAMES = (
    "star_0.1", "blackbox", "hyperparam", "star_0", "star_0.5", "star_1",
    "no_preconditioner", "no_nominal", "Adam",
)  # fmt: skip


def curve(level, diverges=False):
    """From log 10 to a level; up at the end where it diverges."""
    losses = level + (np.log(10) - level) * np.exp(-STEPS / 100)
    return np.where(STEPS > 100_000, 5.0, losses) if diverges else losses


def study(levels=None, diverging=(), seeds=5, reached=None):
    """Curves whose seeds spread by 1%, and validations that fall to 0.5 at these outer steps."""
    spread = np.linspace(0.99, 1.01, seeds)[:, None]
    rows = [
        [
            [curve(level * factor * run, name in diverging) for run in (0.999, 1.001)]
            for factor in spread[:, 0]
        ]
        for name in NAMES
        for level in [(levels or {}).get(name, 0.5)]
    ]
    task = xr.Dataset(
        {
            "train_loss": (("optimizer", "seed", "run", "loss_step"), np.array(rows)),
            **{name: ("optimizer", np.full(len(NAMES), seeds)) for name in ("seeds", "pairs")},
            "learning_rate": ("optimizer", [1e-3 if name == "Adam" else np.nan for name in NAMES]),
            "name": ("optimizer", list(NAMES)),
        },
        {"optimizer": list(NAMES), "loss_step": STEPS},
        {"task": "T", "reference": "star_0.1"},
    )
    at = 400.0 * np.arange(1, 13)
    training = {
        name: {
            seed: {"outer_step": at, "validation_loss": np.where(at < step, 0.6, 0.5)}
            for seed in range(seeds)
        }
        for name, step in {"star_0.1": 800, "blackbox": 4000, **(reached or {})}.items()
    }
    return StudyResults("", "", [task], meta_training=training)


def verdict(statement, **planted):
    rows = {row[0]: row[1] for row in verdicts.statements(study(**planted))}
    (word,) = [word for name, word in rows.items() if statement in name]
    return word


def test_the_meta_loss_is_the_mean_of_the_horizon():
    """A line has the mean of its ends, whatever the points."""
    line = 2.0 - STEPS / 4000
    arm = verdicts.Arm(np.stack([[line]]), STEPS)
    np.testing.assert_allclose(arm.meta_loss(), [[2.0 - 1999 / 8000]], rtol=1e-9)


def test_a_step_is_read_where_the_curve_was_last_seen():
    arm = verdicts.Arm(np.stack([[STEPS.astype(float)]]), STEPS)
    for step in verdicts.STEPS:
        (found,) = arm.at(step)[0]
        assert found <= step - 1 < found * 1.07 + 1


@pytest.mark.parametrize("last", [np.nan, np.inf, -np.inf, 3.0])
def test_a_run_diverges(last):
    losses = np.full((2, 2, 4), 2.0)
    losses[1, 0, -1] = last
    assert verdicts.Arm(losses, np.arange(4)).diverged().tolist() == [False, True]


def test_a_run_at_chance_does_not_diverge_but_one_that_falls_back_to_it_rises():
    level, back = np.full(len(STEPS), 2.303), np.where(STEPS > 60_000, 2.303, curve(0.55))
    level[0] = 2.301
    arm = verdicts.Arm(np.stack([[level], [back]]), STEPS)
    assert not arm.diverged().any()
    assert arm.rises().tolist() == [False, True]


def test_what_a_run_did_not_reach_is_not_read():
    short = loss_grid(2000)
    arm = verdicts.Arm(np.stack([[np.linspace(2, 1, len(short))]]), short)
    with pytest.raises(ValueError, match="not 20,000"):
        arm.at(20_000)
    assert verdicts.steps_within(arm) == [2000]


@pytest.mark.parametrize(
    ("planted", "word"),
    [({}, "confirmed"), ({"diverging": ["blackbox"]}, "confirmed"),
     ({"diverging": ["star_0.1"]}, "refuted")],
)  # fmt: skip
def test_stable(planted, word):
    assert verdict("stable", **planted) == word


@pytest.mark.parametrize(
    ("step", "word"), [(800, "confirmed"), (4000, "refuted"), (10_000, "refuted")]
)
def test_faster(step, word):
    assert verdict("faster", reached={"star_0.1": step}) == word


def test_seeds_are_compared_with_themselves():
    """STAR's seed 1 is lost; the blackbox' was the only one that was late."""
    planted = study()
    late = {"outer_step": np.array([400.0]), "validation_loss": np.array([0.5])}
    never = {"outer_step": np.array([400.0]), "validation_loss": np.array([np.nan])}
    planted.meta_training["star_0.1"] = dict.fromkeys((0, 2, 3), late)
    planted.meta_training["blackbox"] = dict.fromkeys((0, 2, 3), late) | {1: never}
    assert verdicts.faster(planted)[0] == "refuted"
    planted.meta_training["blackbox"][2] = never
    assert "400 against never" in verdicts.faster(planted)[1]
    del planted.meta_training["star_0.1"][3]
    assert verdicts.faster(planted) == ("open", "2 seeds, fewer than 3")


@pytest.mark.parametrize("part", ["no_preconditioner", "no_nominal"])
@pytest.mark.parametrize(("level", "word"), [(0.55, "confirmed"), (0.45, "refuted"), (0.5, "open")])
def test_a_part_helps(part, level, word):
    name = {"no_preconditioner": "preconditioner", "no_nominal": "nominal"}[part]
    assert verdict(f"the {name}", levels={part: level}) == word


@pytest.mark.parametrize(
    ("levels", "word"),
    [
        ({"star_0": 0.6, "star_1": 0.55}, "confirmed"),
        ({"star_0": 0.4}, "refuted"),
        ({"star_1": 0.4}, "refuted"),
        ({"star_0.1": 0.4, "star_0.5": 0.6}, "open"),
        ({"star_0": 0.4999, "star_0.1": 0.5}, "refuted"),  # Paired seeds see a little.
    ],
)
def test_decay(levels, word):
    assert verdict("decay", levels=levels) == word


@pytest.mark.parametrize(("level", "word"), [(0.55, "refuted"), (0.45, "refuted"), (0.5, "open")])
def test_mixed(level, word):
    """Curves that never cross."""
    assert verdict("mixed", levels={"hyperparam": level}) == word


@pytest.mark.parametrize(("level", "word"), [(0.5, "confirmed"), (0.4, "refuted")])
def test_comparable(level, word):
    assert verdict("comparable", levels={"Adam": level}) == word


@pytest.mark.parametrize(
    ("diverging", "word"), [((), "confirmed"), ((0,), "open"), ((0, 1), "refuted")]
)
def test_generalizes(diverging, word):
    """By the seeds that end above their first loss on either of the sequences' tasks."""
    others = StudyResults("", "", [])
    for name in (*verdicts.SEQUENCES, "ImageMLP"):
        (task,) = study().tasks
        for seed in diverging if name == verdicts.SEQUENCES[1] else ():
            task["train_loss"].loc[{"optimizer": "star_0.1"}][seed, :, -1] = 9.0
        others.tasks.append(task.assign_attrs(task=name))
    rows = {row[0]: row[1] for row in verdicts.statements(study(), others)}
    assert rows["generalizes to an LSTM and a transformer"] == word


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_too_few_seeds_of_a_sequence_do_not_generalize(seeds):
    tasks = [study(seeds=count).tasks[0] for count in (3, max(seeds, 1))]
    named = zip(tasks, verdicts.SEQUENCES, strict=True)
    others = StudyResults("", "", [task.assign_attrs(task=name) for task, name in named])
    others = StudyResults("", "", others.tasks[: 2 if seeds else 1])
    rows = {name: row for name, *row in verdicts.statements(study(), others)}
    assert rows["generalizes to an LSTM and a transformer"] == [
        "open",
        f"{seeds} seeds, fewer than 3",
    ]


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_a_seed_that_is_not_finite_stays_in_every_comparison(lost):
    """It would be confirmed by those that are left: 0.5 against 0.55."""
    planted = study(levels={"no_nominal": 0.55}, seeds=3)
    (task,) = planted.tasks
    task["train_loss"].loc[{"optimizer": "star_0.1"}][0, 0, 5:] = lost
    rows = {name: (word, reason) for name, word, reason in verdicts.statements(planted)}
    for statement in ("the nominal term helps", "comparable to tuned Adam"):
        word, reason = rows[statement]
        assert word == "open"
        assert "(3 seeds" in reason


def test_decays_are_compared_over_the_seeds_that_all_have():
    """The first three are level; two more of star_1, far lower, have no pair."""
    arms = {
        name: verdicts.Arm(np.stack([[curve(0.5)]] * 3), STEPS)
        for name in ("star_0", "star_0.1", "star_0.5")
    }
    rows = [[curve(0.5)]] * 3 + [[curve(0.1)]] * 2
    word, reason = verdicts.decay({**arms, "star_1": verdicts.Arm(np.stack(rows), STEPS)})
    assert word == "open"
    assert "(3 seeds" in reason


def test_the_figure_has_the_seeds_that_stay_finite_beside_one_that_does_not():
    (task,) = study(levels={"blackbox": 0.7}, seeds=3).tasks
    task["train_loss"].loc[{"optimizer": "blackbox"}][0, :, 50:] = np.nan
    first = lines(next(axis for axis in figures.draw(task, None).axes if axis.get_title()))
    np.testing.assert_allclose(first["blackbox"][-1], [200_000, 0.7], rtol=0.02)


def test_two_seeds_are_no_verdict():
    assert {word for _, word, _ in verdicts.statements(study(seeds=2))} == {"open"}


def lines(axis):
    return {line.get_label(): line.get_xydata() for line in axis.get_lines()}


def test_the_figure_has_the_median_seed_of_each_panel_s_optimizers(tmp_path):
    """Seeds are planted 1% apart around a level, so that the middle one ends at it."""
    task = study(levels={"blackbox": 0.7}).tasks[0]
    path = tmp_path / "curves.json"
    path.write_text(json.dumps({"T": {"steps": [0, 999, 2000], "train_loss": [2.3, 1.0, 0.4]}}))
    drawn = figures.draw(task, figures.read_oracle(path, "T"))
    first, second, third = [lines(axis) for axis in drawn.axes if axis.get_title()]
    assert {"star_0.1", "blackbox", "hyperparam", "Adam"} < first.keys()
    assert {"no_nominal", "no_preconditioner"} < second.keys()
    assert {"star_0", "star_1"} < third.keys()
    np.testing.assert_allclose(first["blackbox"][-1], [200_000, 0.7], rtol=1e-5)
    (oracle,) = [xy for label, xy in first.items() if "upstream" in label]
    assert oracle.tolist() == [[2000, 0.4]]


def test_an_unknown_curve_is_named(tmp_path):
    (tmp_path / "curves.json").write_text('{"A": {}}')
    with pytest.raises(ValueError, match="no curve of 'B', but of A"):
        figures.read_oracle(tmp_path / "curves.json", "B")
