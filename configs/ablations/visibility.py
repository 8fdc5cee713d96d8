"""Who sees whom inside a block, at laptop scale: mutual (DreamZero), one way, or neither.

    python -m launch.sweep --config=configs/ablations/visibility.py --out=runs/visibility --seeds=0,1,2

Published: action must see video when training from scratch (isolated 87.4, video sees action 87.6, action sees video
92.4, mutual 92.2), mutual after pretraining (OpenWAM, question 4).
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config(arg: str = "") -> ConfigDict:
    """The quickstart, and its arms."""
    return quickstart.get_config(arg)


def get_sweep() -> list[dict]:
    """The base, mutual visibility, first."""
    def one(name):
        return {"name": name, "model.visibility": f"dreamzero_{name}",
                "model.rollout_visibility": f"dreamzero_{name}"}
    return [{"name": "mutual"}, one("action_sees_video"), one("video_sees_action"), one("isolated")]
