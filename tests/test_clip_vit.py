"""CLIP's picture encoder beside transformers' on random weights, and the published layout."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from world_model.encoders import names as encoder_names
from world_model.encoders.clip_vit import MEAN, STD, ClipImage, ClipSpec

SPEC = ClipSpec(size=28, patch=7, dim=24, heads=3, layers=2)
MIDDLE = ClipSpec(size=112, patch=14, dim=256, heads=4, layers=7)  # 6 M weights


@pytest.mark.parametrize("spec", [SPEC, MIDDLE], ids=["tiny", "middle"])
@torch.no_grad()
def test_as_transformers(spec):
    """Features before the last layer; a frame squashed to a square by PyTorch's bicubic, up in one axis, down in the
    other."""
    torch.manual_seed(0)
    model = CLIPVisionModel(CLIPVisionConfig(
        hidden_size=spec.dim, intermediate_size=4 * spec.dim, num_hidden_layers=spec.layers + 1,
        num_attention_heads=spec.heads, image_size=spec.size, patch_size=spec.patch, hidden_act="gelu",
        layer_norm_eps=1e-5)).eval()
    for p in model.parameters():
        p.add_(1.5 / spec.dim**0.5 * torch.randn_like(p))
    tensors = {f"vision_model.{key.removeprefix('vision_model.')}": p.numpy() for key, p in model.state_dict().items()}
    table, image = encoder_names.clip(spec.layers)["diffusers"], ClipImage(spec)
    read = {e.published for e in table.entries}
    assert tensors.keys() == read | {key for key in tensors if re.fullmatch(table.unread, key)}
    params = {name: np.empty(x.shape, np.float32) for name, x in image.shapes().items()}
    for e in table.entries:
        e.slice_of(params[e.native])[...] = e.transform.to_native(tensors[e.published], 0)

    frames = np.random.default_rng(0).uniform(-1, 1, (2, 20, 44, 3)).astype(np.float32)
    pixels = torch.nn.functional.interpolate(torch.from_numpy(frames).permute(0, 3, 1, 2), (spec.size, spec.size),
                                             mode="bicubic", align_corners=False)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    pixels = (pixels * 0.5 + 0.5 - mean) / std
    expected = model(pixels, output_hidden_states=True).hidden_states[-2].numpy()
    features = jax.jit(image.encode)(params, frames)
    assert features.shape == (2, spec.tokens, spec.dim) and features.dtype == jnp.float32
    assert np.abs(features - expected).max() < 1e-4 * np.abs(expected).max()
    halved = {name: jnp.asarray(x, jnp.bfloat16) for name, x in params.items()}
    low = jax.jit(ClipImage(spec, dtype="bfloat16").encode)(halved, frames)
    assert low.dtype == jnp.float32 and 0 < np.abs(low - expected).mean() < 0.05 * np.abs(expected).mean()


def test_published_shapes():
    """Every name of the original file is read, with its shape, or known to be left alone."""
    listed = json.loads((Path(__file__).parent / "goldens/shapes/clip.json").read_text())
    table = encoder_names.clip(31)["wan"]
    shapes = encoder_names.published_shapes(table, ClipImage().shapes())
    assert {key: list(x.shape) for key, x in shapes.items()} == {
        key: shape for key, shape in listed.items() if not re.fullmatch(table.unread, key)}
    left = {re.sub(r"\.(weight|bias)$", "", key) for key in listed if re.fullmatch(table.unread, key)}
    assert {key for key in left if ".31." not in key} == {"log_scale", "visual.head", "visual.post_norm"}
    assert ClipImage().image_tokens == 257 and ClipImage().image_dim == 1280
