"""Optimizers and schedules at laptop scale, at equal compute: as many steps of as many samples.

    python -m launch.sweep --config=configs/ablations/optimizers.py --out=runs/optimizers --seeds=0,1,2

The base is the quickstart's AdamW. Muon's directions have AdamW's size (arXiv 2502.16982), so that rate and decay are
the same; Lion takes a tenth of the rate and ten times the decay (arXiv 2302.06675, section 5); Adafactor has momentum
and AdamW's rate (arXiv 2106.04560, section 3.4). Not run yet: expected is what it is there to find out.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config(arg: str = "") -> ConfigDict:
    """The quickstart, and its arms."""
    return quickstart.get_config(arg)


def get_sweep() -> list[dict]:
    """The base first. Adafactor reads no b2, which then stands at its default."""
    return [{"name": "adamw"}, {"name": "muon", "optimizer.name": "muon", "optimizer.b1": 0.95},
            {"name": "adafactor", "optimizer.name": "adafactor", "optimizer.b2": 0.999},
            {"name": "lion", "optimizer.name": "lion", "optimizer.learning_rate": 3e-4, "optimizer.weight_decay": 1e-1},
            {"name": "wsd", "optimizer.schedule": "wsd"},
            {"name": "bfloat16_moments", "optimizer.moments_dtype": "bfloat16"},
            {"name": "power_average", "optimizer.ema_decay": 6.94}]
