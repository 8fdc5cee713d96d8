"""A tiny model with random weights, as a checkpoint on disk: what serving and rollouts are tested on.

Weights are spread out, so that every output depends on every input (a fresh model's heads are nearly zero).
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from configs import quickstart
from data_pipelines.robots.embodiments import EMBODIMENTS, Dimension, Embodiment, get_embodiment, register
from data_pipelines.statistics.stored import statistics_hash
from data_pipelines.statistics.summary import Summary
from launch.setup.experiment import Experiment
from launch.setup.provenance import as_json
from world_model.encoders import patch_pca
from world_model.training import checkpoint
from world_model.training.checkpoint_writer import Checkpoints

DROID = "test_droid"  # three cameras, seven joints and a gripper
if DROID not in EMBODIMENTS:
    names = [*(f"joint_{i}" for i in range(7)), "gripper"]
    register(Embodiment(
        name=DROID, id=990, views=("exterior_1", "exterior_2", "wrist"), view_layout="side_by_side", rate=15.0,
        state=tuple(Dimension(name, i) for i, name in enumerate(names)),
        action=tuple(Dimension(name, i, relative_to=name if i < 7 else None) for i, name in enumerate(names))))


def config(embodiment: str = "pusht", arm: str = "debug"):
    """Two blocks after the first frame, 32 pixels high."""
    c = quickstart.get_config(arm)
    c.layout.update(frames=9, height=32, width=32, frames_per_block=1, actions_per_block=4)
    if embodiment == DROID:
        c.layout.update(width=96, actions_per_block=24)
    if get_embodiment(embodiment).view_layout == "t_shape":
        c.layout.height = 48
    c.data.datasets.pusht.embodiment = embodiment
    c.train.remat = "none"
    return c


def write(workdir: Path, embodiment: str = "pusht", arm: str = "debug") -> Path:
    """A checkpoint of step 1 in `workdir`, of an arm of configs/quickstart.py."""
    c = config(embodiment, arm)
    c.model.attention = "flash"  # as if trained on a TPU
    return write_config(workdir, c, embodiment)


def write_config(workdir: Path, c, embodiment: str) -> Path:
    """A checkpoint of step 1 of that config's model, for that robot."""
    robot, rng = get_embodiment(embodiment), np.random.default_rng(0)
    statistics = {"toy": {"dataset": "toy", "embodiment": robot.name, "skipped": {}, "episodes": 1,
                          "actions_per_block": c.layout.actions_per_block,
                          "state": _summary(rng.uniform(100, 400, (50, len(robot.state)))) if robot.state else None,
                          "action": _summary(rng.uniform(100, 400, (50, len(robot.action))))}}
    clips = np.kron(rng.integers(0, 255, (8, 9, 4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    frozen = {"video": patch_pca.fit(clips, c.model.latent_channels), "text": {}} if "video" in c.encoders else {}
    state = {"params": _weights(Experiment(c).model.shapes, rng), "step": jnp.int32(1)}
    meta = checkpoint.make_meta(state, frozen, family=c.model.family, config=as_json(c),
                                statistics=statistics, statistics_hash=statistics_hash(statistics), code_version="")
    writer = Checkpoints(workdir / "checkpoints", keep_last=1)
    writer.save(1, state, data={}, meta=meta, frozen=frozen)
    writer.close()
    return workdir


def _weights(shapes: dict, rng: np.random.Generator) -> dict:
    """Scales near 1, everything else normal; kernels keep the size of what passes through."""
    def draw(shape, std):
        return jnp.asarray(std * rng.normal(size=shape), jnp.float32)

    return {name: 1 + draw(x.shape, 0.1) if name.endswith("scale") else
            draw(x.shape, x.shape[-2] ** -0.5) if name.endswith("kernel") else draw(x.shape, 0.1)
            for name, x in sorted(shapes.items())}


def _summary(values: np.ndarray) -> dict:
    summary = Summary()
    summary.update(values)
    return summary.result()
