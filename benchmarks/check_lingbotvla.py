"""launch.check_policy on LingBot-VLA's published package, whose depth variant is built small and from random weights.

    python -m venv DIR && DIR/bin/pip install torch==2.13.0 transformers==4.51.3 einops safetensors
    DIR/bin/pip install --no-deps rlinf-lingbotvla==0.1.3
    DIR/bin/python -m launch.check_policy benchmarks.check_lingbotvla:adapter --out=DIR

What the package imports and a forward pass does not need is stood in for, as in launch.export --check=original. What
came out is in docs/check_policy.md.
"""

import torch
import torch.nn.functional as F

from launch.policy_check.adapter import Adapter
from world_model.original_side import script

RUN = "world_model/families/lingbot_vla/torch/original_run.py"
LANGUAGE = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2,
                num_hidden_layers=2, vocab_size=256, rope_theta=1e6, tie_word_embeddings=True,
                rope_scaling={"type": "default", "mrope_section": [2, 3, 3], "rope_type": "default"},
                vision_config=dict(depth=2, hidden_size=32, intermediate_size=80, num_heads=2, out_hidden_size=64,
                                   patch_size=4, spatial_patch_size=4, window_size=16, fullatt_block_indexes=[1]))
EXPERT = dict(hidden_size=32, head_dim=16, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
              num_hidden_layers=2, vocab_size=256)
POLICY = dict(n_action_steps=10, chunk_size=10, action_dim=7, max_action_dim=12, max_state_dim=12, num_steps=4,
              tokenizer_max_length=12, loss_type="fm", attention_implementation="eager", use_cache=True,
              freeze_vision_encoder=False, train_expert_only=False, train_state_proj=True, adanorm_time=True,
              old_adanorm=True, post_training=True, vocab_size=256, tokenizer_path="qwen2.5",
              resize_imgs_with_padding=(32, 32))
DEPTH = dict(mode="query", num_task_tokens=2, depth_loss_weight=0.004,
             llm=dict(image_token_size=4, image_input_size=32, dim_out=64),
             depth=dict(token_size=2, input_size=32, model_type="MoRGBD", num_backbone_tokens=4, dim_head=8, dim_out=16,
                        num_layers=1, num_heads=2, ff_mult=1))


def build(language: dict = LANGUAGE, expert: dict = EXPERT, **extra):
    """The published class at small sizes, `extra` beside POLICY."""
    return script(RUN).build(language, expert, {**POLICY, **extra})


def adapter() -> Adapter:
    """Two rows of three views: an episode that ends within the chunk and lacks its last view, and a whole one."""
    torch.manual_seed(7)
    built, rng = build(align_params=DEPTH), torch.Generator().manual_seed(0)
    weights = {name: torch.randn(value.shape, generator=rng) * 0.1 for name, value in built.state_dict().items()}

    def load():
        policy = build(align_params=DEPTH)
        policy.load_state_dict(weights, strict=True)
        return policy.eval()

    view_mask, past_end = torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 10, 1, dtype=torch.bool)
    view_mask[0, -1], past_end[0, 5:] = False, True
    words = torch.arange(12) < torch.tensor([[12], [7]])
    inputs = {"images": torch.randn(2, 3, 64, 96, generator=rng), "view_mask": view_mask, "words": words,
              "text_ids": torch.randint(0, 256, (2, 12), generator=rng), "state": torch.randn(2, 7, generator=rng),
              "actions": torch.randn(2, 10, 7, generator=rng), "past_end": past_end,
              "depth": torch.randn(2, 3, 4, 16, generator=rng)}
    return Adapter("rlinf-lingbotvla 0.1.3, with depth queries", load, inputs, loss, sample, ignored={
        "steps past the end": ("actions", past_end), "masked views": ("images", ~view_mask[..., None, None]),
        "words past the prompt": ("text_ids", ~words)})


def loss(policy, batch, seed):
    """The training loss; noise and time are drawn as the package draws them, by torch's generator."""
    return policy(batch["images"], batch["view_mask"], padded(batch["state"]), batch["text_ids"], batch["words"],
                  padded(batch["actions"]), action_is_pad=batch["past_end"][..., 0],
                  depth_targets=batch["depth"].flatten(0, 1))[0]


def sample(policy, batch, seed):
    """A chunk from noise that belongs to a row's place."""
    noise = torch.stack([torch.randn(10, 12, generator=torch.Generator().manual_seed(seed + row))
                         for row in range(len(batch["state"]))])
    return policy.model.sample_actions(batch["images"], batch["view_mask"], batch["text_ids"], batch["words"],
                                       padded(batch["state"]), noise=noise, num_steps=4)[:, :, :POLICY["action_dim"]]


def padded(values):
    """To the model's slots, with zeros, as its loader does."""
    return F.pad(values, (0, POLICY["max_action_dim"] - values.shape[-1]))
