import re
import subprocess
import sys

import chex
import jax
import pytest
from conftest import REPOSITORY

import regularized_lopt


def run(*arguments, cwd=REPOSITORY):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def lopt_file(tmp_path_factory):
    lopt = regularized_lopt.LSTMLOpt(hidden_size=3)
    path = tmp_path_factory.mktemp("lopt") / "lopt.npz"
    regularized_lopt.save(path, lopt, lopt.init(jax.random.PRNGKey(0)))
    return path


@pytest.mark.parametrize("name", ["haiku_loop", "optax_loop"])
def test_loops_of_one_s_own(name, lopt_file, tmp_path):
    script = REPOSITORY / f"examples/{name}.py"
    output = run(script, f"--lopt={lopt_file}", "--steps=3", cwd=tmp_path)
    assert re.search(r"accuracy on the 297 digits left out \d", output)


def readme_code():
    """The README's Python: two training loops, and the regularizer of one's own."""
    readme = (REPOSITORY / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", readme, re.DOTALL)


def test_the_readme_s_regularizer_works_in_both_spaces():
    *_, code = readme_code()
    exec(code, {})
    noisy = regularized_lopt.regularizers.get("noisy", deviation=0.5)
    point, key = {"a": jax.numpy.ones(3), "b": jax.numpy.ones(())}, jax.random.PRNGKey(0)

    def loss(p):
        return jax.numpy.sum(p["a"] ** 2) + p["b"] ** 2

    value, grad = noisy.value_and_grad(loss, point, key=key)
    assert float(value) == 4.0
    assert not jax.numpy.allclose(grad["a"], 2.0)
    assert float(noisy.value(loss, point, key=key)) != 4.0


def test_the_readme_s_training_loop_runs(lopt_file):
    """The listings of the README, on a small Haiku network: the same params from both."""
    upstream_s, optax_s, _ = readme_code()
    setup = """
import haiku as hk, jax, jax.numpy as jnp, optax
net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([4, 1])(x)))
params = net.init(jax.random.PRNGKey(0), jnp.ones((1, 2)))
loss_fn = lambda params, batch: jnp.mean(net.apply(params, batch) ** 2)
batches = [jnp.ones((3, 2))] * 5
"""
    scopes = []
    for code in (upstream_s, optax_s):
        scopes.append({})
        exec(setup + code.replace("runs/mnist_sam", str(lopt_file)), scopes[-1])
    state = scopes[0]["state"]
    assert int(state.iteration) == 5
    chex.assert_trees_all_equal(scopes[0]["opt"].get_params(state), scopes[1]["params"])


def test_benchmark_prints_its_table():
    output = run("benchmarks/outer_step.py", "--rounds=1", "--dataset=Digits")
    assert "upstream" in output
    assert "ours, SAM in meta space" in output
