"""Sphinx configuration: python -m sphinx -b html -n -W --keep-going -c docs . build/docs.

Sources are those of the whole repository, so that every link is as on GitHub.
"""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import re
import sys
import types
from typing import Any

from sphinx.domains.python import PyObject
from sphinx.util import logging

import regularized_lopt  # Before learned_optimization, which it makes run on a current JAX.

logger = logging.getLogger(__name__)
next(field for field in PyObject.doc_field_types if field.name == "variable").label = "Attributes"

project = "regularized_lopt"
version = release = regularized_lopt.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "experiments/README.md",
    "experiments/*/RESULTS.md",
    "experiments/*/PROTOCOL.md",
    "experiments/search/NOTES.md",
    "benchmarks/RESULTS.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
exclude_patterns = [".*", "build", "runs"]  # Not even looked into.

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["static"]
html_extra_path = ["root"]  # Leads from where one looks to where the index is.
html_css_files = ["style.css"]
html_copy_source = html_show_copyright = html_show_sourcelink = False

myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True

default_role = "code"
autoclass_content = "both"
autodoc_default_options = {"members": True, "exclude-members": "replace"}  # That is flax's.
autodoc_inherit_docstrings = False  # Methods of upstream's interfaces are documented there.
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_attr_annotations = False  # The signature has them.
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True

# Types that no page here describes: of projects whose inventories a build without network cannot
# ask; our aliases of such types, and private classes; jaxtyping's dimensions.
_OTHERS = ("collections", "dataclasses", "haiku", "jax", "jaxlib", "jaxtyping", "np", "numpy")
_OTHERS += ("learned_optimization", "matplotlib", "mpl_figure", "optax", "os", "pathlib", "tqdm")
_OTHERS += ("xarray", "xr")
nitpick_ignore_regex = [
    ("py:class", rf"({'|'.join(_OTHERS)})\..*|Array|Bool|Float|Int"),
    ("py:class", r"GradFn|Hidden|LossFn|ModelState|Params|Theta|Tree|_T|lstm_network\.Layers"),
    ("py:class", r"regularized_lopt\..*\._\w+|(truncated_step|curriculum|unroll)_lib\..*|Mesh"),
    ("py:class", "'.*'|[a-z]+|[0-9]+"),
]


def _modules() -> list[types.ModuleType]:
    """All modules of the package but those that are run: they define command line flags."""
    found = pkgutil.walk_packages(regularized_lopt.__path__, "regularized_lopt.")
    sources = {
        one.name: importlib.util.find_spec(one.name).loader.get_source(one.name) for one in found
    }
    return [
        importlib.import_module(name)
        for name, source in sources.items()
        if '__name__ == "__main__"' not in source
    ]


def _names(module: types.ModuleType) -> list[str]:
    """What is documented with a module: what it defines, and what a package re-exports."""
    package = sys.modules[module.__name__.rpartition(".")[0]]
    names = []
    for name, value in vars(module).items():
        if name.startswith("_") or inspect.ismodule(value):
            continue
        home = getattr(value, "__module__", None) or module.__name__
        elsewhere = package is not regularized_lopt and getattr(package, name, None) is value
        if f"{home}.".startswith(f"{module.__name__}.") and not elsewhere:
            names.append(name)
    return names


for _module in _modules():
    _module.__all__ = _names(_module)  # What automodule goes by.


def _tidy(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings as napoleon expects them."""
    if what == "class" and lines[:1] == ["Initializer."]:  # Shown as one with that of the class.
        del lines[0]
    if lines[:1] and lines[0].startswith("Create new instance of"):  # A NamedTuple's, generated.
        lines.clear()
    if what in ("attribute", "data", "property"):  # "Words: more words" would be a type.
        lines[:0] = ["..", ""]  # An empty comment.
    for i, line in enumerate(lines):  # "a, b: description" would be b of type a.
        lines[i] = re.sub(r"^ +\w+(, \w+)+:", lambda names: names[0].replace(", ", ","), line)


def _parsable(*event: Any) -> tuple[str | None, str | None]:
    """Signatures without what is no Python, and with the public name of arrays."""
    *_, signature, annotation = event
    for old, new in (("<factory>", "..."), ("jaxlib._jax.Array", "jax.Array")):
        signature, annotation = (s and s.replace(old, new) for s in (signature, annotation))
    return signature, annotation


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """A NamedTuple's fields are described with the class."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def _check_coverage(app: Any, env: Any) -> None:
    """Every documented name of the package is on a page."""
    shown = env.domains.python_domain.objects
    for module in _modules():
        for name in module.__all__:
            documented = callable(value := getattr(module, name)) and inspect.getdoc(value)
            if documented and f"{module.__name__}.{name}" not in shown:
                logger.warning("%s.%s is on no page of docs/api", module.__name__, name)


def setup(app: Any) -> None:
    """Connects the functions above."""
    app.connect("autodoc-process-docstring", _tidy, priority=400)  # Napoleon has 500.
    app.connect("autodoc-process-signature", _parsable)
    app.connect("autodoc-skip-member", _skip)
    app.connect("env-check-consistency", _check_coverage)
