"""LingBot-VLA's names: the 1555 tensors of version 1 (Robbyant/lingbot-vla at 61ef6b1), and of version 2
(Robbyant/lingbot-vla-v2 at 36a9bab) the 1624 of the action path and the 84 of query tokens and their teachers' heads.
The vision-language models are called as in transformers."""

from world_model.families.lingbot_vla.spec import HEADS
from world_model.weights.names import Modules, NameTable, OptionalModules, StackTable

VLM, EXPERT = "qwenvl_with_expert.qwenvl.", "qwenvl_with_expert.qwen_expert.model."
PREFIXES = {  # prefixes of the vision tower and the language model, by the tower's name
    "qwen2_5": (f"{VLM}visual.", f"{VLM}model."), "qwen3": (f"{VLM}model.visual.", f"{VLM}model.language_model.")}

ACTION_MODULES: Modules = (  # published, native, kind
    ("state_proj", "state_embedding", "linear"),
    ("action_in_proj", "action_embedding", "linear"),
    ("action_time_mlp_in", "time_fc1", "linear"),
    ("action_time_mlp_out", "time_fc2", "linear"),
    ("action_out_proj", "action_head", "linear"),
    (f"{EXPERT}norm", "expert_norm", "norm"),
)
GATED_MLP = (("mlp.gate_proj", "mlp.gate"), ("mlp.up_proj", "mlp.fc1"), ("mlp.down_proj", "mlp.fc2"))
NORMS = (("input_layernorm", "norm1"), ("post_attention_layernorm", "norm2"))
ROUTED_MLP: Modules = (
    ("mlp.gate", "mlp.router", "transposed"),
    ("mlp.e_score_correction_bias", "mlp.router_bias", "array"),
    *((f"mlp.experts.{published}", f"mlp.experts_{native}", "expert_matrices")
      for published, native in (("gate_proj", "gate"), ("up_proj", "fc1"), ("down_proj", "fc2"))),
    *((published.replace("mlp.", "mlp.shared_expert."), native.replace("mlp.", "mlp.shared."), "matrix")
      for published, native in GATED_MLP),
)


def attention(bias: bool) -> Modules:
    """Projections of a stream."""
    return (*((f"self_attn.{part}_proj", f"self_attn.{part}", "linear" if bias else "matrix") for part in "qkv"),
            ("self_attn.o_proj", "self_attn.o", "matrix"))


def vision(prefix: str, modules: Modules, layer: Modules) -> tuple[Modules, StackTable]:
    """(modules outside the stack, the stack) of a tower below the published `prefix`."""
    stack = StackTable(f"{prefix}blocks.{{i}}.", "vision.blocks.", (
        ("attn.qkv", "self_attn.qkv", "linear"), ("attn.proj", "self_attn.o", "linear"), *layer))
    return tuple((prefix + published, f"vision.{native}", kind) for published, native, kind in modules), stack


def language(prefix: str, bias: bool, head_norms: bool) -> tuple[Modules, StackTable]:
    """(modules outside the stack, the stack) of a language model below the published `prefix`."""
    norms = (("self_attn.q_norm", "self_attn.q_norm", "norm"), ("self_attn.k_norm", "self_attn.k_norm", "norm"))
    layer = (*attention(bias), *(norms if head_norms else ()), *((a, b, "matrix") for a, b in GATED_MLP),
             *((a, b, "norm") for a, b in NORMS))
    return ((f"{prefix}embed_tokens", "token_embedding", "embedding"), (f"{prefix}norm", "language_norm", "norm")), \
        StackTable(f"{prefix}layers.{{i}}.", "language_blocks.", layer, last="language_final_block.")


def expert(mlp: Modules) -> StackTable:
    """The action expert's stack."""
    norms = tuple(module for a, b in NORMS for module in (
        (a, f"{b}.norm", "norm"), (f"{a}.gamma", f"{b}.gamma", "linear"), (f"{a}.beta", f"{b}.beta", "linear")))
    return StackTable(f"{EXPERT}layers.{{i}}.", "expert_blocks.", (*attention(True), *mlp, *norms))


def qwen2_5(visual: str, model: str) -> tuple[Modules, tuple[StackTable, ...]]:
    """A Qwen2.5-VL whose parts are published below these prefixes."""
    tower, layers = vision(visual, (
        ("patch_embed.proj", "patch_embedding", "video_patch"), ("merger.ln_q", "merger.norm", "norm"),
        ("merger.mlp.0", "merger.mlp.fc1", "linear"), ("merger.mlp.2", "merger.mlp.fc2", "linear")),
        (("norm1", "norm1", "norm"), ("norm2", "norm2", "norm"), *((a, b, "linear") for a, b in GATED_MLP)))
    words, language_layers = language(model, True, False)
    return tower + words, (layers, language_layers)


def qwen3(visual: str, model: str) -> tuple[Modules, tuple[StackTable, ...]]:
    """A Qwen3-VL, likewise."""
    def merger(published: str, native: str) -> Modules:
        return ((f"{published}.norm", f"{native}.norm", "layer_norm"),
                *((f"{published}.linear_fc{i}", f"{native}.mlp.fc{i}", "linear") for i in (1, 2)))

    tower, layers = vision(visual, (
        ("patch_embed.proj", "patch_embedding", "biased_video_patch"),
        ("pos_embed", "position_embedding", "embedding"), *merger("merger", "merger"),
        *(module for i in range(3) for module in merger(f"deepstack_merger_list.{i}", f"tap_merger_{i}"))),
        (("norm1", "norm1", "layer_norm"), ("norm2", "norm2", "layer_norm"),
         *((f"mlp.linear_fc{i}", f"mlp.fc{i}", "linear") for i in (1, 2))))
    words, language_layers = language(model, False, True)
    return tower + words, (layers, language_layers)


HEAD_MODULES: Modules = (
    ("proj_in1", "latents", "linear"), ("proj_in2", "context", "linear"),
    ("layers.0.0.norm1", "context_norm", "layer_norm"), ("layers.0.0.norm2", "latents_norm", "layer_norm"),
    ("layers.0.0.to_q", "q", "matrix"), ("layers.0.0.to_kv", "kv", "matrix"), ("layers.0.0.to_out", "o", "matrix"),
    ("layers.0.1.0", "mlp_norm", "layer_norm"), ("layers.0.1.1", "fc1", "matrix"), ("layers.0.1.3", "fc2", "matrix"),
    ("proj_out", "features", "linear"), ("norm_out", "features_norm", "layer_norm"),
)
PUBLISHED_HEADS = {name: name.replace("current_depth", "depth") + "_align" for name in HEADS}
QUERY_MODULES: Modules = (
    *((f"{published}_embs", f"queries.{native}_seeds", "array") for native, published in PUBLISHED_HEADS.items()),
    *((f"{published}_head.projector.{a}", f"queries.{native}_head.{b}", kind)
      for native, published in PUBLISHED_HEADS.items() for a, b, kind in HEAD_MODULES),
    *((f"{when}_shared_task_proj", f"queries.{when}_projection", "linear") for when in ("current", "future")),
)


def with_expert(parts: tuple[Modules, tuple[StackTable, ...]], mlp: Modules, optional: OptionalModules) -> NameTable:
    """A vision-language model and the action expert beside it."""
    modules, stacks = parts
    return NameTable(ACTION_MODULES + modules, (*stacks, expert(mlp)), (optional,))


LINGBOT_VLA = with_expert(
    qwen2_5(*PREFIXES["qwen2_5"]), tuple((a, b, "matrix") for a, b in GATED_MLP),
    OptionalModules("depth queries", "depth_seeds", (("depth_align_embs", "depth_seeds", "array"),), needed=False))
LINGBOT_VLA_2 = with_expert(
    qwen3(*PREFIXES["qwen3"]), ROUTED_MLP,
    OptionalModules("query tokens and teachers' heads", "queries.", QUERY_MODULES, needed=False))
TABLES = {"qwen2_5": LINGBOT_VLA, "qwen3": LINGBOT_VLA_2}  # by the vision tower's name
QWEN2_5_VL = NameTable(*qwen2_5("visual.", "model."))
QWEN3_VL = NameTable(*qwen3("visual.", "language_model."))
