"""LingBot-VLA's config keys, with units and the defaults of version 1, the 4B on Qwen2.5-VL."""

from typing import Any

CONFIG: dict[str, dict[str, Any]] = {
    "model": {
        "dim": 2048,  # D of the language model, as are the next three
        "ffn_dim": 11008,  # hidden width of its gated MLP
        "num_layers": 36,  # also the action expert's
        "num_heads": 16,  # heads of queries; also the action expert's
        "kv_heads": 2,  # heads of keys and values; also the action expert's
        "head_width": 128,  # d, of both streams
        "qkv_bias": True,  # whether its queries, keys and values have one
        "qk_norm": False,  # whether each head's queries and keys are normalised
        "vocab_size": 151_936,  # rows of its token embedding
        "rope_theta": 1e4,  # base of the rotary frequencies (the published model does not use Qwen's own)
        "rope_sections": (),  # frequencies of time, row and column; empty: one position on a line
        "expert_dim": 768,  # D of the action expert
        "expert_ffn_dim": 2752,  # hidden width of its gated MLP, where that is dense
        "experts": 0,  # routed experts of each feed-forward layer; 0: it is dense, expert_ffn_dim wide
        "experts_per_token": 4,  # k, of the routed ones
        "routed_ffn_dim": 512,  # hidden width of a routed expert
        "shared_ffn_dim": 704,  # hidden width of the one that all tokens share
        "routed_scale": 4.0,  # what the weights of a token's experts add up to
        "views": 3,  # V, cameras; a robot may have fewer
        "text_length": 72,  # tokens of a prompt
        "prompt": "<bos>{}\n",  # around the instruction
        "prefix": "joint",  # joint: its tokens all see each other | causal: each sees those before it
        "view_markers": (),  # ids of the tokens before and after a view's; empty: none
        "depth_queries": 0,  # depth queries of each view, between views and text; they see their view and each other
        "depth_queries_learned": True,  # False: random for ever, as released
        "query_tokens": 0,  # Q behind the text for the present and Q for the future
        "query_seeds": 256,  # learned vectors whose averages are a kind's queries, or the depth queries
        "actions_see_future": True,  # whether state and actions see the queries for the future
        "teachers": (),  # those whose features batches have: current_depth, future_depth, current_video, future_video
        "teacher_width": 1024,  # width of a teacher's features
        "vision": "qwen2_5",  # the tower: qwen2_5 | qwen3
        "vision_dim": 1280,  # its D
        "vision_ffn_dim": 3420,  # hidden width of its MLP
        "vision_heads": 16,  # heads of its attention
        "vision_layers": 32,  # layers of its stack
        "vision_patch": 14,  # pixels; a token is 2 x 2 patches
        "vision_window": 4,  # tokens along a window's side; 0: no windows
        "vision_full_layers": (7, 15, 23, 31),  # layers that see beyond their window
        "vision_taps": (),  # layers whose output is added after the first layers of the language model
        "vision_positions": 0,  # side of the square of learned positions; 0: rotary ones alone
        "lora_rank": 0,  # rank of adapters (train.init_from has their base); 0 = none
        "lora_alpha": 16.0,  # an adapter counts alpha / rank
        "lora_stacks": ("language",),  # stacks whose layers get adapters: vision, language, expert
        "lora_pattern": r"self_attn\.[qkvo]$|mlp\.(gate|fc1|fc2)$",  # linears of such a layer that get one
        "action_dim": 75,  # slots
        "state_dim": 75,  # slots
    },
    "layout": {"height": 224, "width": 224, "actions_per_block": 50},
    "encoders": {
        "tokens": "tokenizer",  # a prompt's tokens: by encoders.tokenizer | bytes: its UTF-8, for small experiments
        "tokenizer": "",  # local tokenizer.json of Qwen
    },
    "noise": {
        "times": "pseudo_beta",  # pseudo_beta, as the published code samples | beta: Beta(1.5, 1) | uniform
    },
    "loss": {
        "error": "l1",  # l1 | squared
        "past_end": "masked",  # steps past an episode's end: masked | trained, on the last action, as published
        "balance_weight": 1e-3,  # weight of the routers' balance losses, where there are experts
        "z_weight": 1e-4,  # weight of the mean square of their logits' log-sum-exp
        "bias_speed": 0.0,  # how far a step moves the routers' choice towards experts with less than the mean load
        "bias_centred": False,  # whether the mean of a router's biases stays 0
        "teacher_weight": 0.004,  # weight of each teacher's error
    },
    "evaluate": {
        "solver_steps": 10,  # Euler steps of a chunk
    },
}
