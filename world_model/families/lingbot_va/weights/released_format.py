"""The released layout of LingBot-VA's weights: its directory is written, and its config is checked.

    transformer/config.json                                         diffusers-style, of class WanTransformer3DModel
    transformer/diffusion_pytorch_model.safetensors                 in one file, or
    transformer/diffusion_pytorch_model-0000i-of-0000N.safetensors  in shards, with their index
    wamax.json                                                      ours alone: sizes, layout, settings of rollouts

The released repositories (robbyant/lingbot-va-base and its like) hold a tokenizer, a text encoder and a VAE beside it,
which are not part of this. The config is that of Robbyant/lingbot-va at 58c2ae5, wan_va/modules/model.py. A Mixture of
Transformers is laid out likewise, as a class of its own. Tensors are read by world_model/weights/conversion.py.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from world_model import kinds
from world_model.batch import Layout
from world_model.families.lingbot_va.layout import LingBotVASpec
from world_model.families.lingbot_va.mixture import LingBotVAMoTSpec
from world_model.families.lingbot_va.weights.names import LINGBOT_VA, LINGBOT_VA_MOT
from world_model.families.wan.spec import PATCH
from world_model.weights import names, safetensors_io
from world_model.weights.tensor_files import WeightsError, read_json

FOLDER, STEM = "transformer", "diffusion_pytorch_model"
SETTINGS = "wamax.json"


_SETTINGS = kinds.fields({"family": kinds.text, "spec": kinds.fields({}, required=("layout",)), "dtype": kinds.text,
                          "rollout": kinds.MAP}, required=("family", "spec", "rollout"))


class Variant(NamedTuple):
    """One of the two architectures."""

    spec: type[LingBotVASpec]
    table: names.NameTable
    class_name: str  # in config.json
    sizes: tuple[str, ...] = ()  # fields of the spec that config.json holds beside the released keys


VARIANTS = {  # by family
    "lingbot_va": Variant(LingBotVASpec, LINGBOT_VA, "WanTransformer3DModel"),
    "lingbot_va_mot": Variant(LingBotVAMoTSpec, LINGBOT_VA_MOT, "WamaxLingBotVAMoT",
                              ("action_stream_dim", "action_ffn_dim")),
}


def family_of(spec: LingBotVASpec) -> str:
    """The family of a spec: its key in `VARIANTS`."""
    return next(family for family, variant in VARIANTS.items() if variant.spec is type(spec))


def write(directory: Path, spec: LingBotVASpec, params: Mapping[str, jax.Array], *, rollout: Mapping | None = None,
          dtype=np.float32, shard_bytes: int = safetensors_io.SHARD_BYTES) -> None:
    """Writes weights, tensor by tensor, and config.json under directory/transformer; wamax.json beside it.

    rollout: settings of torch/sampler.py's LingBotVATorchSampler that these weights are meant for.
    """
    folder = Path(directory) / FOLDER
    folder.mkdir()
    family = family_of(spec)
    tensors = ((name, x.astype(dtype))
               for name, x in names.to_published(params, spec.head_dim, VARIANTS[family].table))
    safetensors_io.write(folder, tensors, shard_bytes, stem=STEM)
    (folder / "config.json").write_text(json.dumps(config(spec), indent=1) + "\n")
    settings = {"family": family, "spec": dataclasses.asdict(spec) | {"layout": spec.layout.as_json()},
                "rollout": dict(rollout or {})}
    if dtype != np.float32:
        settings["dtype"] = np.dtype(dtype).name
    (Path(directory) / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")


def read_settings(directory: str | Path) -> tuple[LingBotVASpec, dict, str]:
    """Returns (sizes, settings of the sampler, dtype of the weights) of what `write` wrote. Raises WeightsError where
    wamax.json is not there or is another family's."""
    path = Path(directory) / SETTINGS
    found = read_json(path, _SETTINGS, f"{directory} is no export of a LingBot-VA model")
    if found["family"] not in VARIANTS:
        raise WeightsError(f"{path}: family = {found['family']!r}: expected one of {sorted(VARIANTS)}")
    layout = kinds.make(Layout, found["spec"]["layout"], f"{path}: spec: layout")
    spec = kinds.make(VARIANTS[found["family"]].spec, found["spec"], f"{path}: spec", layout=layout)
    return spec, found["rollout"], found.get("dtype", "float32")


def config(spec: LingBotVASpec) -> dict:
    """What the reference's constructor reads."""
    variant = VARIANTS[family_of(spec)]
    return {"_class_name": variant.class_name, "patch_size": [1, PATCH, PATCH], "num_attention_heads": spec.num_heads,
            "attention_head_dim": spec.head_dim, "in_channels": spec.latent_channels,
            "out_channels": spec.latent_channels, "action_dim": spec.action_dim, "text_dim": spec.text_dim,
            "freq_dim": spec.freq_dim, "ffn_dim": spec.ffn_dim, "num_layers": spec.num_layers,
            **{name: getattr(spec, name) for name in variant.sizes}, "cross_attn_norm": True, "eps": 1e-6,
            "rope_max_seq_len": 1024, "pos_embed_seq_len": None, "attn_mode": "torch"}


def check_config(folder: Path, spec: LingBotVASpec) -> None:
    """Raises WeightsError, naming file, key, expected and found, where folder/config.json is missing, is of another
    model or has other sizes than `spec`."""
    path, expected_class = folder / "config.json", VARIANTS[family_of(spec)].class_name
    found = read_json(path, kinds.MAP, f"a LingBot-VA release has its network under {FOLDER}/")
    if found.get("_class_name", expected_class) != expected_class:
        raise WeightsError(f"{path}: expected the class {expected_class}, found {found['_class_name']}")
    if found.get("pos_embed_seq_len") is not None:
        raise WeightsError(f"{path}: pos_embed_seq_len = {found['pos_embed_seq_len']} asks for a table of whole "
                           "positions, but actions stand at fractional times; it must be null")
    free = ("_class_name", "rope_max_seq_len", "pos_embed_seq_len", "attn_mode")
    for key, expected in config(spec).items():
        if key not in free and found.get(key) != expected:
            raise WeightsError(f"{path}: {key}: expected {expected} from the model's config, "
                               f"found {found.get(key, 'nothing')}")
