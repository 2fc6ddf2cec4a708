"""What a checkout is built and tested with."""

import json
import os
import re
import runpy
import subprocess
import sys

import helpers_xla
import jax
import pytest
import yaml
from conftest import REPOSITORY

import regularized_lopt
from regularized_lopt.zoo import cards

README = runpy.run_path(str(REPOSITORY / ".ci/readme.py"))
MATRIX = runpy.run_path(str(REPOSITORY / ".ci/matrix.py"))


def test_a_flag_that_xla_does_not_know_is_left_out(monkeypatch):
    assert helpers_xla.flags() == " ".join(helpers_xla.FLAGS)
    known = helpers_xla.FLAGS[0]
    monkeypatch.setattr(helpers_xla, "FLAGS", (known, "--xla_unheard_of=0"))
    assert helpers_xla.flags() == known


def test_commands_of_the_pages_compile_as_the_tests_do(tmp_path):
    found = README["quickly"](sys.executable, tmp_path)
    assert found["XLA_FLAGS"] == " ".join(helpers_xla.FLAGS)
    compiles = "import jax; jax.jit(lambda x: x + 1)(1.0)"
    subprocess.run([sys.executable, "-c", compiles], env={**os.environ, **found}, check=True)
    assert any(tmp_path.iterdir())


def test_the_citation_is_of_this_version_and_licence():
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert cited["version"] == regularized_lopt.__version__
    assert cited["license"] == cards.LICENSE
    assert f'license_expression="{cards.LICENSE}"' in (REPOSITORY / "setup.py").read_text()


def test_a_commit_passes_what_make_lint_checks():
    (local,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (REPOSITORY / "Makefile").read_text(), re.M)
    checked = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    assert [hook["entry"] for hook in local["hooks"]] == checked


def test_the_commands_of_a_page_are_found():
    text = (
        "`python -m a.b`, and `make\ntest`; `as_optax`, `python`:\n```python\nmake = 1\n```\n"
        "```\nmake all   # comment\npip install '.[x]'\nSAM.rho = 0.05\n```\n"
        "```\n.venv/bin/python -m a.b --c=1\nmake all\n```\n"
    )
    assert README["commands"](text) == [
        "make all",
        "pip install '.[x]'",
        ".venv/bin/python -m a.b --c=1",
        "make test",
    ]


def test_a_directive_is_no_listing():
    text = "```{include} ../a.md\n:b: c\n```\n\n```\nmake all\n```\n"
    assert README["commands"](text) == ["make all"]


def test_newcomers_commands_are_in_the_readme():
    found = README["commands"]((REPOSITORY / "README.md").read_text())
    assert found[:2] == ["make quickstart", "make test"]


def test_every_command_of_the_pages_has_a_smallest_form_and_no_placeholder_is_left():
    found = README["pages"]()
    assert set(README["commands"](found)) > README["CI"]
    smallest = [README["smallest"](one) for one in README["started"](found)]
    assert not [one for one in smallest if "..." in one or "HOST" in one or "=DIR" in one]
    with pytest.raises(LookupError, match=r"'make tea', which FORMS in \.ci/readme\.py"):
        README["smallest"]("make tea")


def test_cells_of_the_matrix_are_chosen_by_name():
    choose, names = MATRIX["choose"], ["3.11-constraints", "3.11-newest", "3.13-newest"]
    assert choose(names, []) == names
    assert choose(names, ["oldest", "newest"]) == ["3.11-constraints", "3.13-newest"]
    with pytest.raises(SystemExit, match=r"no cell '3\.9'; those that there are: 3\.11-c"):
        choose(names, ["3.9"])


def test_the_matrix_s_table_tells_what_was_not_tried_from_what_failed():
    versions = {"Python": "3.13.0", "jax": "0.12.0", **dict.fromkeys(MATRIX["PACKAGES"][1:])}
    passed = {**dict.fromkeys(MATRIX["CHECKS"]), "install": True, "import": False}
    (*_, row) = MATRIX["table"](
        [{"constrained": False, "versions": versions, "passed": passed}]
    ).splitlines()
    assert row.startswith("| 3.13.0 | pip's choice | 0.12.0 | none |")
    assert row.endswith("| passes | FAILS | not tried | not tried |")


def test_versions_are_those_that_are_installed():
    asked = subprocess.run(
        [sys.executable, "-c", MATRIX["VERSIONS"], "jax", "regularized-lopt", "unheard-of"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(asked.stdout)
    assert found["jax"] == jax.__version__
    assert found["regularized-lopt"] == regularized_lopt.__version__
    assert found["unheard-of"] is None
