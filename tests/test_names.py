"""Every global name that a function or an annotation reads exists.

Linters cannot tell: the axes of array types (`Float[Array, n]`) are names that do not.
"""

import ast
import builtins
import dis
import importlib.util
import pathlib
import pkgutil
import types

import jaxtyping

import regularized_lopt

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(regularized_lopt.__path__, "regularized_lopt.")
    if not module.name.endswith("__main__")
)


def globals_read(code: types.CodeType) -> set[str]:
    """By the code and everything that is defined in it."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= globals_read(constant)
    return found


def annotations_read(tree: ast.AST) -> set[str]:
    """By annotations, less the axes of array types."""

    def names(node: ast.AST) -> set[str]:
        if isinstance(node, ast.Name):
            return {node.id}
        if isinstance(node, ast.Subscript) and hasattr(jaxtyping, getattr(node.value, "id", "")):
            return names(node.value)
        return set().union(*map(names, ast.iter_child_nodes(node)))

    fields = ("annotation", "returns")
    found = [getattr(node, field, None) for node in ast.walk(tree) for field in fields]
    return set().union(*(names(one) for one in found if one is not None))


def test_every_global_name_exists():
    missing = {}
    for name in MODULES:
        path = pathlib.Path(importlib.util.find_spec(name).origin)
        source = path.read_text()
        code = compile(source, str(path), "exec")
        known = set(vars(importlib.import_module(name)))
        # What only type checkers import is in the code alone.
        read = globals_read(code) | annotations_read(ast.parse(source)) - set(code.co_names)
        read -= known | set(vars(builtins))
        if read:
            missing[name] = read
    assert not missing


def test_a_missing_name_is_seen():
    code = compile("def f():\n    return [nowhere for _ in range(3)]", "", "exec")
    assert globals_read(code) - set(vars(builtins)) == {"nowhere"}
    tree = ast.parse("def f(x: Float[Array, n], y: list[Nowhere]) -> Elsewhere: ...")
    assert annotations_read(tree) == {"Float", "list", "Nowhere", "Elsewhere"}
