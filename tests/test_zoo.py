"""Files of trained optimizers: what cannot be trusted is refused."""

import dataclasses
import io
import json
import re
import runpy
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers_results import curves, trained
from matplotlib import figure as mpl_figure

import regularized_lopt
from regularized_lopt import (
    errors,
    learned_optimizers,
    run_files,
    serialization,
    tasks,
    upstream,
    zoo,
)
from regularized_lopt.measure import (
    FlatnessConfig,
    StudyResults,
    dataset,
    programs,
    results_file,
    selections,
    update_curves,
)
from regularized_lopt.measure.dataset import Found
from regularized_lopt.measure.flatness import SCALES, Flatness
from regularized_lopt.measure.results import POINTS
from regularized_lopt.study import meta_test, verify
from regularized_lopt.zoo import cards, publish

LOPT = regularized_lopt.LSTMLOpt(hidden_size=4)


def variants(content, count, rng):
    """Damaged copies: cut short, bytes changed, tensors swapped, NaN written into one."""
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    names = [name for name, array in arrays.items() if array.dtype == np.float32]
    for _ in range(count):
        kind = rng.integers(4)
        if kind == 0:
            yield content[: rng.integers(len(content))]
        elif kind == 1:
            changed = np.frombuffer(content, np.uint8).copy()
            where = rng.integers(len(changed), size=rng.integers(1, 4))
            changed[where] ^= rng.integers(1, 256, size=len(where), dtype=np.uint8)
            yield changed.tobytes()
        else:
            changed = {name: array.copy() for name, array in arrays.items()}
            first, second = rng.choice(names, 2, replace=False)
            if kind == 2:
                changed[first], changed[second] = changed[second], changed[first]
            else:
                changed[first].reshape(-1)[rng.integers(changed[first].size)] = np.nan
            buffer = io.BytesIO()
            np.savez(buffer, **changed)
            yield buffer.getvalue()


@pytest.mark.slow
def test_ten_thousand_damaged_files_are_refused_or_the_original(tmp_path):
    path = tmp_path / "lopt.npz"
    theta = LOPT.init(jax.random.PRNGKey(0))
    regularized_lopt.save(path, LOPT, theta, {"task": "Digits"})
    expected, header = serialization.load_flat(path)
    refused = 0
    for content in variants(path.read_bytes(), 10_000, np.random.default_rng(0)):
        path.write_bytes(content)
        try:
            found, metadata = serialization.load_flat(path)
        except serialization.FileFormatError:
            refused += 1
            continue
        assert metadata == header
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, strict=True)
    assert refused > 9000


@pytest.mark.smoke
def test_a_file_round_trips_and_a_checkpoint_is_no_optimizer(tmp_path):
    path = tmp_path / "lopt.npz"
    theta = LOPT.init(jax.random.PRNGKey(1))
    regularized_lopt.save(path, LOPT, theta, {"task": "Digits"})
    loaded = regularized_lopt.load(path)
    assert loaded.learned_opt.config == LOPT.config
    assert loaded.metadata["task"] == "Digits"
    for a, b in zip(*map(jax.tree.leaves, (loaded.theta, theta)), strict=True):
        np.testing.assert_array_equal(a, b)
    serialization.save(path, {"step": np.zeros(())})
    with pytest.raises(serialization.FileFormatError, match="holds no learned optimizer"):
        zoo.load(path)
    with pytest.raises(FileNotFoundError, match=r"has no theta\.npz"):
        zoo.load(tmp_path)


@pytest.mark.smoke
@pytest.mark.parametrize("name", zoo.names())
def test_every_entry_loads_and_its_card_says_what_it_is(name):
    loaded, card = regularized_lopt.load(name), zoo.card(name)
    assert loaded.name == card.name == name
    assert loaded.metadata["task"] == card.task
    assert card.seed == loaded.metadata["seed"]
    *_, given = card.config.split("outer_train.task =", maxsplit=1)
    assert " + ".join(re.findall(r"'(\w+)'", given.split("#")[0])) == card.task
    assert card.made_with["git"]
    for row in card.figures:
        assert 0 < row["accuracy"][0] <= 100
        assert row["num_runs"] > 1
    assert card.license == cards.LICENSE
    for part in (card.regularizer, card.license, card.sha256, card.measured_by):
        assert part in str(card)
    assert "<" not in card.regularizer  # As a function of Python's would have it.
    used = {loaded.metadata[f"regularizer_{s}_space"]["name"] for s in ("meta", "optimizee")}
    used |= {"smoothing"} if loaded.metadata["smoothing"] else set()
    assert card.regularizer.split(" (")[0] in (used - {"none"} or used)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", zoo.names())
def test_every_entry_loads_and_applies_with_x64_and_without(name, x64):
    with jax.enable_x64(x64):
        loaded, params = regularized_lopt.load(name), jnp.ones(2)
        opt, tx = loaded.opt(), loaded.as_optax()
        moved = opt.get_params(opt.update(opt.init(params), params))
        updates, _ = tx.update(params, tx.init(params), params)
        assert {leaf.dtype for leaf in jax.tree.leaves(loaded.theta)} == {params.dtype}
        assert moved.dtype == updates.dtype == params.dtype
        np.testing.assert_allclose(params + updates, moved, rtol=1e-6)


@pytest.mark.parametrize("name", ["mnist_star_lstm_none", "mnist_star_none"])
def test_stable_ones_do_not_notice_the_scale_of_the_loss(name):
    """On Digits, where `mnist_mlp_none` learns nothing from a loss of a millionth."""
    task = tasks.get("ImageMLP_Digits_20_Relu")
    train, test = (task.datasets.arrays(split) for split in ("train", "test"))
    batches = np.random.default_rng(0).integers(len(train["label"]), size=(150, 128))
    loaded = regularized_lopt.load(name)

    @jax.jit
    def accuracy(scale):
        tx = optax.chain(optax.scale(scale), loaded.as_optax())

        def step(carry, index):
            params, state = carry
            batch = task.datasets.normalize(jax.tree.map(lambda array: array[index], train))
            grads = jax.grad(task.loss)(params, jax.random.PRNGKey(0), batch)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        params = task.init(jax.random.PRNGKey(0))
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
        return 100 * programs.whole_split(task, params, test)["accuracy"]

    found = [float(accuracy(scale)) for scale in (1e-6, 1.0, 1e6)]
    assert min(found) > 85
    assert np.ptp(found) < 1


def test_a_file_without_its_constructor_s_arguments_is_refused(tmp_path):
    path = tmp_path / "lopt.npz"
    serialization.save(path, LOPT.init(jax.random.PRNGKey(0)), {"learned_opt": "LSTMLOpt"})
    with pytest.raises(serialization.FileFormatError, match="LSTMLOpt without its config"):
        regularized_lopt.load(path)
    with pytest.raises(serialization.FileFormatError, match="not of an outer training run"):
        zoo.validation_loss(_renamed(path, run_files.THETA_FILE).parent)


def _renamed(path, name):
    return path.rename(path.with_name(name))


def test_an_entry_that_is_not_what_its_card_says_is_refused(tmp_path, monkeypatch):
    name = zoo.names()[0]
    shutil.copytree(zoo.ENTRIES, tmp_path / "entries")
    monkeypatch.setattr(zoo, "ENTRIES", tmp_path / "entries")
    regularized_lopt.load(name)
    other = tmp_path / "entries" / name / run_files.THETA_FILE
    regularized_lopt.save(other, LOPT, LOPT.init(jax.random.PRNGKey(0)))
    with pytest.raises(serialization.FileFormatError, match="not that of its card"):
        regularized_lopt.load(name)


def test_unknown_names_get_the_known_ones():
    with pytest.raises(FileNotFoundError, match=f"Known: {zoo.names()[0]}"):
        regularized_lopt.load("no_such_optimizer")
    with pytest.raises(errors.UnknownNameError, match="Did you mean"):
        zoo.card(zoo.names()[0] + "x")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_command_lists_entries_and_prints_cards(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    command = runpy.run_module("regularized_lopt.zoo", run_name="zoo")["main"]
    command([])
    listed = capsys.readouterr().out
    assert max(map(len, listed.splitlines())) <= width
    for name in zoo.names():
        about = " ".join(listed.split(f"\n\n{name}\n")[1].split("\n\n")[0].split())
        assert zoo.card(name).regularizer in about
        assert all(task in about for task in zoo.card(name).task.split(" + "))
    assert "License: Apache-2.0" in listed
    command(zoo.names()[:1])
    assert zoo.card(zoo.names()[0]).sha256 in capsys.readouterr().out


def published_tasks():
    """Four runs of two seeds, the properties of three; and a task of too few runs for a card."""
    config = FlatnessConfig(
        radii=(0.01,), num_examples=512, headline_starts=2, num_probes=0, num_steps=1
    )

    def around(rises):
        loss = np.zeros(len(rises))
        ascents = dict.fromkeys(SCALES, np.array(rises)[:, None, None])
        return Flatness(loss, loss, ascents, ascents, loss, loss)

    def found(seeds, rises):
        at = [around(of) for of in rises]
        return Found(trained([]).optimizer, seeds, at=dict.fromkeys(POINTS, at))

    first = curves([0.1] * 4, [9] * 4)
    second = curves([0.9, 0.8, 0.7, 0.8], [7, 9, 9, 9])
    mine = found([first, second], [[9.0] * 3, [0.2, 0.3, 0.4]])
    few = found([curves([0.9] * 2, [7] * 2)] * 2, [[0.2] * 2] * 2)
    return [
        dataset.of_task("T", {}, 100, config, "mine", {"mine": mine, "other": mine}),
        dataset.of_task("U", {}, 100, config, "mine", {"mine": few}),
    ]


def test_publishing_a_run_makes_an_entry(tmp_path):
    """From an entry's own files, as a run has them, and a table of some runs of each seed."""
    name = zoo.names()[0]
    results = tmp_path / "results"
    results.mkdir()
    results_file.save(StudyResults("", "", published_tasks()), results / results_file.FILE)
    # Seed 0 has the higher validation loss, so that seed 1 is taken.
    run, worse, into = zoo.ENTRIES / name, tmp_path / "worse", tmp_path / "entries"
    shutil.copytree(run, worse)
    tree, metadata = serialization.load_flat(run / run_files.THETA_FILE)
    metadata["stage"]["best_loss"] += 0.1
    serialization.save(worse / run_files.THETA_FILE, tree, metadata)
    card = publish.publish([worse, run], "again", results, "mine", "a command", entries=into)
    (row,) = card.figures
    assert (row["task"], row["num_steps"], row["num_runs"]) == ("T", 100, 4)
    assert (row["measured_runs"], row["num_examples"], row["starts"]) == (3, 512, 2)
    np.testing.assert_allclose(row["accuracy"], [80.0, np.std([90, 80, 70, 80], ddof=1)])
    np.testing.assert_allclose(row["rise"], [0.3, 0.1])
    entry = tmp_path / "entries/again"
    written = json.loads((entry / "card.json").read_text())
    assert (written["sha256"], written["license"]) == (zoo.card(name).sha256, "Apache-2.0")
    assert regularized_lopt.load(entry).plot_meta_training()
    with pytest.raises(errors.UnknownNameError, match="mine, other"):
        publish.publish([run], "again", results, "theirs", "", entries=tmp_path)
    with pytest.raises(errors.UnknownNameError, match=r"meta-training seed of mine .*'2'.*0, 1"):
        publish.publish([worse, worse, run], "again", results, "mine", "", entries=tmp_path)
    few = tmp_path / "few"
    few.mkdir()
    results_file.save(StudyResults("", "", published_tasks()[1:]), few / results_file.FILE)
    with pytest.raises(ValueError, match="no task on which the properties of mine, seed 0"):
        publish.publish([run], "again", few, "mine", "", entries=tmp_path)
    # The smoothing term is on the card, too.
    metadata["smoothing"] = {"strength": 2.0}
    metadata["stage"]["best_loss"] -= 0.2
    serialization.save(worse / run_files.THETA_FILE, tree, metadata)
    smooth = publish.publish([run, worse], "smooth", results, "mine", "", entries=into)
    assert smooth.regularizer.endswith("smoothing (strength 2.0)")
    assert smooth.space.endswith("update")


def test_verifying_measures_what_the_card_states(tmp_path):
    """Stated from one meta-test, found by another; and a card that promises too much."""
    name, task = zoo.names()[0], "ImageMLP_Digits_20_Sigmoid"
    what = {"num_runs": 3, "num_steps": 40}
    flatness_config = FlatnessConfig(num_examples=256, headline_starts=2, num_probes=0)
    opts = {name: regularized_lopt.load(name)}
    found = meta_test(
        opts, task, **what, baselines=(), flatness_config=flatness_config, progress=False
    )
    one = selections.reference(found)
    accuracies, norms = selections.accuracy(one), selections.final(one, "param_norm")
    rises = selections.last(one, "gsam").sel(point="completion", scale="absolute", radius=0.01)
    row = {
        **what,
        "task": task,
        "measured_runs": 3,
        "num_examples": 256,
        "starts": 2,
        "accuracy": [accuracies.mean(), accuracies.std(ddof=1)],
        "rise": [rises.values.mean(), 0.01],
        "norm": [2 * norms.mean(), norms.std(ddof=1)],
    }
    card = dataclasses.replace(zoo.card(name), figures=[row])
    accuracy, rise, norm = verify.verify(card, tmp_path, [task], progress=False)
    assert [accuracy.holds, rise.holds, norm.holds] == [True, True, False]
    assert accuracy.found == pytest.approx(row["accuracy"][0], abs=1.0)
    assert rise.found == pytest.approx(row["rise"][0], rel=0.05)
    # Student's t for three runs.
    assert accuracy.half_width == pytest.approx(4.303 * row["accuracy"][1] / 3**0.5, rel=1e-3)
    assert [norm.row()[-1], rise.row()[-1]] == ["NO", "yes"]
    with pytest.raises(errors.UnknownNameError, match="task of the card"):
        verify.verify(card, tmp_path, ["ImageMLP_Mnist_20_Relu"])


def test_other_classes_need_to_be_registered(tmp_path):
    class Other(upstream.LearnedOptimizer):
        def __init__(self):
            self.config = {}

        def init(self, rng):
            return {"x": jnp.zeros(2)}

        def opt_fn(self, theta, is_training=False):
            raise NotImplementedError

    path = tmp_path / "other.npz"
    with pytest.raises(ValueError, match=r"Other cannot be saved: decorate the class with"):
        regularized_lopt.save(path, Other(), {"x": np.ones(2, np.float32)})
    learned_optimizers.register(Other)
    with pytest.raises(ValueError, match="is registered; rename"):
        learned_optimizers.register(Other)
    with pytest.raises(TypeError, match="is no LearnedOptimizer"):
        learned_optimizers.register(int)
    other = Other()
    regularized_lopt.save(path, other, {"x": np.ones(2, np.float32)})
    assert type(regularized_lopt.load(path).learned_opt).__name__ == "Other"
    other.config["unheard_of"] = 1
    regularized_lopt.save(path, other, {"x": np.ones(2, np.float32)})
    with pytest.raises(serialization.FileFormatError, match="does not know"):
        regularized_lopt.load(path)
    del learned_optimizers.CLASSES["Other"]
    with pytest.raises(serialization.FileFormatError, match="holds a Other; known: LSTMLOpt"):
        regularized_lopt.load(path)


def test_updates_by_history_are_what_the_optimizer_does():
    """Closed forms: SGD forgets; momentum 0.9 adds to the gradient what is left of the past."""
    history, gradient = jnp.ones((3, 2)), jnp.asarray([0.5, -2.0])
    np.testing.assert_allclose(
        update_curves.updates_after(upstream.SGD(0.1), history, gradient),
        -0.1 * gradient,
        rtol=1e-5,
    )
    left = 0.9 + 0.9**2 + 0.9**3
    np.testing.assert_allclose(
        update_curves.updates_after(upstream.SGDM(0.1, 0.9), history, gradient),
        -0.1 * (gradient + left),
        rtol=1e-5,
    )


def test_plots():
    loaded = regularized_lopt.load(zoo.names()[0])
    assert isinstance(loaded.plot_update(), mpl_figure.Figure)
    training = loaded.plot_training(
        "ImageMLP_Digits_20_Relu", {"Adam": upstream.Adam(1e-2)}, num_runs=2, num_steps=5
    )
    left = training.axes[0]
    assert [line.get_label() for line in left.get_lines()][:2] == [loaded.name, "Adam"]
    curve = loaded.plot_meta_training().axes[0].get_lines()[0]
    assert len(curve.get_xdata()) > 10
    with pytest.raises(ValueError, match="scale = 0"):
        loaded.plot_update(scale=0.0)


def test_a_file_without_curves_says_where_they_would_be(tmp_path):
    regularized_lopt.save(tmp_path / "lopt.npz", LOPT, LOPT.init(jax.random.PRNGKey(0)))
    with pytest.raises(FileNotFoundError, match=r"There is no metrics\.csv beside"):
        regularized_lopt.load(tmp_path / "lopt.npz").plot_meta_training()


KEY = jax.random.PRNGKey(0)


def test_zoo_round_trip(lopt_file):
    loaded = regularized_lopt.load(lopt_file)
    expected = regularized_lopt.LSTMLOpt(hidden_size=3).init(KEY)
    for a, b in zip(*map(jax.tree.leaves, (loaded.theta, expected)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert loaded.metadata["note"] == "untrained"
    assert loaded.learned_opt.config["hidden_size"] == 3


def test_zoo_refuses_what_is_no_optimizer(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no theta.npz"):
        regularized_lopt.load(tmp_path)
    serialization.save(tmp_path / "other.npz", {"a": np.zeros(3)})
    with pytest.raises(serialization.FileFormatError, match="holds no learned optimizer"):
        regularized_lopt.load(tmp_path / "other.npz")
