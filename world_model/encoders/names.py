"""Name tables of the frozen encoders: published name <-> native name, and how a tensor changes, for every format.

`wan` is the layout of the original files (Wan2.1_VAE.pth, Wan2.2_VAE.pth, models_t5_umt5-xxl-enc-bf16.pth,
models_clip_*.pth; docs/references/encoders.md), `diffusers` that of the diffusers and transformers libraries. A layer
of a stacked array of ours is one published tensor, and so is a part of an array where we keep together what is
published apart.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from world_model.weights import names
from world_model.weights.names import Entry
from world_model.weights.transforms import KINDS


@dataclasses.dataclass(frozen=True)
class TensorTable:
    """All tensors of one format."""

    entries: tuple[Entry, ...]
    unread: str = r"(?!)"  # regular expression of published names that nobody here reads
    copies: tuple[tuple[str, str], ...] = ()  # (name, the name that it may stand for or repeat)


FORMATS = ("wan", "diffusers")


def published_shapes(table: TensorTable, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """Published names and shapes, from the shapes of our arrays, without any data. Raises ValueError where the table
    does not cover ours exactly."""
    _check_covers(table, shapes)
    return {entry.published: names.published_shape(shapes, entry, 0) for entry in table.entries}


def to_published(table: TensorTable, params: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (published name, array), one at a time. Raises ValueError where the table does not cover our arrays
    exactly."""
    _check_covers(table, params)
    return (names.published_tensor(params, entry, 0) for entry in table.entries)


def _check_covers(table: TensorTable, params: Mapping[str, object]) -> None:
    if differing := sorted({e.native for e in table.entries} ^ params.keys()):
        raise ValueError(f"the name table and our parameters differ in {differing[:5]}")


# Where the stages of the autoencoders lie: format, whether it has shortcuts -> (the encoder's residual block and
# resampling, the decoder's). `flat` counts residual blocks and resamplings through, `part` counts inside a stage.
_VAE_STAGES = {
    ("wan", False): ("encoder.downsamples.{flat}", "encoder.downsamples.{flat}",
                     "decoder.upsamples.{flat}", "decoder.upsamples.{flat}"),
    ("wan", True): ("encoder.downsamples.{stage}.downsamples.{part}", "encoder.downsamples.{stage}.downsamples.{part}",
                    "decoder.upsamples.{stage}.upsamples.{part}", "decoder.upsamples.{stage}.upsamples.{part}"),
    ("diffusers", False): ("encoder.down_blocks.{flat}", "encoder.down_blocks.{flat}",
                           "decoder.up_blocks.{stage}.resnets.{part}", "decoder.up_blocks.{stage}.upsamplers.0"),
    ("diffusers", True): ("encoder.down_blocks.{stage}.resnets.{part}", "encoder.down_blocks.{stage}.downsampler",
                          "decoder.up_blocks.{stage}.resnets.{part}", "decoder.up_blocks.{stage}.upsampler"),
}
_VAE_BLOCK = {  # published, native, kind
    "wan": (("residual.0", "norm1", "gamma_3d"), ("residual.2", "conv1", "conv"), ("residual.3", "norm2", "gamma_3d"),
            ("residual.6", "conv2", "conv"), ("shortcut", "shortcut", "point_3d")),
    "diffusers": (("norm1", "norm1", "gamma_3d"), ("conv1", "conv1", "conv"), ("norm2", "norm2", "gamma_3d"),
                  ("conv2", "conv2", "conv"), ("conv_shortcut", "shortcut", "point_3d")),
}
_VAE_RESAMPLE = (("resample.1", "conv", "picture_conv"), ("time_conv", "time_conv", "conv"))
_VAE_ATTENTION = (("norm", "norm", "gamma_2d"), ("to_qkv", "qkv", "point_2d"), ("proj", "o", "point_2d"))
_VAE_SIDE = {  # encoder and decoder: conv_in, the middle's residual blocks and attention, norm_out, conv_out
    "wan": ("conv1", ("middle.0", "middle.2"), "middle.1", "head.0", "head.2"),
    "diffusers": ("conv_in", ("mid_block.resnets.0", "mid_block.resnets.1"), "mid_block.attentions.0", "norm_out",
                  "conv_out"),
}
_VAE_OUTSIDE = {
    "wan": (("conv1", "to_latent", "point_3d"), ("conv2", "from_latent", "point_3d")),
    "diffusers": (("quant_conv", "to_latent", "point_3d"), ("post_quant_conv", "from_latent", "point_3d")),
}


def vae(spec) -> dict[str, TensorTable]:
    """{format: table} of an autoencoder; spec: `wan_vae.WanVaeSpec`."""
    return {form: TensorTable(tuple(_entries(_vae_modules(spec, form)))) for form in FORMATS}


def _vae_modules(spec, form: str) -> Iterator[tuple[str, str, str]]:
    """Yields (published, native, kind) of every module."""
    yield from _VAE_OUTSIDE[form]
    conv_in, middle, attention, norm_out, conv_out = _VAE_SIDE[form]
    for side in ("encoder", "decoder"):
        yield f"{side}.{conv_in}", f"{side}.conv_in", "conv"
        for i, block in enumerate(middle):
            yield from _under(f"{side}.{block}", f"{side}.middle.block{i}", _VAE_BLOCK[form][:4])
        yield from _under(f"{side}.{attention}", f"{side}.middle.attention", _VAE_ATTENTION)
        yield f"{side}.{norm_out}", f"{side}.norm_out", "gamma_3d"
        yield f"{side}.{conv_out}", f"{side}.conv_out", "conv"
    down_block, down, up_block, up = _VAE_STAGES[form, spec.shortcuts]
    stages = [(inputs, outputs, *sizes) for inputs, outputs, *sizes in spec.down()]
    yield from _vae_stages("encoder", stages, spec.blocks, down_block, down, form)
    stages = [(inputs, outputs, *sizes) for inputs, outputs, _, *sizes in spec.up()]
    yield from _vae_stages("decoder", stages, spec.blocks + 1, up_block, up, form)


def _vae_stages(side: str, stages: list, blocks: int, block: str, resample: str, form: str):
    flat = 0
    for stage, (inputs, outputs, spatial, temporal) in enumerate(stages):
        for part in range(blocks):
            kept = _VAE_BLOCK[form] if part == 0 and inputs != outputs else _VAE_BLOCK[form][:4]
            yield from _under(block.format(flat=flat, stage=stage, part=part), f"{side}.stage{stage}.block{part}", kept)
            flat += 1
        if spatial:
            yield from _under(resample.format(flat=flat, stage=stage, part=blocks), f"{side}.stage{stage}.resample",
                              _VAE_RESAMPLE[:1 + temporal])
            flat += 1


def _under(published: str, native: str, modules) -> Iterator[tuple[str, str, str]]:
    return ((f"{published}.{a}", f"{native}.{b}", kind) for a, b, kind in modules)


def _entries(modules, layer: int | None = None, part: tuple[int, int] | None = None) -> Iterator[Entry]:
    for published, native, kind in modules:
        for published_suffix, native_suffix, transform in KINDS[kind]:
            yield Entry(published + published_suffix, native + native_suffix, layer, transform, part=part)


_UMT5 = {  # published, native, kind: outside the layers, then of a layer
    "wan": ((("token_embedding.weight", "token_embedding", "array"), ("norm", "norm", "norm")),
            (("blocks.{i}.norm1", "norm1", "norm"), ("blocks.{i}.norm2", "norm2", "norm"),
             *((f"blocks.{{i}}.attn.{p}", f"self_attn.{p}", "matrix") for p in "qkvo"),
             ("blocks.{i}.pos_embedding.embedding.weight", "self_attn.position_bias", "array"),
             ("blocks.{i}.ffn.gate.0", "mlp.gate", "matrix"), ("blocks.{i}.ffn.fc1", "mlp.fc1", "matrix"),
             ("blocks.{i}.ffn.fc2", "mlp.fc2", "matrix"))),
    "diffusers": ((("shared.weight", "token_embedding", "array"), ("encoder.final_layer_norm", "norm", "norm")),
                  (("encoder.block.{i}.layer.0.layer_norm", "norm1", "norm"),
                   ("encoder.block.{i}.layer.1.layer_norm", "norm2", "norm"),
                   *((f"encoder.block.{{i}}.layer.0.SelfAttention.{p}", f"self_attn.{p}", "matrix") for p in "qkvo"),
                   ("encoder.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight",
                    "self_attn.position_bias", "array"),
                   ("encoder.block.{i}.layer.1.DenseReluDense.wi_0", "mlp.gate", "matrix"),
                   ("encoder.block.{i}.layer.1.DenseReluDense.wi_1", "mlp.fc1", "matrix"),
                   ("encoder.block.{i}.layer.1.DenseReluDense.wo", "mlp.fc2", "matrix"))),
}
_UMT5_COPIES = {"wan": (), "diffusers": (("encoder.embed_tokens.weight", "shared.weight"),)}


def umt5(layers: int) -> dict[str, TensorTable]:
    """{format: table} of UMT5's encoder."""
    return {form: TensorTable(tuple(_stacked(*_UMT5[form], layers)), copies=_UMT5_COPIES[form]) for form in FORMATS}


_CLIP = {  # as _UMT5
    "wan": ((("visual.cls_embedding", "class_embedding", "leading_2"),
             ("visual.pos_embedding", "position_embedding", "leading_1"),
             ("visual.patch_embedding.weight", "patch_embedding", "picture_patch"),
             ("visual.pre_norm", "pre_norm", "layer_norm")),
            (("visual.transformer.{i}.norm1", "norm1", "layer_norm"),
             ("visual.transformer.{i}.norm2", "norm2", "layer_norm"),
             ("visual.transformer.{i}.attn.to_qkv", "self_attn.qkv", "linear"),
             ("visual.transformer.{i}.attn.proj", "self_attn.o", "linear"),
             ("visual.transformer.{i}.mlp.0", "mlp.fc1", "linear"),
             ("visual.transformer.{i}.mlp.2", "mlp.fc2", "linear"))),
    "diffusers": ((("vision_model.embeddings.class_embedding", "class_embedding", "array"),
                   ("vision_model.embeddings.position_embedding.weight", "position_embedding", "array"),
                   ("vision_model.embeddings.patch_embedding.weight", "patch_embedding", "picture_patch"),
                   ("vision_model.pre_layrnorm", "pre_norm", "layer_norm")),
                  (("vision_model.encoder.layers.{i}.layer_norm1", "norm1", "layer_norm"),
                   ("vision_model.encoder.layers.{i}.layer_norm2", "norm2", "layer_norm"),
                   *((f"vision_model.encoder.layers.{{i}}.self_attn.{p}_proj", f"self_attn.qkv/{part}", "linear")
                     for part, p in enumerate("qkv")),
                   ("vision_model.encoder.layers.{i}.self_attn.out_proj", "self_attn.o", "linear"),
                   ("vision_model.encoder.layers.{i}.mlp.fc1", "mlp.fc1", "linear"),
                   ("vision_model.encoder.layers.{i}.mlp.fc2", "mlp.fc2", "linear"))),
}
_CLIP_UNREAD = {  # the last layer and what follows it, the text tower, fixed indices
    "wan": r"visual\.(transformer\.{last}\.|post_norm\.|head$).*|log_scale|textual\..*",
    "diffusers": r"vision_model\.(encoder\.layers\.{last}\.|post_layernorm\.|embeddings\.position_ids$).*"
                 r"|visual_projection\.weight|logit_scale|text_(model|projection)\..*",
}


def clip(layers: int) -> dict[str, TensorTable]:
    """{format: table} of CLIP's picture encoder, of which `layers` layers are read and one more is not."""
    return {form: TensorTable(tuple(_stacked(*_CLIP[form], layers)), _CLIP_UNREAD[form].replace("{last}", str(layers)))
            for form in FORMATS}


def _stacked(outside, layer, layers: int) -> Iterator[Entry]:
    """Entries of modules outside the layers and of every layer; "/i" after a native name means its i-th third."""
    yield from _entries(outside)
    for i in range(layers):
        for published, native, kind in layer:
            native, _, part = native.partition("/")
            yield from _entries([(published.format(i=i), f"blocks.{native}", kind)], layer=i,
                                part=(int(part), 3) if part else None)
