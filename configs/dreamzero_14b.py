"""DreamZero 14B: the causal Wan2.1-I2V-14B backbone with action heads, pretrained with AdamW.

    python -m launch.plan --config=configs/dreamzero_14b.py --topology=v5p:4x4x4

880 tokens per frame, 9 latent frames (1 + 4 blocks of 2), 24 actions and 1 state per block. Batches hold precomputed
latents and features: the frozen encoders are not part of the step. Sizes and loss: the published code
(dreamzero0/dreamzero, ab790c1). Planned, not run, on 64 v5p chips: at batch 64 a step of
3.59 s (2.84 to 4.49) and 81.5 of 95 GiB a chip, 73% (58 to 92) MFU; at 128 7.50 s (5.93 to 9.38) and
84.7 GiB, 70% (56 to 88) (docs/plans.md). Global batch 128 and
100,000 steps: arXiv 2602.15922, section 4. Learning rate, betas, decay and warm-up: the published training scripts
(1e-5, 0.95 / 0.999, 1e-5, 5%); the paper names none.
"""

from ml_collections import ConfigDict

from configs import base

ARMS = ("", "debug")


def get_config(arg: str = "") -> ConfigDict:
    """`debug`: the same blocks and tokens at a width that a CPU compiles in seconds."""
    if arg not in ARMS:
        raise ValueError(f"configs/dreamzero_14b.py:{arg}: arms are {ARMS}")
    c = base.get_config()
    c.encoders.update(video="wan21_latents", text="features")
    c.model.attention = "flash"
    c.mesh.update(data=0, fsdp=0, context=0)
    c.train.update(remat="auto")
    c.evaluate.update(every=1000, rollout_every=5000)
    if arg == "debug":
        c.model.update(dim=64, ffn_dim=128, num_heads=4, num_layers=3, freq_dim=32, text_dim=32, text_length=8,
                       image_dim=16, image_tokens=5, action_hidden_dim=32)
        c.layout.update(height=64, width=64)
        c.model.attention = "blockwise"
        c.train.update(global_batch_size=8, remat="full")
        c.evaluate.update(every=0, rollout_every=0)
    return c
