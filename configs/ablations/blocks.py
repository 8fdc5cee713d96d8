"""Latent frames per block, at laptop scale: one, two (DreamZero), or all at once, which is bidirectional.

    python -m launch.sweep --config=configs/ablations/blocks.py --out=runs/blocks --seeds=0,1,2

Published: two are better than one; bidirectional and autoregressive solve equally many tasks, the latter smoother and
three to four times faster (DreamZero, arXiv 2602.15922, table 4 and section 5). Actions keep their rate.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config(arg: str = "") -> ConfigDict:
    """The quickstart, and its arms."""
    return quickstart.get_config(arg)


def get_sweep() -> list[dict]:
    """The base, two frames, first."""
    return [{"name": "two"},
            {"name": "one", "layout.frames_per_block": 1, "layout.actions_per_block": 8, "model.window_blocks": 4},
            {"name": "bidirectional", "layout.frames_per_block": 4, "layout.actions_per_block": 32,
             "model.window_blocks": 1}]
