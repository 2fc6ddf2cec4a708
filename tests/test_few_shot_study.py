"""The few-shot launcher, what it measures and what it writes."""

import json
import warnings

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from conftest import REPOSITORY
from test_launch import python

from regularized_lopt import few_shot as launcher
from regularized_lopt import gin_files, run_files
from regularized_lopt.learned_optimizers import MetaLSTMLOpt
from regularized_lopt.measure import few_shot as measure
from regularized_lopt.measure.optimizers import OptaxBaseline
from regularized_lopt.outer_training.theta_optimizer import theta_learning_rate
from regularized_lopt.report import few_shot as report
from regularized_lopt.tasks import episodes
from regularized_lopt.tasks.few_shot import FewShotFamily

KEYS = jax.random.split(jax.random.PRNGKey(0), 6)
TINY = (
    "few_shot.num_episodes = 12",
    "FewShotFamily.blocks = 1",
    "outer_train.num_outer_steps = 4",
    "Curriculum.validation_period = 2",
    "Curriculum.num_validation_tasks = 2",
    "FineTuning.pretraining_steps = 2",
    "FineTuning.num_steps = 2",
    "FineTuning.learning_rates = (1e-3,)",
)


def family():
    return FewShotFamily("Digits", ways=2, shots=3, queries=4, channels=4, blocks=1)


def test_nearest_centroids_are_those_of_numpy():
    own = family()
    found = measure.centroid_accuracies(own, KEYS)
    for key, accuracy in zip(KEYS, found, strict=True):
        episode = jax.tree.map(np.asarray, own.draw(own.datasets._of_classes["test"], key))
        support, query = (x.reshape(len(x), -1) for x in (episode.support, episode.query))
        centroids = [support[episode.support_labels == label].mean(axis=0) for label in (0, 1)]
        nearest = [np.argmin([np.linalg.norm(x - c) for c in centroids]) for x in query]
        assert accuracy == pytest.approx(np.mean(nearest == episode.query_labels))
    assert found.mean() > 0.6


def test_a_learner_is_judged_after_its_steps_on_the_support():
    """Step by step, in Python."""
    own = family()
    judge = measure.Judge(own, lambda rate: OptaxBaseline("SGD", optax.sgd(rate)), 2)
    found = judge(0.1, KEYS[:1])
    task = own.task_fn(KEYS[0])
    params, state = task.init_with_state(jax.random.split(KEYS[0])[0])
    data = own.datasets.unroll_data("test")
    for _ in range(2):
        grad, state = jax.jit(jax.grad(task.loss_with_state, has_aux=True))(
            params, state, KEYS[0], data["train"]
        )
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grad)
    aux = task.loss_with_state_and_aux(params, state, KEYS[0], data["outer"])[2]
    assert found == pytest.approx([float(aux["accuracy"])])


def test_a_meta_lstm_begins_with_its_own_params():
    own = family()
    lopt = MetaLSTMLOpt(own.param_shapes(), hidden_size=3)
    thetas = [lopt.init(key) for key in KEYS[:2]]
    judge = measure.Judge(own, lopt.opt_fn, 3)
    found = [judge(theta, KEYS) for theta in thetas]
    assert not np.array_equal(*found)
    drawn = own.init(KEYS[3])[0]  # Which it does not read.
    np.testing.assert_array_equal(judge(thetas[0], KEYS, params=drawn), found[0])


def test_pretraining_learns_the_training_classes():
    own = family()
    params = measure.FineTuning(pretraining_steps=150)._pretrained(own, KEYS[0])
    split = own.datasets.unroll_data("train")["train"].split
    episode = episodes.draw(split, KEYS[1], 6, 10, 0)
    _, state = own.network(6).init(KEYS[0], jnp.zeros((2, 8, 8, 1)), 2)
    logits, _ = own.network(6).apply(params, state, episode.support, 60)
    labels = episode.classes[episode.support_labels]
    assert np.mean(np.argmax(logits, axis=1) == labels) > 0.5  # By chance, 1/6.


def made_up():
    """Two optimizers of which one is 2 points better for every seed, and a centroid."""
    rng = np.random.default_rng(0)
    plain = 0.7 + 0.1 * rng.standard_normal((3, 40))
    nothing = np.full((3, 40), np.nan)
    nothing[0] = 0.5
    course = np.array([[[0.4, 0.5, np.nan]] * 3, [[0.4, 0.6, np.nan]] * 3])
    return xr.Dataset(
        {
            "accuracy": (
                ("learner", "seed", "episode"),
                np.stack([nothing, plain, plain + 0.02]),
            ),
            "validation_accuracy": (("optimizer", "seed", "validation"), course),
        },
        coords={
            "learner": ["nearest centroid", "plain", "smoothed"],
            "optimizer": ["plain", "smoothed"],
            "seed": [0, 1, 2],
            "outer_step": ("validation", [10, 20, 30]),
        },
        attrs={"task": "FewShot", "reference": "plain"},
    )


def test_the_page_has_accuracies_with_both_intervals_and_paired_differences(tmp_path):
    found = made_up()
    page = report.write(found, tmp_path)
    header, rows = report._accuracies(found)
    assert header[2:4] == ["over episodes", "over seeds"]
    by_learner = {row[0]: row for row in rows}
    assert by_learner["nearest centroid"] == [
        "nearest centroid", "50.00", "[50.00, 50.00]", "one alone", "1"
    ]  # fmt: skip
    own = 100 * found.accuracy.sel(learner="plain").values
    assert by_learner["plain"][1] == f"{own.mean():.2f}"
    of_seeds = own.mean(axis=1)
    half = 4.302653 * of_seeds.std(ddof=1) / np.sqrt(3)  # Student's t with two degrees.
    assert by_learner["plain"][3] == f"[{own.mean() - half:.2f}, {own.mean() + half:.2f}]"
    _, differences = report._differences(found, "plain")
    assert {row[0]: row[1] for row in differences}["smoothed"] == "+2.00"
    assert (tmp_path / "meta_training.png").stat().st_size > 1000
    assert page.title == "Few-shot learning"


@pytest.mark.slow
def test_the_study_trains_judges_writes_and_resumes(tmp_path):
    gin_files.parse_gin([str(REPOSITORY / "gin_configs/few_shot_digits.gin")], TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("error", gin_files.UnreadBindingWarning)
        found = launcher.few_shot(tmp_path)
    assert not gin_files.unread()
    assert found.learner.values.tolist() == [
        "nearest centroid", "Adam, fine-tuned", "plain", "smoothed"
    ]  # fmt: skip
    assert found.sizes["episode"] == 12
    assert np.isfinite(found.accuracy.sel(learner=["Adam, fine-tuned", "plain", "smoothed"])).all()
    assert found.outer_step.values.tolist() == [2, 4]
    assert ((found.validation_accuracy > 0) & (found.validation_accuracy <= 1)).all()
    rows = run_files.read_metrics(tmp_path / "smoothed" / "seed1")
    assert [row["smoothness"] > 0 for row in rows if row["smoothness"] is not None]
    assert "smoothness" not in json.loads(
        (tmp_path / "plain" / "seed0" / "experiment.json").read_text()
    )
    again = launcher.few_shot(tmp_path)  # Nothing is left to train.
    np.testing.assert_array_equal(again.accuracy, found.accuracy)
    np.testing.assert_array_equal(again.validation_accuracy, found.validation_accuracy)


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("FewShotFamily.ways = 3", "ways = 3: the valid split has 2 classes"),
        ("FewShotFamily.shots = 500", "shots + queries = 500 + 15"),
        ("few_shot.num_steps = 0", "few_shot.num_steps = 0"),
        ("few_shot.num_episodes = 1", "few_shot.num_episodes = 1"),
        ("few_shot.smoothings = {}", "few_shot.smoothings is empty"),
        ("FineTuning.learning_rates = ()", "FineTuning.learning_rates is empty"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_trained(binding, message, tmp_path):
    gin_files.parse_gin([str(REPOSITORY / "gin_configs/few_shot_digits.gin")], [binding])
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (its text is looked at below)
        launcher.few_shot(tmp_path / "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("shots", "num_steps", "rate"), [(5, 8, 1e-3), (1, 10, 1e-4)])
def test_the_configurations_are_the_published_ones_but_for_their_images(shots, num_steps, rate):
    file = REPOSITORY / f"gin_configs/few_shot_{shots}shot.gin"
    gin_files.parse_gin([str(file)], ["FewShotFamily.dataset = 'DoubleDigits'"])
    own = FewShotFamily()
    assert (own.ways, own.shots, own.queries) == (5, shots, 15)
    assert gin.query_parameter("few_shot.num_steps") == num_steps
    assert theta_learning_rate()(0) == pytest.approx(rate)
    plain, smoothed = gin.get_bindings("few_shot")["smoothings"].values()
    assert plain is None
    described = smoothed.describe()
    assert (described["epsilon"], described["num_steps"], described["noise"]) == (1.0, 10, 0.01)
    assert described["over_steps"] == "sum"


def test_the_studys_own_configuration_differs_in_size_alone():
    gin_files.parse_gin([str(REPOSITORY / "gin_configs/few_shot_5shot.gin")], [])
    published = gin.config_str(max_line_length=10_000).splitlines()
    gin.clear_config()
    gin_files.parse_gin([str(REPOSITORY / "experiments/few_shot/five_shot.gin")], [])
    own = gin.config_str(max_line_length=10_000).splitlines()
    changed = {one.partition(" = ")[0] for one in set(own) ^ set(published)}
    assert changed - {"outer_train.parallelism", "outer_train.checkpoint_every"} <= {
        "FewShotFamily.channels",
        "outer_train.num_outer_steps",
        "Curriculum.validation_period",
        "FineTuning.pretraining_steps",
        "# Parameters for FineTuning:",
        "# " + "=" * 78,
    }


def test_rewriting_needs_results(tmp_path):
    done = python("-m", "regularized_lopt.few_shot", f"--out_dir={tmp_path}", "--rewrite")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("Error: --rewrite: there is no ")
