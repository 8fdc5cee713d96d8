"""Published layouts that hold a DreamZero network or the video model that it grew from.

    wan        original Wan: DIR/diffusion_pytorch_model*.safetensors
    diffusers  DIR/transformer/diffusion_pytorch_model*.safetensors, or DIR itself
    dreamzero  DIR/model*.safetensors, the network's tensors under action_head.model.

Beside the first two, an export of ours has the action parts in action_heads*.safetensors. A DreamZero checkpoint may be
full, or LoRA: the base under its names and adapters under peft's, or adapters and action parts alone.
"""

from pathlib import Path

from world_model import kinds
from world_model.families.dreamzero.weights.names import ACTION_MODULES, ACTION_PARTS, DREAMZERO
from world_model.families.wan.diffusers_names import DIFFUSERS
from world_model.families.wan.names import WAN
from world_model.weights.formats import Component, InitRule, PublishedFormat, SideFiles
from world_model.weights.names import NameTable
from world_model.weights.tensor_files import read_json

PREFIX = "action_head.model."
LORA_LEVEL = "base_model.model."  # what peft puts before the names of a network with adapters
ACTION_STEM = "action_heads"
# An export of a model without image features has them all the same, as zeros: the reference's network needs them.
ZERO_IMAGE_BRANCH = (r"action_head\.model\.(base_model\.model\.)?"
                     r"(img_emb|blocks\.\d+\.cross_attn\.(k_img|v_img|norm_k_img))\.")


_SIZES = dict.fromkeys(("dim", "ffn_dim", "num_heads", "freq_dim", "in_dim", "out_dim", "text_dim", "action_dim",
                        "action_hidden_dim"), kinds.whole(1, 2**20)) | {
    "num_layers": kinds.whole(1, 2**12), "image_dim": kinds.whole(0, 2**20), "state_dim": kinds.whole(0, 2**20)}
_INPUTS = {"latent_size": kinds.row(kinds.whole(1), kinds.whole(1)), "text_length": kinds.whole(1),
           "image_tokens": kinds.whole()}
_SETTINGS = {
    "network": kinds.fields(_SIZES, tuple(_SIZES)), "layout": kinds.MAP,
    "visibility": kinds.text, "rollout_visibility": kinds.text, "window_frames": kinds.whole(),
    "dtype": kinds.one_of("float32", "bfloat16"), "lora_scale": kinds.optional(kinds.number()),
    "rollout": kinds.MAP, "inputs": kinds.fields(_INPUTS, tuple(_INPUTS))}
CONFIG = kinds.fields({"wamax": kinds.fields(_SETTINGS, tuple(_SETTINGS))})  # config.json, which need not be ours


def _has_zero_image_branch(folder: Path) -> bool:
    """Whether the folder is an export of ours, of a model without image features."""
    path = folder / "config.json"
    return path.exists() and not read_json(path, CONFIG).get("wamax", {}).get("network", {}).get("image_dim", 1)


def _without_image_latent(spec) -> bool:
    """Whether the base is Wan2.2-TI2V-5B, which concatenates no latent of the first frame."""
    return not spec.concat_first_frame


ACTION_HEADS = InitRule(ACTION_PARTS, "a video model has no actions")
IMAGE_BRANCH = InitRule(r"^image_embedding\.|\.[kv]_image(_norm)?\.", "Wan2.2-TI2V-5B has no image branch",
                        applies=_without_image_latent)
ADAPTERS = InitRule(r"\.lora_[ab]$", "a base has no adapters; they begin as nothing")


def _video_model(folders: tuple[str, ...], table: NameTable) -> PublishedFormat:
    return PublishedFormat(
        "diffusion_pytorch_model", folders, ("",), table, (ACTION_HEADS, IMAGE_BRANCH, ADAPTERS),
        side_files=SideFiles(ACTION_STEM, ACTION_MODULES, ACTION_HEADS), beside_base=ACTION_PARTS)


IMPORTS = {
    "wan": _video_model(("",), WAN),
    "diffusers": _video_model(("transformer", ""), DIFFUSERS),
    "dreamzero": PublishedFormat(
        "model", ("",), (PREFIX + LORA_LEVEL, PREFIX), DREAMZERO, (ADAPTERS,),
        (Component(r"action_head\.text_encoder\.", "text encoder"),
         Component(r"action_head\.image_encoder\.", "image encoder"), Component(r"action_head\.vae\.", "video codec"),
         Component(ZERO_IMAGE_BRANCH, "image branch of zeros", applies=_has_zero_image_branch)),
        inserted=".base_layer.", beside_base=ACTION_PARTS),
}
