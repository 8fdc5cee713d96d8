"""LingBot-VLA 2.0, 6B: Qwen3-VL-4B and an expert whose feed-forward layers are mixtures of 32 experts, 4 a token
(6,375,907,511 values in 1,708 tensors, 84 of them of query tokens and their teachers' heads).

    python -m launch.import_weights --format=lingbot_vla_v2 --source=DIR --config=configs/lingbot_vla_v2_6b.py \
        --out=BASE
    python -m launch.train --config=configs/lingbot_vla_v2_6b.py --workdir=RUN --config.train.init_from=BASE
    python -m launch.plan --config=configs/lingbot_vla_v2_6b.py --topology=v5p:4x4x4

Three views of 256 x 256, 64 tokens each between two markers; 72 tokens of text in a chat's turn; 8 query tokens for the
present and 8 for the future, with which the release was trained and which it cannot act without; 50 actions in 55
slots. Where there are features of its teachers, model.teachers names them, `features` of a dataset says where they lie
(docs/data.md), and optimizer.trainable = ".*" lets the last language layer learn. The schedule is that of the released
RoboTwin post-training (Robbyant/lingbot-vla-v2 at 36a9bab): 1,024 samples a step, 50,000 steps, 1e-4 to 5e-5 along a
cosine, L1 error; with AdamW here, with the release's Muon in configs/recipes/robotwin_lingbot_vla.py:v2. Planned, not
run: on 32 v5p 1.24 s (0.98 to 1.55), 45% (36 to 56) MFU; on eight H100 3.3 to 4.0 s, 26 to 31% MFU (docs/plans.md).
"""

from ml_collections import ConfigDict

from configs import base, lingbot_vla_4b

ARMS = ("", "debug")


def get_config(arg: str = "") -> ConfigDict:
    """`debug`: the same parts but for queries, at a width that a CPU compiles in seconds."""
    if arg not in ARMS:
        raise ValueError(f"configs/lingbot_vla_v2_6b.py:{arg}: arms are {ARMS}")
    c = lingbot_vla_4b.recipe(base.get_config("lingbot_vla"))
    c.model.update(dim=2560, ffn_dim=9728, num_heads=32, kv_heads=8, qkv_bias=False, qk_norm=True, rope_theta=5e6,
                   rope_sections=(24, 20, 20), prefix="causal", view_markers=(151_652, 151_653),
                   prompt="<|im_start|>user\n{}<|im_end|>\n", experts=32, action_dim=55, state_dim=55)
    c.model.update(vision="qwen3", vision_dim=1024, vision_ffn_dim=4096, vision_layers=24, vision_patch=16,
                   vision_window=0, vision_full_layers=(), vision_taps=(5, 11, 17), vision_positions=48, query_tokens=8)
    c.layout.update(height=256, width=256)
    c.train.update(steps=50_000, global_batch_size=1024)
    c.optimizer.end_fraction = 0.5
    if arg == "debug":
        lingbot_vla_4b.debug(c)
        c.model.update(rope_sections=(4, 2, 2), view_markers=(1, 2), experts=4, experts_per_token=2, routed_ffn_dim=16,
                       shared_ffn_dim=24, num_layers=4, vision_layers=3, vision_taps=(0, 1, 2), vision_positions=3,
                       query_tokens=0)
    return c
