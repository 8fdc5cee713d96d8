"""LingBot-VLA 4B as released: Qwen2.5-VL-3B and an action expert (4,197,425,739 parameters in 1,555 tensors).

    python -m launch.import_weights --format=lingbot_vla --source=DIR --config=configs/lingbot_vla_4b.py --out=BASE
    python -m launch.train --config=configs/lingbot_vla_4b.py --workdir=RUN --config.train.init_from=BASE
    python -m launch.plan --config=configs/lingbot_vla_4b.py --topology=v5p:4x4x4

Three views of 224 x 224, 64 tokens each; 72 tokens of text; 50 actions in 75 slots. Optimizer as the released
post-training on RoboTwin (its YAML and README, Robbyant/lingbot-vla at 61ef6b1): AdamW 1e-4, (0.9, 0.95), no decay,
clipping at 1, constant rate without warm-up, 256 samples a step, 20,000 steps; L1 error. On real robots the release
takes squared error and 5e-5 (loss.error = "squared"). Steps past an episode's end are masked; the release trains on
them (loss.past_end = "trained"). Planned, not run, on eight
H100: a step of 0.55 to 0.61 s, 48 of 60 GiB a card, 40 to 44% MFU; on eight v5p 1.17 s (0.93 to 1.46), 46 of 95 GiB,
44% (35 to 56) MFU (docs/plans.md).
"""

from ml_collections import ConfigDict

from configs import base

ARMS = ("", "debug")


def get_config(arg: str = "") -> ConfigDict:
    """`debug`: the same parts at a width that a CPU compiles in seconds."""
    if arg not in ARMS:
        raise ValueError(f"configs/lingbot_vla_4b.py:{arg}: arms are {ARMS}")
    c = recipe(base.get_config("lingbot_vla"))
    if arg == "debug":
        debug(c)
        c.model.update(vision_layers=2, vision_window=1, vision_full_layers=(1,))
    return c


def recipe(c: ConfigDict) -> ConfigDict:
    """What both versions have in common."""
    c.mesh.update(data=0, fsdp=0, context=0)
    c.train.update(remat="auto", steps=20_000, global_batch_size=256)
    # Of the last language layer keys and values alone are read: 76 million parameters of the 4B need no moments.
    c.optimizer.trainable = r"^(?!language_final_block\.(self_attn\.(q|o)\.|mlp\.|norm2\.)|language_norm\.)"
    c.optimizer.update(learning_rate=1e-4, b1=0.9, b2=0.95, weight_decay=0.0, clip_norm=1.0, warmup_fraction=0.0,
                       end_fraction=1.0)
    c.evaluate.update(every=1000, rollout_every=5000)
    return c


def debug(c: ConfigDict) -> None:
    """Tiny; prompts are bytes."""
    c.model.update(dim=64, ffn_dim=128, num_layers=3, num_heads=4, kv_heads=2, head_width=16, vocab_size=256,
                   text_length=64, expert_dim=32, expert_ffn_dim=64, views=2, vision_dim=32, vision_ffn_dim=64,
                   vision_heads=2, vision_patch=8, action_dim=32, state_dim=32)
    c.layout.update(height=32, width=32, actions_per_block=8)
    c.encoders.tokens = "bytes"
    c.mesh.update(data=1, fsdp=-1, context=1)
    c.train.update(global_batch_size=8, remat="none")
    c.evaluate.update(every=0, rollout_every=0)
