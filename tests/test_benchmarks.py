"""The benchmarks run, and what they compare does the same work."""

import dataclasses
import re
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY, script
from helpers_results import FLATNESS_CONFIG, trained

import regularized_lopt
from regularized_lopt import tasks, upstream
from regularized_lopt.measure import StudyResults, dataset, results_file
from regularized_lopt.measure.training_curves import TrainingCurves
from regularized_lopt.optax_bridge import as_optax


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a benchmark in this process, which has JAX; returns what it printed."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    # Upstream's loops compile the same small programs in every call.
    seldom = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

    def run_main(name, *arguments):
        path = str(REPOSITORY / f"benchmarks/{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    yield run_main
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seldom)


def cells(output):
    """Cells of each row of the tables."""
    lines = [line.strip("│").split("│") for line in output.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line] for line in lines]


def rows(output):
    """Cells of each row of the tables, by the first one."""
    return {first: others for first, *others in cells(output)}


def test_applying_prints_costs_and_where_they_break_even(run):
    output = run("apply", "--smallest")
    found = rows(output)
    states = {
        "Adam": 8.0,  # Two moments.
        "SGD+SAM": 0.0,
        "LSTMLOpt": 320.0,  # Two layers of h and c, 20 units.
        "LSTMLOpt, bfloat16 states": 160.0,
        "LSTMLOpt, leaf by leaf": 320.0,
        "StarLSTMLOpt, 1 x 8": 88.0,  # One layer of 8 units, five averages, an age.
    }
    for name in (*states, "StarMLPLOpt", "AdafacMLPLOpt, upstream's"):
        step, update, *ratios, state, temporary = map(float, found[name])
        assert min(step, update, *ratios) > 0
        assert temporary >= 0
        assert state == states.get(name, state)
    assert float(found["StarMLPLOpt"][4]) <= 32
    compared = {row[1]: row[-1] for row in cells(output) if row[0] == "MLP 784-20-10"}
    assert set(compared) == {"LSTMLOpt", "StarLSTMLOpt, 1 x 8", "StarMLPLOpt"}
    assert set(compared.values()) <= {"above", "below"}
    bound = " ".join(output.split())
    assert re.search(r"68 bytes per coordinate of StarMLPLOpt take [\d.]+ ms", bound)


@pytest.mark.slow
def test_stress_kills_restarts_and_finds_the_same_end(run):
    found = rows(run("stress", "--kills=2", "--rounds=1", "--block=0.2"))
    assert found["SIGKILLs"] == ["2 (of 2 asked for)"]
    assert int(found["checkpoints read back"][0]) >= 1
    assert int(found["outer steps in the end"][0]) >= 7
    assert found["a checkpoint costs"][0].endswith("ms (median of 1 pairs)")


def test_coordinates_prints_noise_and_time_of_each_share(run):
    found = rows(run("coordinates", "--dataset=Digits", "--smallest"))
    assert set(found) == {"0", "20", "100%", "25%", "10%", "3%"}
    for step in ("0", "20"):
        other_batches, *shares = map(float, found[step])
        # The fewer coordinates, the more noise.
        assert 0 < shares[0] < shares[-1]
        assert other_batches > 0
    milliseconds = [float(found[share][0]) for share in ("100%", "25%", "10%", "3%")]
    assert min(milliseconds) > 0


def test_inputs_prints_accuracies_by_the_size_of_inputs(run):
    factors = ("--factor=1", "--factor=0.5", "--factor=0")
    table = cells(run("inputs", "--dataset=Digits", "--smallest", *factors))
    assert [row[:2] for row in table] == [
        [name, factor] for name in ("sigmoid", "ReLU") for factor in ("1", "0.5", "0")
    ]
    assert int(table[1][2]) == pytest.approx(int(table[0][2]) / 2, abs=1)
    for whole, _, nothing in (table[:3], table[3:]):
        # Without anything to see there is one answer to all images.
        assert float(nothing[-1]) < 15 < float(whole[-1])


def test_batches_prints_descents_and_ends(run):
    table = cells(run("batches", "--dataset=Digits", "--smallest"))
    names = ["mnist_mlp_none", "SGD (lr 2.2)", "Adam (lr 0.01)"]
    assert [row[0] for row in table] == [*names, *np.repeat(names, 2)]
    for row in table[:3]:
        noisy, exact, cosine = np.transpose([re.findall(r"-?[\d.]+(?:e.\d+)?", c) for c in row[1:]])
        assert np.all(exact.astype(float) > 0)
        assert np.all(np.sign(noisy.astype(float)) == np.sign(cosine.astype(float)))
        assert np.all(np.abs(cosine.astype(float)) <= 1)
    # SGD is linear in the gradient: noise takes nothing but what the sample of batches leaves.
    noisy, exact, _ = (float(number) for number in re.findall(r"[\d.]+(?:e.\d+)?", table[1][3]))
    assert noisy == pytest.approx(exact, rel=0.3)
    assert [row[1] for row in table[3:]] == ["128", "1024"] * 3
    assert all(0 <= float(row[4]) <= 100 for row in table[3:])


@pytest.mark.slow
def test_outer_steps_are_compared_with_upstream_s(run):
    found = rows(run("outer_step", "--dataset=Digits", "--rounds=1"))
    ours = found["ours, no regularizer"]
    assert ours[1:3] == ["1.00", "1.00"]
    assert float(ours[3]) > 0
    upstream = next(cells for name, cells in found.items() if name.startswith("upstream"))
    assert float(upstream[1]) * float(upstream[2]) == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_evolution_is_compared_with_upstream_s(run):
    small = ("--dataset=Digits", "--rounds=1", "--pairs=2", "--unroll_length=5")
    table = cells(run("evolution", *small))
    whose = ["ours", "upstream"]
    whose += ["upstream, stacked"] if upstream.GENERATION == "wheel" else []
    assert [row[:2] for row in table] == [[kind, one] for kind in ("PES", "ES") for one in whose]
    assert all(float(number) > 0 for row in table for number in row[2:])


@pytest.mark.slow
def test_meta_testing_is_compared_with_upstream_s_loops(run):
    found = rows(run("meta_test", "--runs=2", "--steps=10", "--rounds=1"))
    assert found["ours, one run after the other"][1] == "1.00"
    assert len(found) == 5
    assert all(float(cells[0].replace(",", "")) > 0 for cells in found.values())


@pytest.mark.slow
def test_regularizers_are_compared_with_none(run):
    found = rows(run("regularizers", "--dataset=Digits", "--rounds=1", "--only", "l2"))
    spaces = [(space, cells[0]) for space, cells in found.items()]
    assert spaces == [("", "none"), ("meta", "l2"), ("optimizee", "l2")]
    assert found[""][2] == "1.00"


@pytest.mark.slow
def test_scaling_prints_a_row_per_number_of_devices(run):
    found = rows(run("scaling", "--devices", 1, 2, "--tasks=2", "--steps=2", "--rounds=1"))
    assert set(found) == {"1", "2"}
    assert found["1"][1:] == ["1.00", "1.00"]


def test_safety_prints_every_option(run, tmp_path):
    lopt = regularized_lopt.LSTMLOpt(hidden_size=3)
    regularized_lopt.save(tmp_path / "lopt.npz", lopt, lopt.init(jax.random.PRNGKey(0)))
    found = rows(run("safety", "--smallest", f"--lopt={tmp_path}/lopt.npz"))
    assert set(found) == {
        *("LO", "LO, clip 0.1", "LO, clip 0.01", "LO + Adam(0.001)", "LO + Adam(0.01)"),
        *("LO grafted to Adam(0.001)", "LO grafted to Adam(0.01)", "Adam(0.001)", "Adam(0.01)"),
    }
    for cells in found.values():
        assert np.all(np.isfinite([float(number) for cell in cells for number in cell.split("±")]))


@pytest.fixture(scope="module")
def apply():
    return script("benchmarks/apply.py")


def test_pytorch_s_updates_are_ours(apply):
    """Ten steps on gradients of all sizes, zeros and subnormal ones included."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    lopt = regularized_lopt.LSTMLOpt()
    theta = jax.tree.map(lambda t: t + 0.05, lopt.init(jax.random.PRNGKey(0)))
    tx, peer = as_optax(lopt, theta), apply.TorchLOpt(lopt, theta)
    rng = np.random.default_rng(0)
    state, hidden = tx.init(jnp.zeros(100)), peer.init(100)
    for _ in range(10):
        grads = rng.choice([-1, 1], 100) * 10 ** rng.uniform(-9, 3, 100)
        grads = np.where(np.arange(100) < 4, [0.0, -0.0, 1e-40, -1e-40] * 25, grads)
        grads = grads.astype(np.float32)
        ours, state = tx.update(jnp.asarray(grads), state)
        theirs, hidden = peer.update(torch.tensor(grads), hidden)
        np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_pytorch_s_networks_have_our_params(apply, name):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    model = apply.models()[name]
    params = jax.eval_shape(model.task.init, jax.random.PRNGKey(0))
    ours = sorted(leaf.size for leaf in jax.tree.leaves(params))
    network = apply.torch_network(model.layers)
    assert sorted(param.numel() for param in network.parameters()) == ours


def test_outer_steps_are_timed_on_the_device_at_hand(run):
    output = run("accelerator", "--smallest", "--steps=2")
    assert jax.devices()[0].device_kind in output
    trajectories, regularizer, coordinates, milliseconds, _ = rows(output)["Digits"]
    assert (trajectories, regularizer, coordinates) == ("1", "none", "100%")
    assert float(milliseconds) > 0


def test_members_of_a_population_are_timed_one_by_one_and_together(run):
    found = rows(run("population", "--smallest"))
    assert {"1", "2"} <= set(found)
    assert all(float(milliseconds) > 0 for _, milliseconds, *_ in found.values())


def test_runs_on_two_devices_are_compared(run, tmp_path):
    """Of two optimizers on one task; a third has no counterpart."""
    rng = np.random.default_rng(0)
    accuracy = {name: rng.uniform(0.5, 0.9, (3, 4)) for name in ("a", "b", "c")}
    apart = {"a": np.array([0.0, 0.0, 0.03]), "b": np.array([-0.004, 0.004, 0.0])}
    for device, names in (("one", "abc"), ("two", "ab")):
        found = {}
        for name in names:
            values = accuracy[name].copy()
            values[:, -1] += apart.get(name, 0) if device == "two" else 0
            of, steps = np.ones((3, 4)), np.zeros(3, int)
            curves = TrainingCurves(
                np.arange(4), of, np.arange(4), of, of, of, steps, steps > 0, *[steps] * 3, values
            )
            found[name] = dataclasses.replace(trained([]), curves=[curves])
        name = "ImageMLP_Mnist_20_Relu"
        facts = tasks.get(name).facts
        task = dataset.of_task(name, facts, 4, FLATNESS_CONFIG, "a", found)
        (tmp_path / device).mkdir()
        path = tmp_path / device / results_file.FILE
        results_file.save(StudyResults(f"On device {device}", "", [task]), path)
    output = run("devices", tmp_path / "one", tmp_path / "two")
    assert "On device one against On device two" in output
    optimizers, first, second, means, runs, many = rows(output)["Mnist, Relu"]
    ends = 100 * np.stack([accuracy[name][:, -1] for name in "ab"])
    assert (optimizers, many) == ("2", "1 of 6")
    assert float(first) == pytest.approx(ends.mean(), abs=0.006)
    assert float(second) == pytest.approx(ends.mean() + 0.5, abs=0.006)
    assert float(means) == pytest.approx(1.0, abs=0.006)
    assert float(runs) == pytest.approx(np.sqrt((9 + 2 * 0.16) / 6), abs=0.006)
    nothing = tmp_path / "three"
    nothing.mkdir()
    results_file.save(StudyResults("None", "", []), nothing / results_file.FILE)
    done = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks/devices.py", tmp_path / "one", nothing],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "have no runs in common" in done.stderr


def test_few_shot_prints_episodes_per_second_of_programs_and_loops(run):
    found = rows(run("few_shot", "--smallest"))
    for name in ("test", "meta-training"):
        ours, loop, ratio = map(float, found[name])
        assert min(ours, loop) > 0
        assert ratio == pytest.approx(ours / loop, rel=0.1)
