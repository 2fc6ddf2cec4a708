"""Everything in examples/ runs outside the repository, with the package as its wheel has it."""

import os
import re
import shutil
import subprocess
import sys

import chex
import jax
import pytest
from conftest import REPOSITORY

import regularized_lopt
from regularized_lopt import zoo


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A directory with the package from a wheel built of what setup.py names, and nothing else."""
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("src", "whl", "lib"))
    shutil.copytree(
        REPOSITORY / "regularized_lopt",
        source / "regularized_lopt",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copytree(REPOSITORY / "gin_configs", source / "gin_configs")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", "--no-deps", f"--target={target}", str(wheel)], check=True)
    return target


@pytest.fixture
def run(installed, tmp_path):
    """Runs Python in an empty directory outside the repository; returns what it printed."""

    def run_python(*arguments, path=()):
        folders = [installed, *path, *filter(None, [os.environ.get("PYTHONPATH")])]
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run_python


def test_the_wheel_has_the_package_and_its_data(run, installed):
    code = "import regularized_lopt as r; print(r.__file__, *r.zoo.names(), sep='\\n')"
    where, *names = run("-c", code).split()
    assert where.startswith(str(installed))
    assert names == zoo.names() != []
    assert (installed / "regularized_lopt/py.typed").is_file()
    (licence,) = installed.glob("*.dist-info/**/LICENSE")
    assert "Apache License" in licence.read_text()
    assert "License-Expression: Apache-2.0" in (licence.parents[1] / "METADATA").read_text()


WITHOUT = """
import importlib.abc, runpy, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        extras = ("matplotlib", "PIL", "jinja2", "xarray", "h5netcdf", "tensorflow")
        if name.split(".")[0] in extras:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Missing())
"""


def test_without_extras_optimizers_load_train_and_are_listed(run):
    code = """
import jax, jax.numpy as jnp, optax, regularized_lopt
tx = regularized_lopt.load("mnist_star_none").as_optax(num_steps=50)
params = {"w": jnp.ones(3)}
state = tx.init(params)
for _ in range(50):
    updates, state = tx.update(jax.grad(lambda p: jnp.sum(p["w"] ** 2))(params), state, params)
    params = optax.apply_updates(params, updates)
assert jnp.sum(params["w"] ** 2) < 3
import regularized_lopt.outer_train
runpy.run_module("regularized_lopt.zoo", run_name="zoo")["main"](["mnist_star_none"])
"""
    assert "sha256" in run("-c", WITHOUT + code)


@pytest.mark.parametrize("module", ["report.html", "study_report", "zoo.publish", "plots"])
def test_what_an_extra_brings_is_named_where_it_is_missing(run, module):
    code = f"""
import importlib
import regularized_lopt
del sys.meta_path[0]
importlib.util.find_spec = lambda name: None
for name in ("xarray", "matplotlib"):
    sys.modules[name] = None
try:
    importlib.import_module("regularized_lopt.{module}")
except ModuleNotFoundError as error:
    print(error)
"""
    told = run("-c", WITHOUT + "import importlib.util" + code)
    assert "needed here and not installed: pip install 'regularized_lopt[study]'" in told


def test_the_wheel_brings_its_configurations(run, installed, tmp_path):
    """They and what they include are found from an empty directory; one's own come first."""
    short = [
        *("outer_train.num_outer_steps = 2", "RegularizedTruncatedGrad.unroll_length = 5"),
        *("Curriculum.train_lengths = (5,)", "Curriculum.validation_period = 1"),
        *("Curriculum.num_validation_tasks = 1", "ObjectiveCheck.num_trajectories = 0"),
    ]
    bindings = [f"--gin_bindings={one}" for one in short]
    launch = [
        "-m",
        "regularized_lopt.outer_train",
        "--config_file=gin_configs/digits_star_none.gin",
    ]
    run(*launch, *bindings, "--train_log_dir=one")
    assert (tmp_path / "one/theta.npz").is_file()
    found = run("-c", "from regularized_lopt import gin_files; print(gin_files.ROOT)").strip()
    assert found == str(installed / "regularized_lopt")
    (tmp_path / "gin_configs").mkdir()
    own = tmp_path / "gin_configs/common.gin"
    own.write_text("outer_train.seed = 7\n")
    run(*launch, *bindings, "--train_log_dir=two")
    assert "outer_train.seed = 7" in (tmp_path / "two/config.gin").read_text()


@pytest.mark.parametrize("name", ["haiku_loop", "batch_norm_loop", "optax_loop"])
def test_loops_of_one_s_own(name, run):
    output = run(REPOSITORY / f"examples/{name}.py", "--steps=100")
    accuracy = re.search(r"accuracy on the 297 digits left out (\d+\.\d)%", output)
    assert float(accuracy[1]) > 80


def test_upstream_s_tools(run):
    output = run(REPOSITORY / "examples/upstream_tools.py", "--steps=30")
    assert re.search(r"ours: test loss \d", output)
    assert "curves kept for 1 run" in output
    assert ("SumLearnedOptimizer of ours" in output) == (
        regularized_lopt.upstream.GENERATION == "main"
    )


@pytest.mark.slow
def test_the_quickstart(run, tmp_path):
    output = run(REPOSITORY / "examples/quickstart.py", "--smallest", f"--out_dir={tmp_path}/out")
    assert "Done in" in output
    assert "<img" in (tmp_path / "out/report.html").read_text()


def test_parts_of_one_s_own(run, tmp_path):
    """Meta-trained by the launcher, then loaded in another process, in both forms."""
    examples = REPOSITORY / "examples"
    run(
        "-m",
        "regularized_lopt.outer_train",
        "--gin_import=own_parts",
        f"--config_file={examples / 'own_parts.gin'}",
        "--gin_bindings=outer_train.num_outer_steps = 5",
        "--gin_bindings=Curriculum.train_lengths = (20, 40)",
        f"--train_log_dir={tmp_path / 'own'}",
        path=[examples],
    )
    load = f"""
import jax, jax.numpy as jnp, optax, regularized_lopt
try:
    regularized_lopt.load({str(tmp_path / "own")!r})
except regularized_lopt.serialization.FileFormatError as error:
    assert "holds a SoftSignLOpt" in str(error), error
import own_parts
loaded = regularized_lopt.load({str(tmp_path / "own")!r})
task = own_parts.SineRegression()
params = task.init(jax.random.PRNGKey(0))
opt, tx = loaded.opt(), loaded.as_optax()
state, optax_state = opt.init(params), tx.init(params)
for step in range(20):
    grad = jax.grad(task.loss)(params, jax.random.PRNGKey(step))
    state = opt.update(state, grad)
    updates, optax_state = tx.update(grad, optax_state, params)
    params = optax.apply_updates(params, updates)
for a, b in zip(jax.tree.leaves(opt.get_params(state)), jax.tree.leaves(params)):
    assert jnp.allclose(a, b, atol=1e-6)
print(loaded.metadata["regularizer_optimizee_space"]["name"])
"""
    assert run("-c", load, path=[examples]).strip() == "smoothed"


def code_on(page):
    """The listings of Python on a page."""
    return re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)


def test_the_guide_s_regularizer_works_in_both_spaces():
    (code,) = code_on("docs/regularizers.md")
    exec(code, {})
    noisy = regularized_lopt.regularizers.get("noisy", deviation=0.5)
    point, key = {"a": jax.numpy.ones(3), "b": jax.numpy.ones(())}, jax.random.PRNGKey(0)

    def loss(p):
        return jax.numpy.sum(p["a"] ** 2) + p["b"] ** 2

    value, grad = noisy.value_and_grad(loss, point, key=key)
    assert float(value) == 4.0
    assert not jax.numpy.allclose(grad["a"], 2.0)
    assert float(noisy.value(loss, point, key=key)) != 4.0


def test_training_loops_on_the_pages_run():
    """On a small Haiku network: the same params from all, the README's included."""
    load, upstream_s, optax_s, tools = code_on("docs/optax.md")
    (readme_s,) = code_on("README.md")
    setup = """
import haiku as hk, jax, jax.numpy as jnp, optax
net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([4, 1])(x)))
params = net.init(jax.random.PRNGKey(0), jnp.ones((1, 2)))
loss_fn = lambda params, batch: jnp.mean(net.apply(params, batch) ** 2)
batches = [jnp.ones((3, 2))] * 5
"""
    scopes = []
    for code in (load + upstream_s, load + optax_s, readme_s):
        scopes.append({})
        exec(setup + code, scopes[-1])
    exec(tools, last := {**scopes[0], "num_steps": 2, "key": jax.random.PRNGKey(0)})
    assert len(last["curves"]["train/xs"]) == 3
    state = scopes[0]["state"]
    assert int(state.iteration) == 5
    for scope in scopes[1:]:
        chex.assert_trees_all_equal(scopes[0]["opt"].get_params(state), scope["params"])
