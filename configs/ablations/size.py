"""Width and depth at laptop scale, standing in for 14B against 5B.

    python -m launch.sweep --config=configs/ablations/size.py --out=runs/size --seeds=0,1,2

Published: 14B 50 +- 6.3, 5B 21 +- 4.2 (DreamZero, arXiv 2602.15922, table 4). Compared at equal steps; the table of
results shows the cost of each.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config(arg: str = "") -> ConfigDict:
    """The quickstart, and its arms."""
    return quickstart.get_config(arg)


def get_sweep() -> list[dict]:
    """The base first."""
    return [{"name": "base"}, {"name": "half", "model.dim": 64, "model.ffn_dim": 256, "model.num_heads": 1},
            {"name": "shallow", "model.num_layers": 2}]
