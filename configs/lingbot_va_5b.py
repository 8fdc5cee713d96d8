"""LingBot-VA 5B as released: one stack for video and actions (5,088,872,670 parameters in 839 tensors).

    python -m launch.plan --config=configs/lingbot_va_5b.py --topology=v5p:4x4x4

Batches hold precomputed latents and features (stride 16, 48 channels): a head camera of 256 x 320 pixels under two
wrist cameras of half that size, 120 tokens and 16 actions per latent frame; of 30 action channels a robot uses its
own. Optimizer as the released post-training: AdamW 1e-5, (0.9, 0.95), decay 0.1, clipping at 2, 10 steps of warm-up,
then constant. Sources with stored features leave prompts out themselves. Global batch 64: the maintainers' advice, in
issue 27 of their repository (Robbyant/lingbot-va). Planned, not run, on 64 v5p chips: a step of
0.301 s (0.237 to 0.376), 9.4 of 95 GiB a chip, 49% (39 to 62) MFU (docs/plans.md).
"""

from ml_collections import ConfigDict

from configs import base

ARMS = ("", "debug")


def get_config(arg: str = "") -> ConfigDict:
    """`debug`: the same blocks and tokens at a width that a CPU compiles in seconds."""
    if arg not in ARMS:
        raise ValueError(f"configs/lingbot_va_5b.py:{arg}: arms are {ARMS}")
    return shape(base.get_config("lingbot_va"), arg)


def shape(c: ConfigDict, arg: str) -> ConfigDict:
    """What both variants have in common."""
    c.layout.update(frames=33, height=384, width=320)
    c.encoders.update(video="wan22_latents", text="features")
    c.noise.text_dropout = 0.0
    c.model.attention = "flash"
    c.mesh.update(data=0, fsdp=0, context=0)
    c.train.update(remat="auto", steps=50_000, global_batch_size=64)
    c.optimizer.update(learning_rate=1e-5, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=2.0, warmup_fraction=2e-4,
                       end_fraction=1.0)
    c.evaluate.update(solver_steps=25, action_steps=50, guidance=5.0, window_blocks=72, every=1000, rollout_every=5000)
    if arg == "debug":
        c.model.update(dim=96, ffn_dim=128, num_heads=4, num_layers=3, freq_dim=32, text_dim=32, text_length=8)
        c.layout.update(height=64, width=64, frames=17)
        c.model.attention = "blockwise"
        c.train.update(global_batch_size=8, remat="full")
        c.evaluate.update(every=0, rollout_every=0)
    return c
