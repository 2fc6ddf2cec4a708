"""Which Pythons and versions this works with: installs, imports and tries each, and says so.

    python .ci/matrix.py [--cells CELL ...] [--page]

A cell is a Python from 3.11 on, as found on PATH or among pyenv's, with the versions of
constraints.txt ("3.11-constraints") or with those that pip picks by itself ("3.13-newest"); the
default is all of them. "oldest" and "newest" stand for the oldest Python with constraints and the
newest without. Each cell has an environment of its own, which is deleted. What a cell found stays
in build/matrix/; --page writes docs/compatibility.md from that. Exits with 1 if a cell failed.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
FOUND = REPOSITORY / "build" / "matrix"
PAGE = REPOSITORY / "docs" / "compatibility.md"
PACKAGES = ("jax", "flax", "optax", "dm-haiku", "tensorflow-cpu")
CHECKS = ("install", "import", "smoke tests", "quickstart")
OLDEST = (3, 11)
IMPORT = """
import regularized_lopt
for name in dir(regularized_lopt):
    getattr(regularized_lopt, name)
"""
VERSIONS = """
import importlib.metadata, json, platform, sys
found = importlib.metadata.distributions()
installed = {one.name.lower().replace("_", "-"): one.version for one in found}
versions = {name: installed.get(name) for name in sys.argv[1:]}
print(json.dumps({"Python": platform.python_version(), **versions}))
"""
INTRODUCTION = """# Compatibility

What this was tried with, and nothing is promised beyond it: every Python that `make matrix` found,
once with the versions of constraints.txt and once with those that pip picked by itself, each with
the wheel 0.0.1 of learned_optimization. setup.py has lower bounds of versions and no upper ones.
`make matrix` writes this page.

*Import*: every public name, with deprecation warnings as errors. *Smoke tests*: some of each kind
(estimators, regularizers, the optax form, saving and loading, upstream's launcher). *Quickstart*:
its smallest form. TensorFlow *none*: it has no wheel there, and what reads TFDS was left out.

"""


def pythons() -> dict[str, pathlib.Path]:
    """The first that works of each version, oldest first."""
    folders = [pathlib.Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    folders += sorted(pathlib.Path.home().glob(".pyenv/versions/*/bin"))
    candidates = [path for folder in folders for path in sorted(folder.glob("python3.*"))]
    found: dict[tuple[int, ...], pathlib.Path] = {}
    for path in candidates:
        named = re.fullmatch(r"python(3)\.(\d+)", path.name)
        version = tuple(map(int, named.groups())) if named else ()
        if version >= OLDEST and version not in found and _works(path):
            found[version] = path
    return {".".join(map(str, version)): found[version] for version in sorted(found)}


def _works(python: pathlib.Path) -> bool:
    """A shim of pyenv's may lead nowhere; a system's Python may lack what makes environments."""
    probe = [python, "-c", "import ensurepip, venv"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def run(python: pathlib.Path, *arguments: str) -> bool:
    """Whether it ended well; prints its end if not."""
    done = subprocess.run(
        [python, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        print(*done.stdout.splitlines()[-40:], sep="\n", flush=True)
    return done.returncode == 0


def install(python: pathlib.Path, constrained: bool) -> bool:
    """As `make` does; without TensorFlow where it has no wheel."""
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    constraints = ("--constraint", "constraints.txt") if constrained else ()
    tensorflow = ("--dry-run", "--no-deps", "--only-binary=:all:", "tensorflow-cpu>=2.20")
    extras = "study,dev"
    if run(python, *pip, "install", *constraints, *tensorflow):
        extras += ",tfds"
    return (
        run(python, *pip, "install", "--upgrade", "pip")
        and run(python, *pip, "install", *constraints, "--editable", f".[{extras}]")
        and run(python, *pip, "install", "--no-deps", "learned_optimization==0.0.1")
    )


def try_cell(python: pathlib.Path, constrained: bool) -> dict[str, object]:
    """Versions and, for each of `CHECKS`, whether it passed; after a failure the rest is None."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([python, "-m", "venv", f"{scratch}/venv"], check=True)
        inside = pathlib.Path(scratch, "venv/bin/python")
        checks = {
            "install": lambda: install(inside, constrained),
            "import": lambda: run(inside, "-W", "error::DeprecationWarning", "-c", IMPORT),
            "smoke tests": lambda: run(inside, "-m", "pytest", "-m", "smoke"),
            "quickstart": lambda: run(
                inside, "examples/quickstart.py", "--smallest", f"--out_dir={scratch}/quickstart"
            ),
        }
        passed: dict[str, bool | None] = dict.fromkeys(CHECKS)
        for name, check in checks.items():
            passed[name] = check()
            print(f"  {name}: {'passed' if passed[name] else 'FAILED'}", flush=True)
            if not passed["install"]:
                break
        versions = subprocess.run(
            [inside, "-c", VERSIONS, *PACKAGES], stdout=subprocess.PIPE, check=True
        )
        return {"versions": json.loads(versions.stdout), "passed": passed}


def table(cells: list[dict]) -> str:
    """Of Markdown."""
    words = {True: "passes", False: "FAILS", None: "not tried"}
    header = ["Python", "versions", *PACKAGES, *CHECKS]
    rows = [
        [
            cell["versions"]["Python"],
            "constraints.txt" if cell["constrained"] else "pip's choice",
            *(cell["versions"][name] or "none" for name in PACKAGES),
            *(words[cell["passed"][check]] for check in CHECKS),
        ]
        for cell in cells
    ]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def choose(names: list[str], wanted: list[str]) -> list[str]:
    """Those wanted; all, if none is named."""
    shorthands = {"oldest": names[0], "newest": names[-1]}
    chosen = [shorthands.get(name, name) for name in wanted] or names
    if unknown := set(chosen) - set(names):
        sys.exit(f"There is no cell {min(unknown)!r}; those that there are: {', '.join(names)}.")
    return chosen


def main() -> None:
    """Tries the cells and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="*", default=[])
    parser.add_argument("--page", action="store_true", help="write docs/compatibility.md")
    args = parser.parse_args()
    every = {
        f"{version}-{versions}": (python, versions == "constraints")
        for version, python in pythons().items()
        for versions in ("constraints", "newest")
    }
    FOUND.mkdir(parents=True, exist_ok=True)
    chosen = choose(list(every), args.cells)
    for name in chosen:
        print(name, flush=True)
        python, constrained = every[name]
        cell = {"constrained": constrained, **try_cell(python, constrained)}
        (FOUND / f"{name}.json").write_text(json.dumps(cell, indent=1) + "\n")
    found = {name: FOUND / f"{name}.json" for name in every}
    cells = {name: json.loads(path.read_text()) for name, path in found.items() if path.is_file()}
    print(table([cells[name] for name in chosen]))
    if args.page:
        PAGE.write_text(f"{INTRODUCTION}{table(list(cells.values()))}\n")
    sys.exit(not all(all(cells[name]["passed"].values()) for name in chosen))


if __name__ == "__main__":
    main()
