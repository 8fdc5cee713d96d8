"""Recipes: every `:debug` arm trains on miniatures of its sets; every arm fits together at its full size; what a recipe
says of itself is there."""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs import base, recipes
from data_pipelines.simulators.miniatures import writers
from launch.evaluation.cost import share
from launch.recipe import Recipe
from launch.setup.experiment import Experiment
from launch.setup.flags import keys
from world_model.training import checkpoint_reader
from world_model.training.optimizer import matching

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "configs/recipes").glob("*.py") if path.stem != "__init__")
MODULES = {name: importlib.import_module(f"configs.recipes.{name}") for name in NAMES}
PUBLISHED = sorted(path.stem for path in (ROOT / "configs").glob("*_*b*.py"))
ARMS = [(name, arm) for name in NAMES for arm in MODULES[name].ARMS]
pytestmark = pytest.mark.usefixtures("quick_compiles")  # three steps each: compiling is most of a test
SECTIONS = ("Data:", "Storage:", "Time:", "money:", "Expected:", "Known defects:")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A directory with all miniatures where the debug arms look for them."""
    folder = tmp_path_factory.mktemp("recipes")
    assert writers.write(folder / recipes.MINIATURES)
    return folder


@pytest.mark.parametrize("name, arm", [(name, arm) for name, arm in ARMS if arm.endswith("debug")])
def test_a_debug_arm_trains(name, arm, here, monkeypatch, tmp_path):
    from launch.train import train

    monkeypatch.chdir(here)
    config = MODULES[name].get_config(arm)
    assert train(Experiment(config), tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(np.isfinite(record["loss"]) and record["action_loss"] > 0 for record in records)
    held = dict(checkpoint_reader.read_arrays(tmp_path / "checkpoints", 3, lambda name: name.startswith("params.")))
    trained = matching("trainable", config.optimizer.trainable, [name.removeprefix("params.") for name in held])
    assert {x.dtype.name for name, x in held.items() if name[7:] not in trained} <= {config.optimizer.get("frozen_dtype", "float32")}
    assert all(x.any() for name, x in held.items() if name.endswith("lora_b"))  # which begin at zero


@pytest.mark.parametrize("name, arm", [(name, arm) for name, arm in ARMS if not arm.endswith("debug")])
def test_an_arm_fits_together_and_adds_no_key(name, arm):
    config = MODULES[name].get_config(arm)
    known, found = set(keys(base.get_config(config.model.family))), set(keys(config))
    assert {key for key in found - known if not key.startswith("data.datasets.")} == set()
    experiment = Experiment(config)
    _ = experiment.optimizer, experiment.loss
    assert sum(np.prod(shape.shape, dtype=np.int64) for shape in experiment.model.shapes.values()) > 4e9
    assert arm in MODULES[name].COST
    for path in [entry.path for entry in recipes.entries(config.data.datasets)] + [config.train.init_from]:
        assert path in MODULES[name].GET, f"{path}: the recipe does not say how it is got"


@pytest.mark.parametrize("name, arm", [(name, arm) for name, arm in ARMS if not arm.endswith("debug")])
def test_evaluation_costs_little(name, arm):
    config, cost = MODULES[name].get_config(arm), MODULES[name].COST[arm]
    assert config.evaluate.every and config.evaluate.rollout_every
    assert 0 < share(Experiment(config), len(recipes.entries(config.data.datasets)), cost["chips"]) < 0.03


@pytest.mark.parametrize("name", PUBLISHED)
def test_evaluation_costs_little_at_the_published_sizes(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    assert config.evaluate.every and config.evaluate.rollout_every
    assert 0 < share(Experiment(config), datasets=4, rows=64) < 0.03


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_short_and_says_what_it_takes(name):
    text = (ROOT / f"configs/recipes/{name}.py").read_text()
    assert len(text.splitlines()) < 100
    assert f"python -m launch.recipe {name}" in text and f"--config=configs/recipes/{name}.py" in text
    assert [section for section in SECTIONS if section not in (MODULES[name].__doc__ or "")] == []
    with pytest.raises(ValueError, match="arms are"):
        MODULES[name].get_config("nothing")


def test_what_is_missing_or_half_there_is_named_with_what_brings_it(here, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / recipes.MINIATURES).parent.mkdir()
    (tmp_path / recipes.MINIATURES).symlink_to(here / recipes.MINIATURES)
    parts = list(Recipe("droid_14b", "debug").parts())
    assert [part.state for part in parts] == ["there", "there", "MISSING"]  # the last is the cache
    assert parts[0].words.startswith("1 files, 0.0 GB") and "--out=cache/droid_14b_debug" in parts[2].words
    missing = list(Recipe("libero_5b", "").parts())
    assert {part.state for part in missing} == {"MISSING"}
    assert missing[0][1:] == ("data/libero", MODULES["libero_5b"].GET["data/libero"])
    assert "Wan2.2-TI2V-5B-Diffusers" in missing[1].words and "launch.import_weights" in missing[-2].words


def test_half_a_data_set_is_named(here, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, spoiled in (("aloha", "videos/chunk-000/observation.images.cam_high/episode_000001.mp4"),
                          ("libero", "data/chunk-000/episode_000002.parquet")):
        folder = tmp_path / recipes.MINIATURES / name
        shutil.copytree(here / recipes.MINIATURES / name, folder)
        (folder / spoiled).write_bytes(b"")
        part = next(Recipe({"aloha": "few_shot", "libero": "libero_5b"}[name], "debug").parts())
        assert part.state == "HALF THERE" and "1 of its" in part.words and spoiled in part.words
        assert "launch.record_miniatures" in part.words
    (folder / "meta/info.json").unlink()
    part = next(Recipe("libero_5b", "debug").parts())
    assert part.state == "HALF THERE" and "info.json is missing" in part.words


def test_the_mixture_has_the_shares_that_it_names(here, monkeypatch):
    monkeypatch.chdir(here)
    data = Experiment(MODULES["mixture_wam"].get_config("debug")).data()
    weights = {dataset.name: dataset.weight for dataset in data.training}
    assert weights["egodex"] == pytest.approx(sum(weights.values()) / 4)
    assert {dataset.name: dataset.source.stretches()[0, 1] for dataset in data.training}["bridge"] == 1  # its zero step


def test_costs_are_sums_that_can_be_checked():
    cache, training, evaluation = Recipe("droid_14b", "").costs()
    seconds = MODULES["droid_14b"].COST[""]["seconds"]  # planned: a new fit of plans changes it
    hours = 100_000 * seconds / 3600
    assert "614,000 windows x 2.70 MB = 1,659 GB" in cache
    assert (f"100,000 steps of 128 x {seconds} s = {hours:.1f} h on 64 v5p; x 64 chips x $4.20 an hour on demand = "
            f"${hours * 64 * 4.20:,.0f}") in training
    # 64 windows x 2 draws / 3 every 1,000 steps, and 64 x 2 x 16 / 3 every 5,000, of 128 samples a step
    assert evaluation.startswith("evaluation: at most 0.14% of the training's FLOP: 32 windows of each of 1 data sets ")
    assert list(Recipe("droid_14b", "debug").costs()) == []
    with pytest.raises(ValueError, match="no recipe 'droid'; did you mean 'droid_14b'\\? There are: agi"):
        Recipe("droid", "")
