"""Names of the original Wan's video network (Wan-Video/Wan2.1 at 9737cba, wan/modules/model.py), and the pieces from
which tables of networks on Wan's backbone are made. docs/references/wan.md says what the modules are."""

from world_model.weights.names import Modules, NameTable, OptionalModules, StackTable

MODULES = (  # published, native, kind
    ("patch_embedding", "patch_embedding", "patch"),
    ("text_embedding.0", "text_embedding.fc1", "linear"),
    ("text_embedding.2", "text_embedding.fc2", "linear"),
    ("time_embedding.0", "time_embedding.fc1", "linear"),
    ("time_embedding.2", "time_embedding.fc2", "linear"),
    ("time_projection.1", "time_projection", "linear"),
    ("head.modulation", "head.modulation", "leading_1"),
    ("head.head", "head.proj", "linear"),
)
IMAGE_MODULES = (
    ("img_emb.proj.0", "image_embedding.norm1", "layer_norm"),
    ("img_emb.proj.1", "image_embedding.fc1", "linear"),
    ("img_emb.proj.3", "image_embedding.fc2", "linear"),
    ("img_emb.proj.4", "image_embedding.norm2", "layer_norm"),
)
LAYER_MODULES = (
    ("modulation", "modulation", "leading_1"),
    *((f"self_attn.{p}", f"self_attn.{p}", "rotary_linear") for p in "qk"),
    *((f"self_attn.{p}", f"self_attn.{p}", "linear") for p in "vo"),
    ("self_attn.norm_q", "self_attn.q_norm", "rotary_norm"),
    ("self_attn.norm_k", "self_attn.k_norm", "rotary_norm"),
    ("norm3", "cross_norm", "layer_norm"),
    *((f"cross_attn.{p}", f"cross_attn.{p}", "linear") for p in "qkvo"),
    ("cross_attn.norm_q", "cross_attn.q_norm", "norm"),
    ("cross_attn.norm_k", "cross_attn.k_norm", "norm"),
    ("ffn.0", "mlp.fc1", "linear"),
    ("ffn.2", "mlp.fc2", "linear"),
)
IMAGE_LAYER_MODULES = (
    ("cross_attn.k_img", "cross_attn.k_image", "linear"),
    ("cross_attn.v_img", "cross_attn.v_image", "linear"),
    ("cross_attn.norm_k_img", "cross_attn.k_image_norm", "norm"),
)


def layer_stack(modules: Modules) -> StackTable:
    """Wan's stack of layers, the last of which stands apart."""
    return StackTable("blocks.{i}.", "blocks.", modules, last="final_block.")


def image_branch(modules: Modules, layer_modules: Modules) -> OptionalModules:
    """The modules of models with an image context."""
    return OptionalModules("an image branch", "image_embedding.", modules, {"blocks.": layer_modules})


WAN = NameTable(MODULES, (layer_stack(LAYER_MODULES),), (image_branch(IMAGE_MODULES, IMAGE_LAYER_MODULES),))
