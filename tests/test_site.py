"""The documentation's site: what its menu names is there, and its pages made from sources hold what those say.

`make docs` builds it, strictly; that needs mkdocs, in an environment of its own."""

import re
import runpy
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PAGES = runpy.run_path(str(ROOT / "docs/site_pages.py"))
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def named(entry) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in named(part)]


def test_every_page_is_in_the_menu_and_there():
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert set(named(SITE["nav"])) == written | {"index.md", "errors.md"}


def test_every_error_is_on_its_page():
    text = PAGES["errors"]()
    assert "| `CheckpointError` | " in text and "## launch/sweep.py" in text
    assert "the config file defines no get\\_sweep(): a list of overrides, or a grid of values" in text
    assert text.count("\n| `") > 300


def test_every_command_is_in_the_table_of_commands():
    text = (ROOT / "docs/which_command.md").read_text()
    commands = {path.stem for path in (ROOT / "launch").glob("*.py") if 'if __name__ == "__main__"' in path.read_text()}
    assert len(commands) > 20 and "make quickstart" in text
    assert {name for name in commands if not re.search(rf"launch\.{name}\b", text)} == {"quickstart"}


def test_the_start_links_within_the_site_alone():
    text = PAGES["start"]()
    assert "](data.md)" in text and "](docs/" not in text and "](configs/" not in text and "`configs/base.py`" in text


def test_api_pages_show_modules_that_are_there():
    shown = [name for page in (ROOT / "docs/api").glob("*.md") for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)]
    assert len(shown) > 25
    for name in shown:
        assert (ROOT / name.replace(".", "/")).with_suffix(".py").exists(), name
