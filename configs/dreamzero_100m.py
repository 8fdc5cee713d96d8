"""DreamZero at about 100M, for one accelerator: what an ablation costs hours for, not days.

    python -m launch.train --config=configs/dreamzero_100m.py --workdir=DIR

As configs/dreamzero_1b.py, 640 wide with 10 layers; heads stay 128 wide, as in every Wan. Learning rate: ours, not
measured yet.
"""

from ml_collections import ConfigDict

from configs import dreamzero_1b

ARMS = dreamzero_1b.ARMS


def get_config(arg: str = "") -> ConfigDict:
    """`debug`: as in configs/dreamzero_14b.py."""
    c = dreamzero_1b.get_config(arg)
    if arg != "debug":
        c.model.update(dim=640, ffn_dim=3584, num_heads=5, num_layers=10)
    c.optimizer.learning_rate = 3e-4
    return c
