"""The package's floors: what may import what, and how large a room, a file, a function may be."""

import ast
import collections
import graphlib

from conftest import REPOSITORY

PACKAGE = "regularized_lopt"
LAUNCHERS = "launchers"
FLOORS = (
    # Modules of the ground may import each other.
    {
        "_version",
        "configurable",
        "devices",
        "errors",
        "gin_files",
        "interruption",
        "power",
        "progress",
        "provenance",
        "run_files",
        "serialization",
        "statistics",
        "upstream",
    },
    {"learned_optimizers", "regularizers", "tasks"},
    {"optax_bridge"},
    {"zoo"},
    {"estimators"},
    {"outer_training"},
    {"measure"},
    {"report", "study"},
    {LAUNCHERS},
)
"""Rooms, from the ground up. Those of one floor do not know each other."""
ON_TOP = {
    "",  # The package itself: the public names.
    *("launch", "plots", "study_report"),
    *("compare", "few_shot", "meta_test", "noisy_quadratic", "outer_train", "reproduce", "search"),
    *("zoo.__main__", "zoo.publish"),
}
"""Modules of the launchers' floor."""
DOORS = {("zoo", "plots")}
"""Imports within a function that may lead upward: one-line methods of `LoadedLOpt`."""
LARGEST_ROOM = 0.2
"""Of the package's lines, a share that no room reaches."""
LONGEST_FILE = 350
LONGEST_FUNCTION = 60
"""Lines, the docstring left out."""


def source_files():
    """The package's files by module, without the package's name: "zoo.cards"."""
    root = REPOSITORY / PACKAGE
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = source_files()


def room(module):
    return LAUNCHERS if module in ON_TOP else module.partition(".")[0]


def imported(tree, known=SOURCES):
    """Modules of the package that a module imports, in functions too, but not for types alone."""
    found = set()
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "Imports are absolute."
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if _within(name) in known else node.module for name in names]
        else:
            continue
        found |= {_within(name) for name in names if name.split(".")[0] == PACKAGE}
    return found


def _within(name):
    return name.removeprefix(PACKAGE).removeprefix(".")


TREES = {module: ast.parse(path.read_text()) for module, path in SOURCES.items()}
IMPORTS = {
    module: {other for other in imported(tree) if (module, other) not in DOORS}
    for module, tree in TREES.items()
}
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}


def test_imports_are_found_wherever_they_stand():
    code = """
import os
import regularized_lopt.errors
from regularized_lopt import upstream, load
from regularized_lopt.zoo import cards as c, LoadedLOpt
if TYPE_CHECKING:
    from regularized_lopt import tasks
else:
    from regularized_lopt import statistics
def f():
    from regularized_lopt import plots
"""
    wanted = {"errors", "upstream", "", "zoo.cards", "zoo", "statistics", "plots"}
    assert imported(ast.parse(code)) == wanted


def test_every_module_has_a_floor():
    assert {room(module) for module in SOURCES} == set(HEIGHT)
    assert set(SOURCES) >= ON_TOP


def test_nothing_imports_upward_or_beside():
    wrong = [
        f"{module} -> {other}"
        for module, others in IMPORTS.items()
        for other in others
        if room(module) != room(other)
        and HEIGHT[room(other)] >= max(HEIGHT[room(module)], 1)  # The ground is one room.
    ]
    assert not wrong


def test_a_report_is_made_of_measurements_alone():
    below = {
        room(other) for module in SOURCES if room(module) == "report" for other in IMPORTS[module]
    }
    assert below <= {"report", "measure"} | FLOORS[0]


def test_doors_are_within_functions():
    for module, other in DOORS:
        top = [node for node in TREES[module].body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert other in imported(TREES[module]) - imported(ast.Module(top, []))


def test_there_are_no_circles():
    graphlib.TopologicalSorter(IMPORTS).prepare()  # Raises CycleError, which names one.


def length(function):
    """Of a function in lines, without its docstring."""
    first = function.body[0]
    documented = ast.get_docstring(function, clean=False) is not None
    docstring = first.end_lineno - first.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_a_docstring_does_not_make_a_function_longer():
    code = 'def f(\n    x,\n):\n    """One.\n\n    Two.\n    """\n    return x\n'
    assert length(ast.parse(code).body[0]) == 4


def test_no_room_is_too_large():
    lines = collections.Counter()
    for module, path in SOURCES.items():
        lines[module.partition(".")[0]] += len(path.read_text().splitlines())
    (largest, count), *_ = lines.most_common()
    assert count < LARGEST_ROOM * lines.total(), f"{largest} has {count} of {lines.total()} lines."


def test_no_file_is_too_long():
    lengths = {module: len(path.read_text().splitlines()) for module, path in SOURCES.items()}
    assert not {module: lines for module, lines in lengths.items() if lines > LONGEST_FILE}


def test_no_function_is_too_long():
    too_long = [
        f"{module}.{node.name} has {length(node)} lines."
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and length(node) > LONGEST_FUNCTION
    ]
    assert not too_long
