"""Every global name that a function reads exists.

Linters cannot tell: the axes of array types (`Float[Array, n]`) are names that do not.
"""

import builtins
import dis
import importlib.util
import pathlib
import pkgutil
import types

import regularized_lopt

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(regularized_lopt.__path__, "regularized_lopt.")
    if not module.name.endswith("__main__")
)
LAUNCHERS = {"compare", "meta_test", "outer_train", "reproduce", "search"}


def globals_read(code: types.CodeType) -> set[str]:
    """By the code and everything that is defined in it."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= globals_read(constant)
    return found


def test_every_global_name_exists():
    missing = {}
    for name in MODULES:
        path = pathlib.Path(importlib.util.find_spec(name).origin)
        code = compile(path.read_text(), str(path), "exec")
        # Launchers define flags, which exist once per process: what they define is in their code.
        is_launcher = name.removeprefix("regularized_lopt.") in LAUNCHERS
        known = set(code.co_names) if is_launcher else set(vars(importlib.import_module(name)))
        read = globals_read(code) - known - set(vars(builtins))
        if read:
            missing[name] = read
    assert not missing


def test_a_missing_name_is_seen():
    code = compile("def f():\n    return [nowhere for _ in range(3)]", "", "exec")
    assert globals_read(code) - set(vars(builtins)) == {"nowhere"}
