"""DreamZero-Flash: the last stage of the 14B, in which video stays noisy while actions are denoised in few steps.

    python -m launch.train --config=configs/dreamzero_14b_flash.py --workdir=DIR

Levels of video and action are drawn apart: video 1 - Beta(7, 1), near noise, actions uniform (arXiv 2602.15922,
section 4; the published code's default is Beta(3, 1), switched off). Rollouts leave the video at 0.8 likewise.
Everything else as configs/dreamzero_14b.py, whose slice it needs. The paper names no length for this stage:
10,000 steps are ours, a tenth of the main stage.
"""

from ml_collections import ConfigDict

from configs import dreamzero_14b

ARMS = dreamzero_14b.ARMS


def get_config(arg: str = "") -> ConfigDict:
    """`debug`: as in configs/dreamzero_14b.py."""
    c = dreamzero_14b.get_config(arg)
    c.noise.update(schedule="decoupled", video_alpha=7.0)
    c.evaluate.video_final_sigma = 0.8
    c.train.steps = 10_000
    return c
