"""DreamZero 5B: the causal Wan2.2-TI2V-5B backbone with action heads.

    python -m launch.plan --config=configs/dreamzero_5b.py --topology=v5p:2x2x4

50 tokens per frame: 160 x 320 pixels, stride 16 codec with 48 channels, no first frame joined on channels. Optimizer
and schedule as configs/dreamzero_14b.py, from which this differs by the backbone alone. Planned, not run, on 16 v5p
chips at batch 16: a step of 0.204 s (0.161 to 0.255), 9.7 of 95 GiB a chip, 29% (23 to 36)
MFU (docs/plans.md).
"""

from ml_collections import ConfigDict

from configs import dreamzero_14b

ARMS = ("", "debug")


def get_config(arg: str = "") -> ConfigDict:
    """`debug`: as in configs/dreamzero_14b.py."""
    c = dreamzero_14b.get_config(arg)
    c.encoders.video = "wan22_latents"
    c.model.update(latent_channels=48, concat_first_frame=False)
    c.layout.update(height=160, width=320)
    if arg != "debug":
        c.model.update(dim=3072, ffn_dim=14336, num_heads=24, num_layers=30)
    return c
