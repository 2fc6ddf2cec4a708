"""Packaging. The README says how to install learned_optimization beside it."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION_FILE = (HERE / "regularized_lopt" / "_version.py").read_text()
VERSION = re.search(r'^__version__ = "(.+)"$', VERSION_FILE, re.MULTILINE)[1]

setuptools.setup(
    name="regularized_lopt",
    version=VERSION,
    description="Meta-train learned optimizers that find flat minima of ordinary losses",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        *setuptools.find_packages(include=["regularized_lopt", "regularized_lopt.*"]),
        "regularized_lopt.gin_configs",
    ],
    package_dir={"regularized_lopt.gin_configs": "gin_configs"},
    package_data={
        "regularized_lopt": ["py.typed", "report/page.*", "zoo/entries/*/*"],
        "regularized_lopt.gin_configs": ["*.gin"],
    },
    install_requires=[
        "absl-py>=2.1",
        "chex>=0.1.90",
        "dm-haiku>=0.0.16",
        "filelock>=3.16",
        "flax>=0.12",
        "gin-config>=0.5.0",
        "jax>=0.10",
        "jaxtyping>=0.3",
        "numpy>=2.0",
        "optax>=0.2.6",
        "rich>=13.9",
        "scikit-learn>=1.6",
        "scipy>=1.15",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.9",
        "importlib_resources>=6",  # TFDS imports it without requiring it.
        "tqdm>=4.66",
    ],
    extras_require={
        # Studies: meta-tests, comparisons, their results, pages and figures.
        "study": [
            "h5netcdf>=1.6",
            "jinja2>=3.1",
            "matplotlib>=3.9",
            "pillow>=11",
            "xarray>=2025.6",
        ],
        # TensorFlow reads TFDS the first time; afterwards the arrays are cached and nothing needs
        # it. Upstream's own launchers log with both.
        "tfds": [
            "tensorboard>=2.18",
            "tensorflow-cpu>=2.20; sys_platform == 'linux' and platform_machine == 'x86_64'",
            "tensorflow>=2.20; sys_platform != 'linux' or platform_machine != 'x86_64'",
        ],
        "docs": ["furo>=2025.7", "myst-nb>=1.3", "sphinx>=8.2"],
        "dev": [
            "equinox>=0.13",
            "hypothesis>=6.100",
            "mypy>=1.13",
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "setuptools>=77",  # A test builds the wheel.
            "slipcover>=1.1",
        ],
    },
)
