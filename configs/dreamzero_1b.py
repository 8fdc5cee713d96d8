"""DreamZero at about 1B, for one accelerator: the width and depth of Wan2.1-T2V-1.3B, the shape of the 5B's clips.

    python -m launch.plan --config=configs/dreamzero_1b.py --topology=v5p:2x2x1

1.6B parameters with the action heads and the image branch, 50 tokens per frame (160 x 320 pixels, Wan2.2 latents).
Sizes: the published Wan2.1 1.3B (1536 wide, 30 layers, 12 heads, MLP 8960). Batch 32: the paper's ablations (arXiv
2602.15922, section 5). The learning rate, ten times that of the 14B, is ours and not measured yet. Planned, not
run, on 4 v5p chips: a step of 0.419 s (0.331 to 0.524), 19.6 of 95 GiB a chip, 33% (26 to 41) MFU.
"""

from ml_collections import ConfigDict

from configs import dreamzero_5b

ARMS = dreamzero_5b.ARMS


def get_config(arg: str = "") -> ConfigDict:
    """`debug`: as in configs/dreamzero_14b.py."""
    c = dreamzero_5b.get_config(arg)
    if arg != "debug":
        c.model.update(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
        c.train.global_batch_size = 32
    c.optimizer.learning_rate = 1e-4
    return c
