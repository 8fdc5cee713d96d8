"""Sizes of the models in LingBot-VLA's files of reference numbers."""

from world_model import kinds
from world_model.batch import Layout
from world_model.families.lingbot_vla.config import CONFIG
from world_model.families.lingbot_vla.spec import MERGE, LingBotVLASpec


def spec_of(config: dict, seeds: int, queries: bool) -> LingBotVLASpec:
    """The model of a file's cfg_json; seeds: how many there are of a kind of query."""
    sizes = _version_2(config, seeds, queries) if "case" in config else _version_1(config)
    return LingBotVLASpec(**kinds.plain(CONFIG["model"]) | sizes | {"remat": "none", "views": 3})


def _common(vlm: dict, vision: dict, policy: dict, side: int) -> dict:
    pixels = side * vision["patch_size"]
    return {"layout": Layout(1, pixels, pixels, 1, policy["chunk_size"], 1, 1), "dim": vlm["hidden_size"],
            "ffn_dim": vlm["intermediate_size"], "num_heads": vlm["num_attention_heads"],
            "kv_heads": vlm["num_key_value_heads"], "num_layers": vlm["num_hidden_layers"],
            "vocab_size": vlm["vocab_size"], "action_dim": policy["max_action_dim"],
            "state_dim": policy["max_state_dim"], "vision_dim": vision["hidden_size"],
            "vision_ffn_dim": vision["intermediate_size"], "vision_heads": vision["num_heads"],
            "vision_layers": vision["depth"], "vision_patch": vision["patch_size"]}


def _version_1(config: dict) -> dict:
    vlm, expert = config["vlm"], config["expert"]
    vision = vlm["vision_config"]
    return _common(vlm, vision, config["policy"], config["grid"]) | {
        "head_width": expert["head_dim"], "expert_dim": expert["hidden_size"],
        "expert_ffn_dim": expert["intermediate_size"], "text_length": config["text_len"],
        "vision_window": vision["window_size"] // vision["patch_size"] // MERGE,
        "vision_full_layers": vision["fullatt_block_indexes"]}


def _version_2(config: dict, seeds: int, queries: bool) -> dict:
    vlm, vision = config["vlm"]["text_config"], config["vlm"]["vision_config"]
    policy, case, align = config["policy"], config["case"], config["align"]
    head = align["depth"]
    found = _common(vlm, vision, policy, case["grid"][0]) | {
        "head_width": vlm["head_dim"], "qkv_bias": False, "qk_norm": True, "rope_theta": vlm["rope_theta"],
        "rope_sections": vlm["rope_scaling"]["mrope_section"], "prefix": "causal", "text_length": case["text"],
        "view_markers": (config["vlm"]["vision_start_token_id"], config["vlm"]["vision_end_token_id"]),
        "expert_dim": policy["expert_hidden_size"], "experts": policy["token_num_experts"],
        "experts_per_token": policy["token_top_k"], "routed_ffn_dim": policy["token_moe_intermediate_size"],
        "shared_ffn_dim": policy["token_shared_intermediate_size"], "routed_scale": policy["routed_scaling_factor"],
        "vision": "qwen3", "vision_window": 0, "vision_full_layers": (),
        "vision_taps": vision["deepstack_visual_indexes"],
        "vision_positions": round(vision["num_position_embeddings"] ** 0.5)}
    if queries:
        found |= {"query_tokens": align["num_task_tokens"], "query_seeds": seeds, "teacher_width": head["dim_out"],
                  "teacher_heads": head["num_heads"], "teacher_head_width": head["dim_head"],
                  "teachers": ("current_depth", "future_depth", "current_video", "future_video")}
    return found
