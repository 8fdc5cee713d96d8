"""LingBot-VLA's vision towers and language models beside transformers' own, of which their weights come, on random
weights."""

import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLTextModel,
)
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig, Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel, Qwen3VLVisionModel

from configs import lingbot_vla_4b, lingbot_vla_v2_6b
from launch.setup.experiment import Experiment
from tests import tiny_policy
from world_model.families.lingbot_vla.inputs import Example
from world_model.families.lingbot_vla.parity.jax_adapter import LingBotVLAAdapter
from world_model.families.lingbot_vla.weights import names as tables
from world_model.weights import names

pytestmark = pytest.mark.usefixtures("quick_compiles")
MIDDLE = {"dim": 256, "ffn_dim": 640, "num_layers": 6, "num_heads": 8, "kv_heads": 2, "head_width": 32,
          "vocab_size": 500, "vision_dim": 192, "vision_ffn_dim": 380, "vision_heads": 6, "vision_layers": 8}
SIZES = {"tiny": ({}, {}, 32), "middle": (
    MIDDLE | {"vision_window": 2, "vision_full_layers": (3, 7)},
    MIDDLE | {"rope_sections": (6, 5, 5), "vision_taps": (1, 3, 6), "vision_positions": 7}, 96)}


def spec_of(config_of, sizes: dict, side: int):
    config = config_of.get_config("debug")
    config.model.update(sizes)
    config.layout.update(height=side, width=side)
    return Experiment(config).model


def common(spec) -> tuple[dict, dict]:
    """What transformers' configs of both generations call alike: (text, vision)."""
    text = {"hidden_size": spec.dim, "intermediate_size": spec.ffn_dim, "num_hidden_layers": spec.num_layers,
            "num_attention_heads": spec.num_heads, "num_key_value_heads": spec.kv_heads, "rms_norm_eps": 1e-6,
            "vocab_size": spec.vocab_size, "head_dim": spec.head_dim, "max_position_embeddings": 1000}
    return text, {"hidden_size": spec.vision_dim, "intermediate_size": spec.vision_ffn_dim, "depth": spec.vision_layers,
                  "num_heads": spec.vision_heads, "patch_size": spec.vision_patch, "out_hidden_size": spec.dim}


def qwen2_5(spec):
    text, vision = common(spec)
    rope = {"rope_type": "default", "rope_theta": spec.rope_theta, "mrope_section": [0, 0, spec.head_dim // 2]}
    return (Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(
                **vision, window_size=2 * spec.vision_window * spec.vision_patch,
                fullatt_block_indexes=list(spec.vision_full_layers))),
            Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**text, rope_parameters=rope)), tables.QWEN2_5_VL)


def qwen3(spec):
    text, vision = common(spec)
    rope = {"rope_type": "default", "rope_theta": spec.rope_theta, "mrope_interleaved": True,
            "mrope_section": list(spec.rope_sections)}
    return (Qwen3VLVisionModel(Qwen3VLVisionConfig(
                **vision, num_position_embeddings=spec.vision_positions**2,
                deepstack_visual_indexes=list(spec.vision_taps))),
            Qwen3VLTextModel(Qwen3VLTextConfig(**text, rope_parameters=rope)), tables.QWEN3_VL)


def randomised(module, seed: int):
    """With weights under which every output depends on every input."""
    torch.manual_seed(seed)
    for name, p in module.named_parameters():
        p.copy_(torch.randn_like(p) * (0.2 if p.ndim == 1 else p[0].numel() ** -0.5) + (p.ndim == 1 and "norm" in name))
    return module.eval()


def adapter_of(model, vision, text, table, prefix: str) -> LingBotVLAAdapter:
    """Our model with their weights, and an action expert with any."""
    tensors = {f"visual.{key}": x.numpy() for key, x in vision.state_dict().items()}
    tensors |= {prefix + key: x.numpy() for key, x in text.state_dict().items()}
    shapes = {name: x for name, x in model.shapes.items() if name.startswith(("vision.", "token_", "language_"))}
    params = tiny_policy._weights(model.shapes, np.random.default_rng(0))
    return LingBotVLAAdapter(model.spec, params | names.from_published(tensors, shapes, model.spec.head_dim, table))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("version", [1, 2])
@torch.no_grad()
def test_as_transformers(version, size):
    """Views of several windows, one of them missing; the text model over the same prefix, mask and positions."""
    model = spec_of(lingbot_vla_4b if version == 1 else lingbot_vla_v2_6b, SIZES[size][version - 1], SIZES[size][2])
    spec, rng = model.spec, np.random.default_rng(1)
    vision, text, table = qwen2_5(spec) if version == 1 else qwen3(spec)
    vision, text = randomised(vision, 0), randomised(text, 1)
    adapter = adapter_of(model, vision, text, table, "model." if version == 1 else "language_model.")
    patches = rng.normal(size=(2, spec.views, spec.patches, spec.patch_values)).astype(np.float32)
    tokens, taps = adapter.look(patches[:, 0], spec.grid)
    found = vision(torch.from_numpy(patches[:, 0].reshape(-1, spec.patch_values)), torch.tensor([[1, *spec.grid]] * 2))
    close(tokens, found.pooler_output.reshape(tokens.shape))
    for tap, theirs in zip(taps, getattr(found, "deepstack_features", []), strict=True):
        close(tap, theirs.reshape(tap.shape))

    seen = Example(patches, np.array([[True] * 2, [True, False]]), rng.integers(0, spec.vocab_size, (2, spec.text_length)),
                   np.array([spec.text_length, 9]), np.zeros((2, spec.state_dim), np.float32))
    ours = adapter.language(seen)
    mask = torch.where(torch.from_numpy(np.array(ours.mask))[:, None], 0.0, torch.finfo(torch.float32).min)
    positions = torch.from_numpy(np.broadcast_to(ours.positions, (3, *ours.valid.shape)).copy())
    pictures = ours.taps.any(axis=(0, -1)) if len(ours.taps) else None
    more = {} if pictures is None else {
        "visual_pos_masks": torch.from_numpy(pictures),
        "deepstack_visual_embeds": [torch.from_numpy(np.array(tap[pictures])) for tap in ours.taps]}
    theirs = text(inputs_embeds=torch.from_numpy(np.array(ours.prefix)), attention_mask=mask, position_ids=positions,
                  use_cache=False, **more).last_hidden_state
    close(ours.output[ours.valid], theirs[torch.from_numpy(np.array(ours.valid))])


def close(ours, theirs) -> None:
    theirs = theirs.numpy()
    assert np.abs(theirs).max() > 0.5 and np.abs(ours - theirs).max() < 1e-4 * max(1, np.abs(theirs).max())
