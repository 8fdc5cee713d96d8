"""LingBot-VA's, LingBot-VLA's and Wan's exports in the originals' hands: what these answered once, and how a wrong one is told.

goldens/original_*.npz hold what the runs told of the exports below on checkouts of Robbyant/lingbot-va at 6f092cb,
Wan-Video/Wan2.1 at 9737cba and Wan-Video/Wan2.2 at 42bf4cf, and in the package rlinf-lingbotvla 0.1.3, with PyTorch 2.13 and diffusers (LingBot-VA's 0.35, Wan's 0.42) on a CPU. Again:

    .venv/bin/python -m tests.test_originals NAME CHECKOUT PYTHON
"""

import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from configs import dreamzero_5b, dreamzero_14b, lingbot_va_5b, lingbot_vla_4b
from data_pipelines.robots.embodiments import get_embodiment
from launch.exporting import original
from launch.setup import provenance
from launch.setup.experiment import Experiment
from tests.test_original import interpreter
from world_model.families import get_family
from world_model.families.base.family import MissingPart
from world_model.families.dreamzero.weights import video_formats
from world_model.families.lingbot_va.weights import released_format
from world_model.families.lingbot_vla.torch import original_check as vla_check
from world_model.families.lingbot_vla.weights import released_format as vla_format

GOLDENS = Path(__file__).parent / "goldens"
ROLLOUT = {"chunk_frames": 2, "window_blocks": 8, "steps": 3, "action_steps": 4, "guidance": 2.0, "action_shift": 0.05}
ROBOTS = {"lingbot_va": "robotwin_dual_arm", "lingbot_vla": "robotwin_joints_75"}
NAMES = ("lingbot_va", "lingbot_vla", "wan21", "wan22")


def config_of(name: str):
    """Wan's constructor fixes the text's width, LingBot-VA's needs heads of an even third; its server fixes the codec's
    channels and stride."""
    if name == "lingbot_vla":
        config = lingbot_vla_4b.get_config("debug")
        config.model.update(views=3, action_dim=75, state_dim=75)
        return config
    if name == "lingbot_va":
        config = lingbot_va_5b.get_config("debug")
        config.model.update(dim=24, num_heads=1, num_layers=2, text_dim=8)
        config.layout.height = 96
        return config
    config = (dreamzero_14b if name == "wan21" else dreamzero_5b).get_config("debug")
    config.model.update(num_layers=2, dim=24, num_heads=1, ffn_dim=32, text_dim=4096, text_length=512, image_dim=1280,
                        image_tokens=257)
    return config


def statistics_of(robot: str, actions_per_block: int) -> dict:
    """Of one dataset of that robot."""
    rng, known = np.random.default_rng(0), get_embodiment(robot)

    def values(dims):
        low, high = rng.uniform(-2, -1, dims).tolist(), rng.uniform(1, 2, dims).tolist()
        return {"count": 5, "q01": low, "q99": high, "min": low, "max": high, "mean": [0.0] * dims, "std": [1.0] * dims}

    return {"arms": {"dataset": "arms", "embodiment": robot, "actions_per_block": actions_per_block,
                     "action": values(len(known.action)), "state": values(len(known.state)) if known.state else None}}


def write_export(name: str, out: Path) -> Path:
    """Weights that are random and always the same, with what goes beside them."""
    config, rng = config_of(name), np.random.default_rng(0)
    experiment = Experiment(config)
    params = {key: (0.2 * rng.normal(size=x.shape) + key.endswith("scale")).astype(np.float32)
              for key, x in sorted(experiment.model.shapes.items())}
    out.mkdir(parents=True)
    statistics = statistics_of(ROBOTS[name], config.layout.actions_per_block) if name in ROBOTS else {}
    if name == "lingbot_vla":
        vla_format.write(out, experiment.model.spec, params, statistics=statistics,
                         robots={"arms": get_embodiment(ROBOTS[name])})
    elif name == "lingbot_va":
        released_format.write(out, experiment.model.spec, params, rollout=ROLLOUT)
    else:
        video_formats.write(out, "wan", experiment.model.spec, params)
    (out / "statistics.json").write_text(json.dumps(statistics))
    (out / "provenance.json").write_text(json.dumps(
        {"family": config.model.family, "step": 0, "config": provenance.as_json(config)}))
    return out


@pytest.mark.parametrize("name", NAMES)
def test_the_original_computes_what_we_do(name, tmp_path):
    """By the original's own classes, loaded whole: a forward, and requests where it has a policy."""
    export, answers = write_export(name, tmp_path / "export"), GOLDENS / f"original_{name}.npz"
    found = original.check(export, tmp_path, interpreter(tmp_path, f'cp "{answers}" "$work/found.npz"'), 1e-4)
    assert found["passed"] and not found["left"] and not found["otherwise"], found
    sizes = {entry: size for entry, size in found["entries"].items() if not entry.endswith("canvas")}
    assert len(found["entries"]) == {"lingbot_va": 16, "lingbot_vla": 5}.get(name, 1) and 0 < max(sizes.values()) < 2e-5
    with np.load(answers) as file:
        other = {key: file[key] for key in file.files}
    entry = next(key for key in other if key not in ("missing", "unexpected"))
    np.savez(tmp_path / "other.npz", **other | {entry: other[entry] + 0.01, "missing": np.array(["blocks.0.x"])})
    found = original.check(export, tmp_path, interpreter(tmp_path, f'cp "{tmp_path}/other.npz" "$work/found.npz"'), 1e-4)
    assert not found["passed"] and found["left"] == {"missing": ["blocks.0.x"]} and len(found["above"]) == 1


def test_lingbot_va_says_what_its_server_cannot_be_asked(tmp_path, monkeypatch):
    """A robot with a state is checked by passes alone, and the report says so."""
    monkeypatch.setitem(ROBOTS, "lingbot_va", "robotwin_joints")
    export, answers = write_export("lingbot_va", tmp_path / "export"), GOLDENS / "original_lingbot_va.npz"
    found = original.check(export, tmp_path, interpreter(tmp_path, f'cp "{answers}" "$work/found.npz"'), 1e-4)
    assert found["passed"] and all(name.startswith("forward/") for name in found["entries"])
    assert found["otherwise"][0].startswith("no request is compared: its server lays views as")


@pytest.mark.parametrize("vision, queries, said", [("qwen3", 0, "version 2 is in no published package"),
                                                   ("qwen2_5", 4, "makes these at random")])
def test_lingbot_vla_says_what_its_package_cannot_run(vision, queries, said, monkeypatch):
    spec = types.SimpleNamespace(vision=vision, depth_queries=queries)
    monkeypatch.setattr(vla_check, "load", lambda _: (None, spec, {}))
    with pytest.raises(ValueError, match=said):
        vla_check.check(Path(), Path(), "python", None, lambda: None)


def test_a_family_without_an_original_says_so():
    with pytest.raises(MissingPart, match="lingbot_va_mot.* launch.export --check=original"):
        get_family("lingbot_va_mot").part("original", "launch.export --check=original")


if __name__ == "__main__":
    directory = write_export(sys.argv[1], Path("original_export"))
    shim = interpreter(Path(), f'{sys.argv[3]} "$@" && cp "$work/found.npz" {GOLDENS}/original_{sys.argv[1]}.npz')
    print(json.dumps(original.check(directory, sys.argv[2], f"./{shim}", 1e-4), indent=1))
    with np.load(GOLDENS / f"original_{sys.argv[1]}.npz") as answered:
        np.savez_compressed(GOLDENS / f"original_{sys.argv[1]}.npz", **answered)
    shutil.rmtree(directory)
