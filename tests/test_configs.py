"""Configs: every key is commented, read by somebody and within the budget; a wrong key names the nearest."""

import ast
import importlib
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from configs import base
from launch.setup.experiment import Experiment
from launch.setup.flags import keys
from world_model import families

ROOT = Path(__file__).parents[1]
VARIANTS = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "base"))


def attributes_read() -> set[str]:
    """Every name that some module of ours takes as an attribute, or asks for as an item or field by string."""
    found = set()
    for package in ("launch", "data_pipelines", "world_model"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    found.add(node.attr)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
                elif isinstance(node, ast.Name):
                    found.add(node.id)
    return found


@pytest.mark.parametrize("family", sorted(families.BUILT_IN))
def test_every_key_is_read(family):
    read, config = attributes_read(), base.get_config(family)
    base.student(config)
    unread = [key for key in keys(config) if key.split(".")[-1] not in read]
    assert not unread


def test_an_unread_key_would_be_seen():
    assert "a_key_nobody_reads" not in attributes_read()


@pytest.mark.parametrize("family", sorted(families.BUILT_IN))
def test_at_most_120_keys(family):
    assert len(keys(base.get_config(family))) <= 120


def commented(path: Path, leaf: str) -> set[str]:
    """Names of keys whose line, told by the pattern, has a comment."""
    found = [(match[1], line) for line in path.read_text().splitlines() if (match := re.match(leaf, line))]
    return {name for name, line in found if "  # " in line}


def test_every_key_has_a_comment():
    """A family may give a key that another config comments another default."""
    shared = commented(ROOT / "configs/base.py", r"    c\.((?:\w+\.)*\w+) = (?!ConfigDict\(\)$)")
    for family in families.BUILT_IN:
        folders = ("wan", families.get_family(family).spec.__module__.split(".")[2])
        own = set().union(*(commented(ROOT / f"world_model/families/{folder}/config.py", r'        "(\w+)": ')
                            for folder in folders))
        assert not [key for key in keys(base.get_config(family))
                    if key not in shared and key.split(".")[-1] not in own]


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_add_no_key_but_datasets(name):
    module = importlib.import_module(f"configs.{name}")
    for arm in getattr(module, "ARMS", ("",)):
        config = module.get_config(arm) if arm else module.get_config()
        full = base.get_config(config.model.family)
        if "distill" in config:
            base.student(full)
        known, found = set(keys(full)), set(keys(config))
        assert {key for key in found - known if not key.startswith("data.datasets.")} == set()
        assert module.__doc__


@pytest.mark.parametrize("name,arm", [("quickstart", "lingbot_va"), ("distill", "lingbot_va"),
                                      ("metaworld", "lingbot_va"), ("ablations.families", "lingbot_va")])
def test_a_small_model_is_rolled_out_as_it_was_trained(name, arm):
    """Its sampler warns of settings that training never sampled; a study came of one before (docs/results.md)."""
    with warnings.catch_warnings(action="error"):
        Experiment(importlib.import_module(f"configs.{name}").get_config(arm)).sampler()


@pytest.mark.parametrize("argument,nearest", [("--config.train.stepss=5", "config.train.steps"),
                                              ("--config.chekpoint.every=5", "config.checkpoint.every")])
def test_an_unknown_key_names_the_nearest(argument, nearest, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "launch.train", "--config=configs/quickstart.py:debug", argument, f"--workdir={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert nearest in done.stderr and "Traceback" not in done.stderr
