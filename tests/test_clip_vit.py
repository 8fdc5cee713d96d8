"""CLIP's picture encoder beside transformers' on random weights, and the published layout."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from world_model.encoders.clip_vit import MEAN, STD, ClipImage, ClipSpec
from world_model.interop import encoder_names

SPEC = ClipSpec(size=28, patch=7, dim=24, heads=3, layers=2)


@torch.no_grad()
def test_as_transformers():
    """Features before the last block; a frame squashed to a square by PyTorch's bicubic, up in one axis, down in the
    other."""
    torch.manual_seed(0)
    model = CLIPVisionModel(CLIPVisionConfig(
        hidden_size=24, intermediate_size=96, num_hidden_layers=3, num_attention_heads=3, image_size=28, patch_size=7,
        hidden_act="gelu", layer_norm_eps=1e-5)).eval()
    for p in model.parameters():
        p.add_(0.3 * torch.randn_like(p))
    theirs = {f"vision_model.{key.removeprefix('vision_model.')}": p.numpy() for key, p in model.state_dict().items()}
    table, image = encoder_names.clip(SPEC.layers)["diffusers"], ClipImage(SPEC)
    read = {e.theirs for e in table.entries}
    assert theirs.keys() == read | {key for key in theirs if re.fullmatch(table.unread, key)}
    params = {name: np.empty(x.shape, np.float32) for name, x in image.shapes().items()}
    for e in table.entries:
        e.of(params[e.ours])[...] = e.transform.to_ours(theirs[e.theirs], 0)

    frames = np.random.default_rng(0).uniform(-1, 1, (2, 20, 44, 3)).astype(np.float32)
    pixels = torch.nn.functional.interpolate(torch.from_numpy(frames).permute(0, 3, 1, 2), (28, 28), mode="bicubic",
                                             align_corners=False)
    column = lambda values: torch.tensor(values)[:, None, None]
    pixels = (pixels * 0.5 + 0.5 - column(MEAN)) / column(STD)
    expected = model(pixels, output_hidden_states=True).hidden_states[-2].numpy()
    features = jax.jit(image.encode)(params, frames)
    assert features.shape == (2, 17, 24) and features.dtype == jnp.float32
    assert np.abs(features - expected).max() < 1e-4 * np.abs(expected).max()


def test_published_shapes():
    """Every name of the original file is read, with its shape, or known to be left alone."""
    listed = json.loads((Path(__file__).parent / "goldens/shapes/clip.json").read_text())
    table = encoder_names.clip(31)["wan"]
    shapes = encoder_names.their_shapes(table, ClipImage().shapes())
    assert {key: list(x.shape) for key, x in shapes.items()} == {
        key: shape for key, shape in listed.items() if not re.fullmatch(table.unread, key)}
    left = {re.sub(r"\.(weight|bias)$", "", key) for key in listed if re.fullmatch(table.unread, key)}
    assert {key for key in left if ".31." not in key} == {"log_scale", "visual.head", "visual.post_norm"}
    assert ClipImage().image_tokens == 257 and ClipImage().image_dim == 1280
