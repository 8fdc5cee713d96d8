"""What README.md and docs/ name is there: links, commands with their flags, config keys, and the worked example."""

import re
import runpy
from pathlib import Path

import pytest

from configs import base
from launch import sweep
from launch.setup import flags as launch_flags
from launch.setup.experiment import Experiment

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
KEY = re.compile(r"--config\.([a-z_.0-9]+)=")
MODULE = re.compile(r"\b((?:launch|benchmarks)\.[a-z_]+)\b")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_commands_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), link
    for name in set(MODULE.findall(text)) - {"launch.py"}:
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or path.is_dir(), name
    for name in re.findall(r"\bconfigs/[a-z_0-9/]+\.py", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_flags_of_commands_exist(page):
    for line in page.read_text().replace("\\\n", " ").splitlines():
        named = re.findall(r"python -m (launch\.[a-z_]+)", line)
        for name, options in zip(named, re.split(r"python -m launch\.[a-z_]+", line)[1:], strict=True):
            files = (ROOT / name.replace(".", "/")).with_suffix(".py"), ROOT / "launch/setup/flags.py"
            source = "".join(file.read_text() for file in files)
            for flag in re.findall(r"(?<![\w-])--([a-z][a-z_-]*)(?=[=\s`\]|)]|$)", options.split("#")[0]):
                of_sampler = "define_sampling()" in files[0].read_text() and flag in launch_flags.sampler_settings()
                assert of_sampler or f'"{flag}"' in source or f'"--{flag}"' in source, f"{name} has no --{flag}"


def test_keys_exist():
    known = {key for family in ("dreamzero", "lingbot_va_mot") for key in launch_flags.keys(base.get_config(family))}
    for page in PAGES:
        for key in KEY.findall(page.read_text()):
            assert key in known or key.startswith("data.datasets."), f"{page.name}: {key}"


def test_the_worked_example_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # its path is relative
    example = re.search(r"```python\n(from ml_collections.*?)```", (ROOT / "docs/your_robot.md").read_text(), re.S)[1]
    (tmp_path / "my_robot.py").write_text(example)
    config = runpy.run_path(str(tmp_path / "my_robot.py"))["get_config"]()
    assert sweep.check(config)["steps"] == 50
    data = Experiment(config).data()
    assert data.heldout_windows == 14
    with data.loader() as loader:
        assert next(loader)["video"].shape == (8, 9, 48, 64, 3)
