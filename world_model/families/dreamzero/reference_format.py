"""The directory that a DreamZero export is: the reference's names, shapes and config.json.

    model-0000i-of-0000N.safetensors, model.safetensors.index.json    action_head.model.<reference name>
    config.json                                                       the reference's keys, and ours under "wamax"

The reference's loader also wants its text encoder, image encoder and VAE, which it reads from their own files. The
layout is derived from its loading code (dreamzero0/dreamzero at ab790c1, groot/vla/model/dreamzero/base_vla.py); no
released checkpoint was at hand to compare with.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from world_model.families.dreamzero.formats import LORA_LEVEL, PREFIX
from world_model.families.dreamzero.model import DreamZeroSpec
from world_model.families.dreamzero.names import DREAMZERO, is_action_part
from world_model.weights import names, safetensors_io

_PACKAGE = "groot.vla.model.dreamzero"


def write(directory: Path, spec: DreamZeroSpec, params: Mapping[str, jax.Array], *, rollout: Mapping,
          dtype=np.float32, shard_bytes: int = safetensors_io.SHARD_BYTES) -> None:
    """Writes weights, tensor by tensor, and config.json.

    Args:
      params: our flat parameters.
      rollout: settings of torch/sampler.py's DreamZeroTorchSampler that these weights are meant for.
    """
    prefix = PREFIX + LORA_LEVEL if spec.lora_rank else PREFIX
    tensors = ((prefix + name, x.astype(dtype)) for name, x in names.to_published(params, spec.head_dim, DREAMZERO))
    safetensors_io.write(directory, tensors, shard_bytes)
    (directory / "config.json").write_text(json.dumps(config(spec, rollout, np.dtype(dtype).name), indent=1) + "\n")


def write_adapters(directory: Path, spec: DreamZeroSpec, params: Mapping[str, jax.Array], *, rollout: Mapping,
                   dtype=np.float32, shard_bytes: int = safetensors_io.SHARD_BYTES) -> None:
    """Writes adapters and action parts alone, as the reference's save_lora_only, and config.json. Args: see `write`."""
    tensors = ((PREFIX + LORA_LEVEL + name, x.astype(dtype))
               for name, x in names.to_published(params, spec.head_dim, DREAMZERO)
               if names.is_adapter(name) or is_action_part(name))
    safetensors_io.write(directory, tensors, shard_bytes)
    (directory / "config.json").write_text(json.dumps(config(spec, rollout, np.dtype(dtype).name), indent=1) + "\n")


def network_sizes(spec: DreamZeroSpec) -> dict[str, int]:
    """The arguments of torch/network.py's DreamZero."""
    same = ("dim", "ffn_dim", "num_heads", "num_layers", "freq_dim", "text_dim", "image_dim", "action_dim",
            "state_dim", "action_hidden_dim")
    sizes = {name: getattr(spec, name) for name in same}
    return sizes | {"in_dim": spec.input_channels, "out_dim": spec.latent_channels}


def config(spec: DreamZeroSpec, rollout: Mapping, dtype: str = "float32") -> dict:
    """The contents of config.json: what the reference's VLAConfig reads, then what torch/runtime.py's `load` reads."""
    wamax = {"network": network_sizes(spec), "layout": spec.layout.as_json(),
             "visibility": spec.visibility, "rollout_visibility": spec.rollout_visibility,
             "window_frames": spec.window_frames, "dtype": dtype,
             "inputs": {"latent_size": [spec.latent_height, spec.latent_width], "text_length": spec.text_length,
                        "image_tokens": spec.image_tokens},
             "lora_scale": spec.lora_alpha / spec.lora_rank if spec.lora_rank else None, "rollout": dict(rollout)}
    layout = spec.layout
    head = {
        "_target_": f"{_PACKAGE}.action_head.wan_flow_matching_action_tf.WANPolicyHead",
        "_convert_": "object",
        "config": {
            "_target_": f"{_PACKAGE}.action_head.wan_flow_matching_action_tf.WANPolicyHeadConfig",
            "_recursive_": False,
            "train_architecture": "lora" if spec.lora_rank else "full", "skip_component_loading": True,
            "defer_lora_injection": False, **_lora(spec),
            "num_frames": layout.frames, "num_frame_per_block": layout.frames_per_block,
            "action_dim": spec.action_dim, "max_action_dim": spec.action_dim, "max_state_dim": spec.state_dim,
            "action_horizon": layout.actions_per_block, "hidden_size": spec.action_hidden_dim,
            "model_dtype": dtype, "tiled": False, "backbone_features_projector_cfg": None,
            "target_video_height": layout.height, "target_video_width": layout.width,
            "diffusion_model_cfg": _diffusion_model(spec), **_encoders(spec)},
    }
    return {"model_type": "vla", "architectures": ["VLA"], "hidden_size": 0, "model_dtype": dtype,
            "compute_dtype": dtype, "action_dim": spec.action_dim, "action_horizon": layout.actions_per_block,
            "backbone_cfg": {"_target_": f"{_PACKAGE}.backbone.identity.IdentityBackbone"},
            "action_head_cfg": head, "wamax": wamax}


def _lora(spec: DreamZeroSpec) -> dict:
    """The settings by which the reference puts its adapters in."""
    if not spec.lora_rank:
        return {}
    return {"lora_rank": spec.lora_rank, "lora_alpha": spec.lora_alpha, "lora_target_modules": "q,k,v,o,ffn.0,ffn.2"}


def _diffusion_model(spec: DreamZeroSpec) -> dict:
    """The constructor values of the reference's network."""
    layout = spec.layout
    return {
        "_target_": f"{_PACKAGE}.modules.wan_video_dit_action_casual_chunk.CausalWanModel",
        "_convert_": "object",
        "model_type": "i2v" if spec.concat_first_frame else "ti2v",
        "concat_first_frame_latent": spec.concat_first_frame,
        "frame_seqlen": spec.tokens_per_frame, "text_len": spec.text_length, "text_dim": spec.text_dim,
        "in_dim": spec.input_channels, "out_dim": spec.latent_channels, "dim": spec.dim, "ffn_dim": spec.ffn_dim,
        "freq_dim": spec.freq_dim, "num_heads": spec.num_heads, "num_layers": spec.num_layers, "eps": 1e-6,
        # Its -1 means another mask, not an endless window: a window that never ends is the whole layout.
        "max_chunk_size": spec.window_blocks or layout.num_blocks,
        "num_frame_per_block": layout.frames_per_block, "num_action_per_block": layout.actions_per_block,
        "num_state_per_block": layout.states_per_block, "action_dim": spec.action_dim,
        "max_state_dim": spec.state_dim, "hidden_size": spec.action_hidden_dim}


def _encoders(spec: DreamZeroSpec) -> dict:
    """The reference's frozen encoders, by target alone: their weights are not part of an export."""
    large = spec.latent_channels == 48  # that is Wan 2.2's codec
    vae = {"z_dim": 48, "dim": 160} if large else {}
    targets = {"text_encoder_cfg": "wan_video_text_encoder.WanTextEncoder",
               "image_encoder_cfg": "wan_video_image_encoder.WanImageEncoder",
               "vae_cfg": f"wan_video_vae.WanVideoVAE{'38' if large else ''}"}
    found = {name: {"_target_": f"{_PACKAGE}.modules.{target}", "_convert_": "object"}
             for name, target in targets.items()}
    return found | {"vae_cfg": found["vae_cfg"] | vae}
