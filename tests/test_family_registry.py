"""How families are found: unknown names, parts left out, plug-ins that fail to import, and the page that says how to add
one."""

import dataclasses
import re
import sys

import pytest

from configs import base
from launch import import_weights
from tests.family_subject import ROOT, TOY, installed
from world_model import families
from world_model.families import FamilyError, all_families, get_family
from world_model.families.base.family import Family, MissingPart

PAGE = ROOT / "docs/add_a_family.md"


@pytest.fixture(scope="module", autouse=True)
def toy_installed():
    with installed(TOY):
        yield


@pytest.mark.parametrize("part", ["torch_policy", "torch_step", "original", "golden", "render_mask"])
def test_a_part_that_is_left_out_is_named_with_who_wants_it(part):
    with pytest.raises(MissingPart, match=f"family 'toy' has no {part.replace('_', ' ')}, which launch.x needs"):
        get_family("toy").part(part, "launch.x")


def test_a_family_without_imports_says_so():
    with pytest.raises(MissingPart, match="family 'toy' has no imports, which launch.import_weights needs"):
        import_weights.format_of(dataclasses.replace(get_family("toy"), imports={}), "wan")
    with pytest.raises(ValueError, match=r"holds a network of family 'dreamzero'; this one is read from \['toy'\]"):
        import_weights.format_of(get_family("toy"), "wan")


def test_an_unknown_family_is_answered_with_the_nearest():
    with pytest.raises(FamilyError, match=r"'dreamzer' is not installed; did you mean 'dreamzero'\? .*lingbot_va.*toy"):
        get_family("dreamzer")
    with pytest.raises(FamilyError, match="did you mean 'toy'"):
        base.get_config("tony")


@pytest.mark.parametrize("source, problem", [
    ("import a_module_that_is_not_there", "cannot be imported: ModuleNotFoundError: No module named 'a_module_that"),
    ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
    ("", "cannot be imported: AttributeError: .*FAMILY"),
    ("FAMILY = 3", "should be a Family of that name, found 'int'"),
    ("from toy_family import FAMILY", "should be a Family of that name, found 'toy'"),
])
def test_a_broken_plug_in_gives_its_own_error_and_the_others_go_on(tmp_path, monkeypatch, source, problem):
    monkeypatch.delitem(sys.modules, "broken_family", raising=False)
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[wamax.families]\nbroken = broken_family:FAMILY\n")
    (tmp_path / "broken_family.py").write_text(source + "\n")
    with installed(tmp_path):
        with pytest.raises(FamilyError, match=rf"family 'broken'.*broken_family:FAMILY.*{problem}"):
            get_family("broken")
        with pytest.warns(UserWarning, match="family 'broken'"):
            found = [family.name for family in all_families()]
    assert found == [*families.BUILT_IN, "toy"]


def test_the_page_names_every_part_and_files_that_exist():
    text = PAGE.read_text()
    for field in dataclasses.fields(Family):
        assert f"`{field.name}`" in text, field.name
    tree = re.search(r"```text\n(.*?)```", text, re.S)[1]
    named = re.findall(r"([\w.-]+/)?([\w]+\.py|METADATA|entry_points\.txt)", tree)
    there = {path.name for path in TOY.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {name for _, name in named} == there
    assert (TOY / "toy_family-1.0.dist-info/entry_points.txt").read_text() in text


def test_the_toy_is_as_small_as_the_page_says():
    files = [path for path in TOY.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(len(path.read_text().splitlines()) for path in files) < 300
