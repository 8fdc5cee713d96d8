"""Names of diffusers' WanTransformer3DModel, Wan 2.1 and 2.2: the video network alone."""

from world_model.families.wan.names import image_branch, layer_stack
from world_model.weights.names import NameTable

MODULES = (  # published, native, kind
    ("patch_embedding", "patch_embedding", "patch"),
    *((f"condition_embedder.{part}_embedder.linear_{i}", f"{part}_embedding.fc{i}", "linear")
      for part in ("time", "text") for i in (1, 2)),
    ("condition_embedder.time_proj", "time_projection", "linear"),
    ("scale_shift_table", "head.modulation", "leading_1"),
    ("proj_out", "head.proj", "linear"),
)
IMAGE_MODULES = (
    ("condition_embedder.image_embedder.norm1", "image_embedding.norm1", "layer_norm"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "image_embedding.fc1", "linear"),
    ("condition_embedder.image_embedder.ff.net.2", "image_embedding.fc2", "linear"),
    ("condition_embedder.image_embedder.norm2", "image_embedding.norm2", "layer_norm"),
)
LAYER_MODULES = (
    ("scale_shift_table", "modulation", "leading_1"),
    *((f"attn1.to_{p}", f"self_attn.{p}", "rotary_linear") for p in "qk"),
    ("attn1.to_v", "self_attn.v", "linear"),
    ("attn1.to_out.0", "self_attn.o", "linear"),
    *((f"attn1.norm_{p}", f"self_attn.{p}_norm", "rotary_norm") for p in "qk"),
    ("norm2", "cross_norm", "layer_norm"),
    *((f"attn2.to_{p}", f"cross_attn.{p}", "linear") for p in "qkv"),
    ("attn2.to_out.0", "cross_attn.o", "linear"),
    *((f"attn2.norm_{p}", f"cross_attn.{p}_norm", "norm") for p in "qk"),
    ("ffn.net.0.proj", "mlp.fc1", "linear"),
    ("ffn.net.2", "mlp.fc2", "linear"),
)
IMAGE_LAYER_MODULES = (
    ("attn2.add_k_proj", "cross_attn.k_image", "linear"),
    ("attn2.add_v_proj", "cross_attn.v_image", "linear"),
    ("attn2.norm_added_k", "cross_attn.k_image_norm", "norm"),
)
DIFFUSERS = NameTable(MODULES, (layer_stack(LAYER_MODULES),), (image_branch(IMAGE_MODULES, IMAGE_LAYER_MODULES),))
