"""What a new contributor relies on: lists of versions and of exceptions that name what is there, hooks that fetch
nothing."""

import configparser
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LOCKS = [ROOT / "requirements.lock", *ROOT.glob("requirements-py*.lock")]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def pins(lock: Path) -> dict[str, str]:
    """{package, spelled as pip compares names: version}."""
    lines = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in (line.split("==") for line in lines)}


def test_both_locks_hold_the_same_packages():
    first, second = map(pins, LOCKS)
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} == {"jax", "jaxlib", "flax"}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_holds_what_setup_asks_for(lock):
    found = pins(lock)
    assert re.search(r"^# libtpu==[0-9.]+$", lock.read_text(), re.M), "the Makefile reads it"
    extras = SETUP["options.extras_require"]
    asked = [SETUP["options"]["install_requires"], *(extras[name] for name in ("data", "torch", "serve", "report", "dev"))]
    for line in filter(None, (line.split("#")[0].strip() for text in asked for line in text.splitlines())):
        name, least = (*re.split(r">=", line), "0")[:2]
        number = [[int(part) for part in version.split(".")] for version in (found[name.replace("_", "-")], least)]
        assert number[0] >= number[1], line


def test_exceptions_from_the_type_checker_name_modules():
    for override in PYPROJECT["tool"]["mypy"]["overrides"]:
        for name in override["module"]:
            path = ROOT / name.replace(".", "/")
            assert name.endswith(".*") or path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), name


def test_packages_say_that_they_are_typed():
    for package in set(PYPROJECT["tool"]["mypy"]["files"]) - {"configs"}:
        assert (ROOT / package / "py.typed").is_file()
        assert "py.typed" in SETUP["options.package_data"][package]


def test_hooks_are_programs_of_the_environment():
    for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]:
        assert repository["repo"] == "local"
        for hook in repository["hooks"]:
            folder, program = hook["entry"].split()[0].rsplit("/", 1)
            assert (hook["language"], folder) == ("system", ".venv/bin")
            assert all(program in pins(lock) for lock in LOCKS)
            assert f"$(BIN)/{program}" in (ROOT / "Makefile").read_text()
