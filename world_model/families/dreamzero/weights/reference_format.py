"""The directory that a DreamZero export is: the reference's names, shapes and config.json.

    model-0000i-of-0000N.safetensors, model.safetensors.index.json    action_head.model.<reference name>
    config.json                                                       the reference's keys, and ours under "wamax"

The reference's loader also wants its text encoder, image encoder and VAE, whose files config.json names. Its network
always has an image branch, and what a file lacks stays random unnoticed: a model without image features is written
with a branch of zeros, which adds exactly nothing. The layout is derived from the loading code (dreamzero0/dreamzero at
ab790c1, groot/vla/model/dreamzero/base_vla.py); no released checkpoint was at hand to compare with.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from world_model.encoders.umt5 import Umt5Spec
from world_model.families.dreamzero.layout import DreamZeroSpec
from world_model.families.dreamzero.weights.formats import LORA_LEVEL, PREFIX
from world_model.families.dreamzero.weights.names import DREAMZERO, is_action_part
from world_model.weights import names, safetensors_io

_PACKAGE = "groot.vla.model.dreamzero"
IMAGE_TOKENS, IMAGE_DIM = 257, 1280  # sizes of its image branch
CODEC_CHANNELS = {16: "Wan2.1's", 48: "Wan2.2's"}
ENCODER_FILES = {"text": "text_encoder_pretrained_path", "image": "image_encoder_pretrained_path",
                 "video": "vae_pretrained_path"}


def write(directory: Path, spec: DreamZeroSpec, params: Mapping[str, jax.Array], *, rollout: Mapping,
          encoders: Mapping | None = None, dtype=np.float32, shard_bytes: int = safetensors_io.SHARD_BYTES) -> None:
    """Writes weights, tensor by tensor, and config.json.

    Args:
      params: our flat parameters.
      rollout: settings of torch/sampler.py's DreamZeroTorchSampler that these weights are meant for.
      encoders: names and files of the frozen encoders, as config.encoders has them.
    """
    prefix = PREFIX + LORA_LEVEL if spec.lora_rank else PREFIX
    found = names.to_published(params, spec.head_dim, DREAMZERO)
    tensors = ((prefix + name, x.astype(dtype)) for name, x in itertools.chain(found, _zero_image_branch(spec)))
    safetensors_io.write(directory, tensors, shard_bytes)
    _write_config(directory, spec, rollout, encoders or {}, dtype)


def write_adapters(directory: Path, spec: DreamZeroSpec, params: Mapping[str, jax.Array], *, rollout: Mapping,
                   encoders: Mapping | None = None, dtype=np.float32,
                   shard_bytes: int = safetensors_io.SHARD_BYTES) -> None:
    """Writes adapters and action parts alone, as the reference's save_lora_only, and config.json. Args: see `write`."""
    tensors = ((PREFIX + LORA_LEVEL + name, x.astype(dtype))
               for name, x in names.to_published(params, spec.head_dim, DREAMZERO)
               if names.is_adapter(name) or is_action_part(name))
    safetensors_io.write(directory, tensors, shard_bytes)
    _write_config(directory, spec, rollout, encoders or {}, dtype)


def _write_config(directory: Path, spec: DreamZeroSpec, rollout: Mapping, encoders: Mapping, dtype) -> None:
    made = config(spec, rollout, encoders, np.dtype(dtype).name)
    (directory / "config.json").write_text(json.dumps(made, indent=1) + "\n")


def _zero_image_branch(spec: DreamZeroSpec) -> Iterator[tuple[str, np.ndarray]]:
    """The reference's image branch for a model without one: its values are zero whatever the picture."""
    if spec.image_dim:
        return
    dim, linear = spec.dim, {"weight": (spec.dim, spec.dim), "bias": (spec.dim,)}
    layer: dict[str, dict[str, tuple[int, ...]]] = {"k_img": linear, "v_img": linear, "norm_k_img": {"weight": (dim,)}}
    modules: dict[str, dict[str, tuple[int, ...]]] = {
        "img_emb.proj.0": {"weight": (IMAGE_DIM,), "bias": (IMAGE_DIM,)},
        "img_emb.proj.1": {"weight": (IMAGE_DIM, IMAGE_DIM), "bias": (IMAGE_DIM,)},
        "img_emb.proj.3": {"weight": (dim, IMAGE_DIM), "bias": (dim,)},
        "img_emb.proj.4": {"weight": (dim,), "bias": (dim,)}}
    for i in range(spec.num_layers):
        modules |= {f"blocks.{i}.cross_attn.{name}": shapes for name, shapes in layer.items()}
    for module, shapes in modules.items():
        for name, shape in shapes.items():
            yield f"{module}.{name}", np.zeros(shape, np.float32)


def unloadable(spec: DreamZeroSpec) -> Iterator[str]:
    """Yields why the reference cannot load the whole network, as sentences."""
    if spec.image_dim and (spec.image_tokens, spec.image_dim) != (IMAGE_TOKENS, IMAGE_DIM):
        yield (f"its image branch takes {IMAGE_TOKENS} tokens of width {IMAGE_DIM}; this model has "
               f"{spec.image_tokens} of {spec.image_dim}")


def other_encoders(spec: DreamZeroSpec, encoders: Mapping) -> Iterator[str]:
    """Yields what the reference encodes otherwise than training did, as sentences."""
    if spec.text_dim != Umt5Spec().dim:
        yield f"its text encoder, UMT5-XXL, gives features of width {Umt5Spec().dim}; this model takes {spec.text_dim}"
    if spec.latent_channels not in CODEC_CHANNELS:
        yield f"its video codecs give 16 or 48 channels; this model takes {spec.latent_channels}"
    files = {part: encoders.get(f"{part}_weights", "") for part in ENCODER_FILES}
    if absent := [part for part, file in files.items() if not file]:
        yield (f"its constructor reads the weights of its encoders for {', '.join(absent)} from the hub: no "
               "encoders.*_weights names a file of theirs")
    if other := [file for file in files.values() if file and not file.endswith(".pth")]:
        yield f"its constructor reads .pth files in the original layout; give it those in place of {', '.join(other)}"


def network_sizes(spec: DreamZeroSpec) -> dict[str, int]:
    """The arguments of torch/network.py's DreamZero."""
    same = ("dim", "ffn_dim", "num_heads", "num_layers", "freq_dim", "text_dim", "image_dim", "action_dim",
            "state_dim", "action_hidden_dim")
    sizes = {name: getattr(spec, name) for name in same}
    return sizes | {"in_dim": spec.input_channels, "out_dim": spec.latent_channels}


def config(spec: DreamZeroSpec, rollout: Mapping, encoders: Mapping, dtype: str = "float32") -> dict:
    """The contents of config.json: what the reference's VLAConfig reads, then what torch/runtime.py's `load` reads."""
    wamax = {"network": network_sizes(spec), "layout": spec.layout.as_json(),
             "visibility": spec.visibility, "rollout_visibility": spec.rollout_visibility,
             "window_frames": spec.window_frames, "dtype": dtype,
             "inputs": {"latent_size": [spec.latent_height, spec.latent_width], "text_length": spec.text_length,
                        "image_tokens": spec.image_tokens},
             "lora_scale": spec.lora_alpha / spec.lora_rank if spec.lora_rank else None, "rollout": dict(rollout)}
    layout, final_sigma = spec.layout, rollout.get("video_final_sigma", 0.0)
    # Its policy takes a target size for that of clients' pictures, and needs one for the 48-channel codec alone.
    target = {"target_video_height": layout.height, "target_video_width": layout.width}
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
            "decouple_inference_noise": final_sigma > 0, "video_inference_final_noise": final_sigma,
            **(target if spec.latent_channels == 48 else {}),
            "diffusion_model_cfg": _diffusion_model(spec), **_encoders(spec, encoders)},
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


def _encoders(spec: DreamZeroSpec, encoders: Mapping) -> dict:
    """The reference's frozen encoders with the files of their weights, which are not part of an export; no file: it
    looks for its own at the hub."""
    large, text = spec.latent_channels == 48, Umt5Spec()  # 48 is Wan 2.2's codec
    sizes = {
        "vae_cfg": {"z_dim": 48, "dim": 160} if large else {}, "image_encoder_cfg": {},
        "text_encoder_cfg": {"vocab": text.vocabulary, "dim": spec.text_dim, "dim_attn": text.heads * text.head_dim,
                             "dim_ffn": text.ffn_dim, "num_heads": text.heads, "num_layers": text.layers,
                             "num_buckets": text.buckets, "shared_pos": False}}
    targets = {"text_encoder_cfg": "wan_video_text_encoder.WanTextEncoder",
               "image_encoder_cfg": "wan_video_image_encoder.WanImageEncoder",
               "vae_cfg": f"wan_video_vae.WanVideoVAE{'38' if large else ''}"}
    files = {part: encoders.get(f"{part}_weights", "") for part in ENCODER_FILES}
    paths = {part: str(Path(file).absolute()) if file else None for part, file in files.items()}
    return {name: {"_target_": f"{_PACKAGE}.modules.{target}", "_convert_": "object", **sizes[name],
                   ENCODER_FILES[part]: paths[part]}
            for (name, target), part in zip(targets.items(), ("text", "image", "video"), strict=True)}
