"""LingBot-VLA's matrix products (convention: world_model/analysis/flops.py)."""

from world_model.analysis.flops import Parts, frozen, trained
from world_model.families.lingbot_vla.queries import read_tokens
from world_model.families.lingbot_vla.spec import MERGE, LingBotVLASpec
from world_model.families.lingbot_vla.vision import windows


def forward_flops(spec: LingBotVLASpec) -> Parts:
    """The products of one sample, by part."""
    return _vision(spec) | _language(spec) | _teachers(spec) | _expert(spec)


def _vision(spec: LingBotVLASpec) -> Parts:
    d, layers, n = spec.vision_dim, spec.vision_layers, spec.views * spec.patches
    full = len(spec.vision_full_layers) if spec.vision_window else layers
    inside = int(windows(spec, spec.grid).sum())
    pairs = spec.views * (full * spec.patches**2 + (layers - full) * inside)
    linears = 3 if spec.vision == "qwen2_5" else 2  # linears of the MLP
    wide, tokens = MERGE**2 * d, spec.views * spec.view_tokens
    mergers = 1 + len(spec.vision_taps)
    return {"patch_embedding": frozen((n, spec.patch_values, d)),
            "vision_projections": trained((4 * layers * n, d, d)),
            "vision_self_attention": trained((2 * pairs, d, 1)),
            "vision_mlp": trained((linears * layers * n, d, spec.vision_ffn_dim)),
            "vision_mergers": trained((mergers * tokens, wide, wide), (mergers * tokens, wide, spec.dim))}


def _language(spec: LingBotVLASpec) -> Parts:
    """The products of the language model: all layers but the last, of which only keys and values are read."""
    length, layers, d = spec.prefix_tokens, spec.num_layers - 1, spec.dim
    inner, shared = spec.num_heads * spec.head_dim, spec.kv_heads * spec.head_dim
    pairs = length * (length + 1) // 2 if spec.prefix == "causal" else length**2
    queries = trained((spec.queries, 2 * d, d)) if spec.query_tokens else []
    return {"language_projections": trained((2 * layers * length, d, inner), (2 * spec.num_layers * length, d, shared)),
            "language_self_attention": trained((2 * layers * pairs, inner, 1)),
            "language_mlp": trained((3 * layers * length, d, spec.ffn_dim)), "queries": queries}


def _teachers(spec: LingBotVLASpec) -> Parts:
    """What model.teachers add: the last language layer, for the tokens that their heads read, and the heads."""
    if not spec.teachers:
        return {}
    read, d, inner, wide = read_tokens(spec), spec.dim, spec.num_heads * spec.head_dim, spec.teacher_width
    pairs = int((read + 1).sum()) if spec.prefix == "causal" else len(read) * spec.prefix_tokens
    seeds, context = spec.query_seeds, spec.view_tokens + spec.query_tokens
    small = spec.teacher_heads * spec.teacher_head_width
    head = ((context + 3 * seeds, d, d), (4 * seeds + 2 * context, d, small), (2 * seeds * (seeds + context), small, 1),
            (seeds, d, wide))
    return {"last_language_layer": trained((2 * len(read), d, inner), (2 * pairs, inner, 1),
                                           (3 * len(read), d, spec.ffn_dim)),
            "teachers": trained(*((len(spec.teachers) * m, k, n) for m, k, n in head))}


def _expert(spec: LingBotVLASpec) -> Parts:
    actions, d, layers = spec.layout.actions_per_block, spec.expert_dim, spec.num_layers
    count = 1 + actions
    inner, shared = spec.num_heads * spec.head_dim, spec.kv_heads * spec.head_dim
    pairs = spec.prefix_tokens * count + actions * count + 1
    if spec.experts:
        width = 3 * (spec.experts_per_token * spec.routed_ffn_dim + spec.shared_ffn_dim) + spec.experts
    else:
        width = 3 * spec.expert_ffn_dim
    return {"expert_projections": trained((2 * layers * count, d, inner), (2 * layers * count, d, shared)),
            "expert_self_attention": trained((2 * layers * pairs, inner, 1)),
            "expert_mlp": trained((layers * count, d, width)),
            "expert_norms": frozen((4 * layers, d, d)),
            "action_embedding": frozen((actions, spec.action_dim, d), (1, spec.state_dim, d))
            + trained((actions, 2 * d, d), (actions, d, d)),
            "action_head": trained((actions, d, spec.action_dim))}
