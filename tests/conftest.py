import gc
import importlib.util
import os
import pathlib

from helpers_xla import flags

# Before JAX is imported; launchers that tests start inherit this, and workers find it there.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = flags()

import gin
import hypothesis
import jax
import pytest

from regularized_lopt import LSTMLOpt, zoo
from regularized_lopt.tasks import sources

# Everyone runs the same examples; `--hypothesis-profile=explore` draws new ones every time.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("repeatable")

TFDS = os.environ.get("TFDS_DATA_DIR")
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


def _has(dataset):
    """In the cache that the tests were told to use, see `_own_caches`, or prepared for TFDS."""
    spec = sources.SPECS[dataset]
    told = "REGULARIZED_LOPT_CACHE_DIR" in os.environ
    cached = told and (sources.cache_dir() / f"{dataset}-{spec.version}").is_dir()
    return cached or (TFDS is not None and TENSORFLOW)


needs_mnist = pytest.mark.skipif(
    not _has("Mnist"),
    reason="MNIST is not prepared here: TFDS_DATA_DIR is not set, or TensorFlow not installed",
)
needs_cifar100 = pytest.mark.skipif(
    not (TENSORFLOW and TFDS and pathlib.Path(TFDS, "cifar100").is_dir()),
    reason="CIFAR-100 is not in TFDS_DATA_DIR, or TensorFlow not installed",
)
needs_tfds = pytest.mark.skipif(
    TFDS is None or not TENSORFLOW,
    reason="TFDS_DATA_DIR is not set, or TensorFlow not installed: upstream reads images by them",
)
needs_tensorflow = pytest.mark.skipif(
    not TENSORFLOW,
    reason="TensorFlow, which upstream logs with, is not installed: pip install '.[tfds]'",
)


@pytest.fixture
def x64():
    """Arithmetic in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def _clean_gin():
    gin.clear_config()
    yield
    gin.clear_config()


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory):
    """Tests leave the user's cache alone, unless told to, and compile a large program once."""
    if "REGULARIZED_LOPT_CACHE_DIR" not in os.environ:
        os.environ["REGULARIZED_LOPT_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # One for all workers.
        root = root.parent
    compiled = str(root / "compiled")
    jax.config.update("jax_compilation_cache_dir", compiled)
    # A small program takes longer to write than to compile; launchers, which begin with all of
    # them anew, share even those.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.15)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture(scope="module", autouse=True)
def _release_compiled_programs():
    """Each holds memory maps, of which a process may have 65,530; past that, compiling crashes."""
    yield
    jax.clear_caches()
    gc.collect()


def script(path):
    """The module of a script that is not in the package; path from the root of the checkout."""
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, REPOSITORY / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def lopt_file(tmp_path_factory):
    """A learned optimizer that has not been meta-trained."""
    path = tmp_path_factory.mktemp("lopt") / "untrained.npz"
    lopt = LSTMLOpt(hidden_size=3)
    zoo.save(path, lopt, lopt.init(jax.random.PRNGKey(0)), {"note": "untrained"})
    return path


def digits_config(num_outer_steps, *extra):
    """Gin bindings of a run that takes seconds."""
    return [
        'outer_train.task = "ImageMLP_Digits_20_Sigmoid"',
        f"outer_train.num_outer_steps = {num_outer_steps}",
        "outer_train.log_every = 1",
        "RegularizedTruncatedGrad.unroll_length = 5",
        "Curriculum.train_lengths = (10, 20)",
        "Curriculum.validation_period = 2",
        "Curriculum.num_validation_tasks = 2",
        "Curriculum.min_validations = 1",
        "Curriculum.max_validations = 2",
        "ObjectiveCheck.num_trajectories = 0",
        *extra,
    ]
