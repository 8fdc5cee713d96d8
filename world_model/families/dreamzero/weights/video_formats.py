"""A DreamZero network written as the video model that it grew from, with its action parts beside it.

    wan        DIR/config.json, diffusion_pytorch_model-*.safetensors and its index, as the original Wan
    diffusers  the same under DIR/transformer, as diffusers' WanTransformer3DModel.from_pretrained reads it

In both, action_heads-*.safetensors and its index hold the state encoder, action encoder and action decoder under
DreamZero's names, and the image branch where the video model has none (the original Wan2.2's); who loads the video
model does not see them.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from world_model.encoders.umt5 import Umt5Spec
from world_model.families.dreamzero.layout import DreamZeroSpec
from world_model.families.dreamzero.weights.formats import ACTION_STEM, IMAGE_BRANCH, IMPORTS
from world_model.families.dreamzero.weights.names import BESIDE_VIDEO, is_action_part
from world_model.families.wan.spec import PATCH
from world_model.weights import names, safetensors_io

IMAGE_DIM = 1280  # width of the original Wan2.1's image branch


def write(directory: Path, format_name: str, spec: DreamZeroSpec, params: Mapping[str, jax.Array], *,
          dtype=np.float32, shard_bytes: int = safetensors_io.SHARD_BYTES) -> None:
    """Writes weights, tensor by tensor in `dtype`, and config.json."""
    fmt = IMPORTS[format_name]
    folder = Path(directory) / fmt.folders[0]
    folder.mkdir(exist_ok=True)
    blind = format_name == "wan" and not spec.concat_first_frame
    beside = {name: x for name, x in params.items()
              if is_action_part(name) or (blind and re.search(IMAGE_BRANCH.pattern, name))}
    video = {name: x for name, x in params.items() if name not in beside}
    for stem, part, table in ((fmt.stem, video, fmt.table), (ACTION_STEM, beside, BESIDE_VIDEO)):
        tensors = names.to_published(part, spec.head_dim, table)
        safetensors_io.write(folder, cast(tensors, dtype), shard_bytes, stem)
    (folder / "config.json").write_text(json.dumps(CONFIGS[format_name](spec), indent=1) + "\n")


def cast(tensors: Iterable[tuple[str, np.ndarray]], dtype) -> Iterable[tuple[str, np.ndarray]]:
    """Yields each tensor in another dtype."""
    return ((name, x.astype(dtype)) for name, x in tensors)


def unloadable(format_name: str, spec: DreamZeroSpec) -> Iterator[str]:
    """Yields why the original Wan cannot load what `write` makes of such a model, as sentences; diffusers can."""
    if format_name != "wan":
        return
    if spec.text_dim != Umt5Spec().dim:
        yield f"its constructor takes text of width {Umt5Spec().dim} alone; this model's is {spec.text_dim}"
    if spec.concat_first_frame and spec.image_dim not in (0, IMAGE_DIM):
        yield f"its image branch takes features of width {IMAGE_DIM}; this model's are {spec.image_dim}"


def wan_config(spec: DreamZeroSpec) -> dict:
    """What the original's constructor reads (docs/references/wan.md)."""
    return {"_class_name": "WanModel", "model_type": "i2v" if spec.concat_first_frame else "ti2v",
            "text_len": spec.text_length, "in_dim": spec.input_channels, "dim": spec.dim, "ffn_dim": spec.ffn_dim,
            "freq_dim": spec.freq_dim, "out_dim": spec.latent_channels, "num_heads": spec.num_heads,
            "num_layers": spec.num_layers, "eps": 1e-6}


def diffusers_config(spec: DreamZeroSpec) -> dict:
    """What WanTransformer3DModel's constructor reads."""
    return {"_class_name": "WanTransformer3DModel", "patch_size": [1, PATCH, PATCH],
            "num_attention_heads": spec.num_heads, "attention_head_dim": spec.head_dim,
            "in_channels": spec.input_channels, "out_channels": spec.latent_channels, "text_dim": spec.text_dim,
            "freq_dim": spec.freq_dim, "ffn_dim": spec.ffn_dim, "num_layers": spec.num_layers,
            "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "eps": 1e-6,
            "image_dim": spec.image_dim or None, "added_kv_proj_dim": spec.dim if spec.image_dim else None,
            "rope_max_seq_len": 1024, "pos_embed_seq_len": None}


CONFIGS = {"wan": wan_config, "diffusers": diffusers_config}
