"""The picture of docs/architecture.md is what its script makes of today's code, and cannot be made of other code."""

import ast
import runpy
import xml.etree.ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "docs" / "draw_architecture.py"))
draw, Arrow = SCRIPT["draw"], SCRIPT["Arrow"]


@pytest.fixture(scope="module")
def trees():
    return SCRIPT["read"]()


def test_the_committed_picture_is_todays(trees):
    committed = (ROOT / "docs" / "architecture.svg").read_text()
    assert committed == draw(trees), "python docs/draw_architecture.py, look at the picture, and commit it"
    xml.etree.ElementTree.fromstring(committed)
    assert "](architecture.svg)" in (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize("title", SCRIPT["BOXES"])
def test_every_box_is_a_module_that_says_what_it_is(trees, title):
    pattern = SCRIPT["BOXES"][title].modules
    for name in SCRIPT["members"](trees, pattern):
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), name
    assert SCRIPT["sentence"](trees, pattern)


def test_a_module_that_is_gone_is_named(trees):
    left = {name: tree for name, tree in trees.items() if name != "data_pipelines.loader"}
    with pytest.raises(ValueError, match=r"there is no module data_pipelines\.loader"):
        draw(left)


def test_an_arrow_without_an_import_is_named(trees):
    graph = SCRIPT["imports"](trees)
    with pytest.raises(ValueError, match="no import joins 'mixture' and 'optimizer'"):
        SCRIPT["check"](graph, Arrow("mixture", "optimizer"))
    with pytest.raises(ValueError, match=r"no import joins 'mixture' and 'optimizer' by launch\.serving"):
        SCRIPT["check"](graph, Arrow("mixture", "optimizer", by="launch.serving"))
    SCRIPT["check"](graph, Arrow("batch", "optimizer", by="launch.setup"))


def test_a_changed_docstring_changes_the_picture(trees):
    changed = trees | {"data_pipelines.mixture": ast.parse('"""Something else."""\n')}
    changed["data_pipelines.mixture"].body += trees["data_pipelines.mixture"].body[1:]
    assert "Something else" in draw(changed) and "Something else" not in draw(trees)
