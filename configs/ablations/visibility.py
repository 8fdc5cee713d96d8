"""Who sees whom inside a block: mutual (DreamZero), one way, or neither.

    (recordings, latents and pretrained weights: configs/ablations/joint.py)
    python -m launch.sweep --config=configs/ablations/visibility.py --out=runs/visibility --lock
    python -m launch.sweep --config=configs/ablations/visibility.py --out=runs/visibility

Published: action must see video when training from scratch (isolated 87.4, video sees action 87.6, action sees video
92.4, mutual 92.2), mutual after pretraining (OpenWAM, question 4). The first arm is the joint one of
configs/ablations/joint.py. Measured: docs/results.md.
"""

from ml_collections import ConfigDict

from configs.ablations import joint


def get_config(arg: str = "") -> ConfigDict:
    """The joint model."""
    return joint.get_config(arg)


def get_sweep() -> list[dict]:
    """The base, mutual visibility, first."""
    def one(name):
        return {"name": name, "model.visibility": f"dreamzero_{name}",
                "model.rollout_visibility": f"dreamzero_{name}"}
    return [{"name": "joint"}, one("action_sees_video"), one("video_sees_action"), one("isolated")]


def get_rollouts() -> dict[str, list[str]]:
    """Success on starts that are the same for all."""
    return joint.get_rollouts()


def get_study() -> dict:
    """Locked by --lock before the first run."""
    return {"question": "Does a narrower visibility beat the mutual one?", "primary": "solved, drawer",
            "smallest_effect": 0.08, "seeds": joint.SEEDS[:4]}
