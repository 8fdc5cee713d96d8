"""LingBot-VA's and Wan's exports in the originals' hands: what these answered once, and how a wrong one is told.

goldens/original_*.npz hold what the runs told of the exports below on checkouts of Robbyant/lingbot-va at 6f092cb,
Wan-Video/Wan2.1 at 9737cba and Wan-Video/Wan2.2 at 42bf4cf, with PyTorch 2.13 and diffusers 0.42 on a CPU. Again:

    .venv/bin/python -m tests.test_originals NAME CHECKOUT
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import dreamzero_5b, dreamzero_14b
from launch.exporting import original
from launch.setup import provenance
from launch.setup.experiment import Experiment
from tests import tiny_policy
from tests.test_original import interpreter
from world_model.families import get_family
from world_model.families.base.family import MissingPart
from world_model.families.dreamzero.weights import video_formats
from world_model.families.lingbot_va.weights import released_format

GOLDENS = Path(__file__).parent / "goldens"
NAMES = ("lingbot_va", "wan21", "wan22")


def config_of(name: str):
    """Wan's constructor fixes the text's width, LingBot-VA's needs heads of an even third."""
    if name == "lingbot_va":
        config = tiny_policy.config("robotwin_dual_arm", "lingbot_va_debug")
        config.model.update(dim=24, num_heads=1)
        return config
    config = (dreamzero_14b if name == "wan21" else dreamzero_5b).get_config("debug")
    config.model.update(num_layers=2, dim=24, num_heads=1, ffn_dim=32, text_dim=4096, text_length=512, image_dim=1280,
                        image_tokens=257)
    return config


def write_export(name: str, out: Path) -> Path:
    """Weights that are random and always the same, with what goes beside them."""
    config, rng = config_of(name), np.random.default_rng(0)
    experiment = Experiment(config)
    params = {key: (0.2 * rng.normal(size=x.shape) + key.endswith("scale")).astype(np.float32)
              for key, x in sorted(experiment.model.shapes.items())}
    out.mkdir(parents=True)
    if name == "lingbot_va":
        released_format.write(out, experiment.model.spec, params, rollout={"chunk_frames": 2, "window_blocks": 8})
    else:
        video_formats.write(out, "wan", experiment.model.spec, params)
    (out / "statistics.json").write_text("{}")
    (out / "provenance.json").write_text(json.dumps(
        {"family": config.model.family, "step": 0, "config": provenance.as_json(config)}))
    return out


@pytest.mark.parametrize("name", NAMES)
def test_the_original_computes_what_we_do(name, tmp_path):
    """By the original's own classes, loaded whole: a forward, and of LingBot-VA passes over its cache too."""
    export, answers = write_export(name, tmp_path / "export"), GOLDENS / f"original_{name}.npz"
    found = original.check(export, tmp_path, interpreter(tmp_path, f'cp "{answers}" "$5/found.npz"'), 1e-4)
    assert found["passed"] and not found["left"], found
    assert len(found["entries"]) == (8 if name == "lingbot_va" else 1) and max(found["entries"].values()) > 0
    with np.load(answers) as file:
        other = {key: file[key] for key in file.files}
    entry = next(key for key in other if key not in ("missing", "unexpected"))
    np.savez(tmp_path / "other.npz", **other | {entry: other[entry] + 0.01, "missing": np.array(["blocks.0.x"])})
    found = original.check(export, tmp_path, interpreter(tmp_path, f'cp "{tmp_path}/other.npz" "$5/found.npz"'), 1e-4)
    assert not found["passed"] and found["left"] == {"missing": ["blocks.0.x"]} and len(found["above"]) == 1


def test_a_family_without_an_original_says_so():
    with pytest.raises(MissingPart, match="lingbot_va_mot.* launch.export --check=original"):
        get_family("lingbot_va_mot").part("original", "launch.export --check=original")


if __name__ == "__main__":
    directory = write_export(sys.argv[1], Path("original_export"))
    shim = interpreter(Path(), f'{sys.executable} "$@" && cp "$5/found.npz" {GOLDENS}/original_{sys.argv[1]}.npz')
    print(json.dumps(original.check(directory, sys.argv[2], f"./{shim}", 1e-4), indent=1))
    shutil.rmtree(directory)
