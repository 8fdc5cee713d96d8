"""LingBot-VA's names: the 839 tensors of the released WanTransformer3DModel (facts/lingbot_va.md, section 1), and in
their manner those of the Mixture of Transformers, which nobody has released.

`condition_embedder_action` is a full copy of `condition_embedder`, but text always goes through the latter: its own
text embedder is stored and never used. We do not keep it; a written file holds a copy of the one that is used. In a
Mixture of Transformers it is the actions' own, and a block is two.
"""

from world_model.families.wan.diffusers_names import BLOCK_MODULES
from world_model.weights.names import NameTable

_TEXT = (("linear_1", "fc1"), ("linear_2", "fc2"))

MODULES = (
    ("scale_shift_table", "head_modulation", "leading_1"),
    ("patch_embedding_mlp", "patch_embedding", "patch_linear"),
    ("action_embedder", "action_embedding", "linear"),
    *((f"condition_embedder{theirs}.time_embedder.linear_{i}", f"{ours}time_embedding.fc{i}", "linear")
      for theirs, ours in (("", ""), ("_action", "action_")) for i in (1, 2)),
    ("condition_embedder.time_proj", "time_projection", "linear"),
    ("condition_embedder_action.time_proj", "action_time_projection", "linear"),
    *((f"condition_embedder.text_embedder.{theirs}", f"text_embedding.{ours}", "linear") for theirs, ours in _TEXT),
    ("proj_out", "video_head", "linear"),
    ("action_proj_out", "action_head", "linear"),
)
UNREAD_MODULES = tuple((f"condition_embedder_action.text_embedder.{theirs}", f"text_embedding.{ours}", "linear")
                       for theirs, ours in _TEXT)
LINGBOT_VA = NameTable(MODULES, BLOCK_MODULES, unread_modules=UNREAD_MODULES)

STREAMS = ("video", "action")
MOT_MODULES = (
    ("action_scale_shift_table", "action_head_modulation", "leading_1"),
    *((f"condition_embedder_action.text_embedder.{theirs}", f"action_text_embedding.{ours}", "linear")
      for theirs, ours in _TEXT),
)
LINGBOT_VA_MOT = NameTable(MODULES + MOT_MODULES, tuple(
    (f"{stream}.{theirs}", f"{stream}.{ours}", kind) for stream in STREAMS for theirs, ours, kind in BLOCK_MODULES))
