"""The released layout of LingBot-VA's weights (facts/lingbot_va.md, sections 1 and 10), read and written.

    transformer/config.json                                         diffusers-style, of class WanTransformer3DModel
    transformer/diffusion_pytorch_model.safetensors                 in one file, or
    transformer/diffusion_pytorch_model-0000i-of-0000N.safetensors  in shards, with their index
    wamax.json                                                      ours alone: sizes, layout, settings of rollouts

Weights are read as float32, whatever they are stored in. The released repositories hold a tokenizer, a text encoder
and a VAE beside it, which are not part of this.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from world_model import functional
from world_model.batch import Layout
from world_model.families.lingbot_va import LingBotVA
from world_model.families.lingbot_va_layout import LingBotVASpec
from world_model.families.spec import PATCH
from world_model.interop import names, safetensors_io
from world_model.interop.lingbot_va_names import LINGBOT_VA
from world_model.interop.safetensors_io import Weights, WeightsError

FOLDER, STEM, CLASS = "transformer", "diffusion_pytorch_model", "WanTransformer3DModel"
OURS = "wamax.json"


def write(directory: Path, spec: LingBotVASpec, params: Mapping[str, jax.Array], *, rollout: Mapping | None = None,
          shard_bytes: int = safetensors_io.SHARD_BYTES) -> None:
    """Writes weights, tensor by tensor, and config.json under directory/transformer; wamax.json beside it.

    rollout: settings of torch_lingbot_va_rollout.Rollout that these weights are meant for.
    """
    folder = Path(directory) / FOLDER
    folder.mkdir()
    safetensors_io.write(folder, names.to_reference(params, spec.head_dim, LINGBOT_VA), shard_bytes, stem=STEM)
    (folder / "config.json").write_text(json.dumps(config(spec), indent=1) + "\n")
    ours = {"spec": dataclasses.asdict(spec), "rollout": dict(rollout or {})}
    (Path(directory) / OURS).write_text(json.dumps(ours, indent=1) + "\n")


def read_settings(directory: str | Path) -> tuple[LingBotVASpec, dict]:
    """(sizes, settings of rollouts) of what `write` wrote. Raises WeightsError where wamax.json is not there or not
    of this family."""
    path = Path(directory) / OURS
    if not path.exists():
        raise WeightsError(f"{path}: missing; {directory} is no export of a LingBot-VA model")
    ours = json.loads(path.read_text())
    return LingBotVASpec(**ours["spec"] | {"layout": Layout(**ours["spec"]["layout"])}), ours["rollout"]


def config(spec: LingBotVASpec) -> dict:
    """What the reference's constructor reads."""
    return {"_class_name": CLASS, "patch_size": [1, PATCH, PATCH], "num_attention_heads": spec.num_heads,
            "attention_head_dim": spec.head_dim, "in_channels": spec.latent_channels,
            "out_channels": spec.latent_channels, "action_dim": spec.action_dim, "text_dim": spec.text_dim,
            "freq_dim": spec.freq_dim, "ffn_dim": spec.ffn_dim, "num_layers": spec.num_layers,
            "cross_attn_norm": True, "eps": 1e-6, "rope_max_seq_len": 1024, "pos_embed_seq_len": None,
            "attn_mode": "torch"}


def read(directory: str | Path, spec: LingBotVASpec) -> dict[str, np.ndarray]:
    """Our flat parameters from a released directory.

    Raises WeightsError where config.json is missing, of another model or of other sizes than `spec`, naming the key;
    ValueError where names or shapes do not fit.
    """
    folder = Path(directory) / FOLDER
    check_config(folder / "config.json", spec)
    shapes = functional.parameters(functional.abstract(LingBotVA, spec))
    return names.from_reference(Weights(folder, STEM), shapes, spec.head_dim, LINGBOT_VA)


def check_config(path: Path, spec: LingBotVASpec) -> None:
    """Raises WeightsError naming file, key, expected and found."""
    if not path.exists():
        raise WeightsError(f"{path}: missing; a LingBot-VA release has its network under {FOLDER}/")
    found = json.loads(path.read_text())
    if found.get("_class_name", CLASS) != CLASS:
        raise WeightsError(f"{path}: expected the class {CLASS}, found {found['_class_name']}")
    if found.get("pos_embed_seq_len") is not None:
        raise WeightsError(f"{path}: pos_embed_seq_len = {found['pos_embed_seq_len']} asks for a table of whole "
                           "positions, but actions stand at fractional times; it must be null")
    free = ("_class_name", "rope_max_seq_len", "pos_embed_seq_len", "attn_mode")
    for key, expected in config(spec).items():
        if key not in free and found.get(key) != expected:
            raise WeightsError(f"{path}: {key}: expected {expected} from the model's config, "
                               f"found {found.get(key, 'nothing')}")
