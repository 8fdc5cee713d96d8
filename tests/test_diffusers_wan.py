"""diffusers' WanTransformer3DModel is the oracle: its random weights are imported, and the bidirectional forward is ours."""

import jax
import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from configs import dreamzero_5b, dreamzero_14b
from launch.setup.experiment import Experiment
from world_model import functional
from world_model.families import get_family
from world_model.families.dreamzero.model import DreamZero, ForwardInputs
from world_model.families.dreamzero.weights import video_formats as wan_format
from world_model.weights import conversion

FORMS = {  # config, its changes: Wan 2.1's and 2.2's image-to-video, Wan 2.2's text-image-to-video
    "wan21_i2v": (dreamzero_14b, {}),
    "wan22_i2v": (dreamzero_14b, {"image_dim": 0}),
    "wan22_ti2v": (dreamzero_5b, {"image_dim": 0}),
}


@pytest.fixture(scope="module", params=FORMS)
def form(request, tmp_path_factory):
    """(sizes, diffusers' model, our parameters imported from it)."""
    base, changes = FORMS[request.param]
    config = base.get_config("debug")
    config.model.update({"dim": 48, "num_heads": 2, "ffn_dim": 64, "num_layers": 3, "text_dim": 16, "text_length": 512,
                         "freq_dim": 32} | changes)
    torch.manual_seed(0)
    spec = Experiment(config).model.spec
    model = WanTransformer3DModel.from_config(wan_format.diffusers_config(spec)).eval()
    for x in model.parameters():
        torch.nn.init.normal_(x, std=0.2)
    directory = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(directory / "source" / "transformer", max_shard_size="100KB")
    return spec, model, imported(config, directory / "source")


def imported(config, source):
    """What launch.import_weights writes, without writing it; action parts are zeros."""
    model = Experiment(config).model
    shapes = model.shapes
    opened = get_family("dreamzero").imports["diffusers"].open(source)
    plan = conversion.make_plan(opened, shapes, model.spec)

    def zeros(name):
        return np.zeros(shapes[name].shape, np.float32)

    found = conversion.pieces(opened, plan, shapes, model.spec.head_dim, zeros)
    return {name: x.whole() for name, x in found.items()}


def inputs(spec):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=(2, *shape)).astype(np.float32)

    frames = spec.layout.latent_frames
    time = np.tile(np.float32([[700], [33]]), (1, frames))
    if not spec.concat_first_frame:
        time[:, 0] = 0  # the first frame is given, token by token
    return {"noisy_latents": normal(frames, spec.latent_height, spec.latent_width, spec.latent_channels),
            "condition": normal(frames, spec.latent_height, spec.latent_width, spec.latent_channels + 4)
            if spec.concat_first_frame else None, "video_timestep": time, "text": normal(512, spec.text_dim),
            "image": normal(spec.image_tokens, spec.image_dim) if spec.image_dim else None}


@torch.no_grad()
def diffusers_forward(model, spec, parts):
    def tensor(x):
        return None if x is None else torch.from_numpy(x)

    joined = [x for x in (parts["noisy_latents"], parts["condition"]) if x is not None]
    time = parts["video_timestep"]
    time = time[:, 0] if spec.concat_first_frame else np.repeat(time, spec.tokens_per_frame, axis=1)
    out = model(tensor(np.moveaxis(np.concatenate(joined, -1), -1, 1)), tensor(time), tensor(parts["text"]),
                tensor(parts["image"]), return_dict=False)[0]
    return np.moveaxis(out.numpy(), 1, -1)


def test_the_same_bidirectional_forward(form):
    spec, model, params = form
    parts = inputs(spec)
    network = functional.abstract(DreamZero, spec)
    with jax.default_matmul_precision("highest"):
        found = np.asarray(jax.jit(lambda p, x: functional.bind(network, p)(x, no_clean="bidirectional").video)(
            params, ForwardInputs(**parts)))
    expected = diffusers_forward(model, spec, parts)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert np.abs(expected).std() > 0.1


def test_diffusers_loads_what_we_write(form, tmp_path):
    """No missing and no unexpected keys, and the same forward, bit for bit."""
    spec, model, params = form
    wan_format.write(tmp_path, "diffusers", spec, params, shard_bytes=100_000)
    loaded, info = WanTransformer3DModel.from_pretrained(tmp_path, subfolder="transformer", output_loading_info=True)
    assert not any(info.values()), info
    parts = inputs(spec)
    np.testing.assert_array_equal(diffusers_forward(loaded, spec, parts), diffusers_forward(model, spec, parts))
