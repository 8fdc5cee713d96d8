"""LingBot-VA as its paper has it: a 768-wide action stream beside the 3072-wide video stream, joined in attention.

    python -m launch.plan --config=configs/lingbot_va_mot_5b.py --topology=v5p:4x4x4

The action stream starts as the video stream, interpolated and scaled; `--config.model.action_init=unscaled` and
`random` are the paper's worse and unstable starts (Fig. 7), configs/lingbot_va_5b.py its shared weights. Sizes within
the stream are ours, as the paper tells its width alone: 5,527,886,814 parameters in all, where the paper says 5.3B.
Everything else is that of configs/lingbot_va_5b.py.
"""

from ml_collections import ConfigDict

from configs import base, lingbot_va_5b

ARMS = lingbot_va_5b.ARMS


def get_config(arg: str = "") -> ConfigDict:
    """`debug`: as in configs/lingbot_va_5b.py."""
    if arg not in ARMS:
        raise ValueError(f"configs/lingbot_va_mot_5b.py:{arg}: arms are {ARMS}")
    c = lingbot_va_5b.shape(base.get_config("lingbot_va_mot"), arg)
    if arg == "debug":
        c.model.update(action_stream_dim=48, action_ffn_dim=64)
    return c
