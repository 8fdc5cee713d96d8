"""LingBot-VA's names: the 839 tensors of the released WanTransformer3DModel (Robbyant/lingbot-va at 58c2ae5,
wan_va/modules/model.py), and in their manner those of the Mixture of Transformers, which nobody has released.

`condition_embedder_action` is a full copy of `condition_embedder`, but text always goes through the latter: its own
text embedder is stored and never used. We do not keep it; a written file holds a copy of the one that is used. In a
Mixture of Transformers it is the actions' own, and every layer has modules of each stream.
"""

from world_model.families.wan.diffusers_names import LAYER_MODULES
from world_model.families.wan.names import layer_stack
from world_model.weights.names import NameTable

_TEXT = (("linear_1", "fc1"), ("linear_2", "fc2"))

MODULES = (  # published, native, kind
    ("scale_shift_table", "head_modulation", "leading_1"),
    ("patch_embedding_mlp", "patch_embedding", "patch_linear"),
    ("action_embedder", "action_embedding", "linear"),
    *((f"condition_embedder{published}.time_embedder.linear_{i}", f"{native}time_embedding.fc{i}", "linear")
      for published, native in (("", ""), ("_action", "action_")) for i in (1, 2)),
    ("condition_embedder.time_proj", "time_projection", "linear"),
    ("condition_embedder_action.time_proj", "action_time_projection", "linear"),
    *((f"condition_embedder.text_embedder.{published}", f"text_embedding.{native}", "linear")
      for published, native in _TEXT),
    ("proj_out", "video_head", "linear"),
    ("action_proj_out", "action_head", "linear"),
)
UNREAD_MODULES = tuple((f"condition_embedder_action.text_embedder.{published}", f"text_embedding.{native}", "linear")
                       for published, native in _TEXT)
LINGBOT_VA = NameTable(MODULES, (layer_stack(LAYER_MODULES),), unread_modules=UNREAD_MODULES)

STREAMS = ("video", "action")
MOT_MODULES = (
    ("action_scale_shift_table", "action_head_modulation", "leading_1"),
    *((f"condition_embedder_action.text_embedder.{published}", f"action_text_embedding.{native}", "linear")
      for published, native in _TEXT),
)
MOT_LAYER_MODULES = tuple((f"{stream}.{published}", f"{stream}.{native}", kind)
                          for stream in STREAMS for published, native, kind in LAYER_MODULES)
LINGBOT_VA_MOT = NameTable(MODULES + MOT_MODULES, (layer_stack(MOT_LAYER_MODULES),))
