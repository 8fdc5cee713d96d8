"""Meta-World's push as a world: imagined video obeys the commands that it is given.

    python -m launch.record_tabletop --task=push-v3 --out=.cache/tabletop/push-v3 --parts=wander
    python -m launch.train --config=configs/world.py --workdir=runs/world
    python -m launch.imagine --workdir=runs/world --task=push-v3 --solver_steps=4
    python -m launch.imagine --workdir=runs/world --task=push-v3 --policies=expert,expert:1,expert:2,...

The model of configs/metaworld.py with two blocks, wider; every block is predicted from its commands (forward dynamics),
of which none are learned. What an expert does can be told from the picture, so these are episodes of an arm that
wanders. Ten minutes of a shared core; right choices to expect: 93% (docs/results.md).
"""

from ml_collections import ConfigDict

from configs import metaworld, tabletop


def get_config(arg: str = "") -> ConfigDict:
    """`debug`: a tiny model for a few steps."""
    if arg not in ("", "debug"):
        raise ValueError(f"configs/world.py:{arg}: the only arm is 'debug'")
    c = metaworld.get_config(arg)
    c.data.datasets = ConfigDict({"wander": tabletop.recorded("push-v3", "wander")})
    c.model.window_blocks = 2
    c.layout.frames = 17
    c.noise.forward_dynamics = 1.0
    if not arg:
        c.model.update(dim=128, ffn_dim=512)
        c.train.update(steps=4000, global_batch_size=8)
    return c
