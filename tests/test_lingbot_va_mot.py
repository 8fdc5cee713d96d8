"""The Mixture of Transformers: equal weights give the shared network; its own cache; how the action stream starts."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from launch import parity
from world_model import functional
from world_model.families import make_model
from world_model.families.lingbot_va import cached
from world_model.families.lingbot_va.forward_inputs import ForwardInputs
from world_model.families.lingbot_va.layout import Modality, frame_rotary
from world_model.families.lingbot_va.mixture import LingBotVAMoT, LingBotVAMoTSpec, copy_stream, interpolate
from world_model.layers.transformer import Layer
from world_model.parallel.axes import axes_of

GOLDEN = Path(__file__).parent / "goldens/lingbot_va_tiny.npz"


@pytest.fixture(scope="module")
def shared():
    golden = parity.read(GOLDEN)
    def one(x):
        return jnp.asarray(x[:1])
    inputs = ForwardInputs(
        noisy_latents=one(golden.video("noise_video")), video_timestep=one(golden.inputs["in/video_timesteps"]),
        clean_latents=one(golden.video("latents")), clean_timestep=one(golden.inputs["in/hist_timesteps"]),
        noisy_actions=one(golden.actions("noise_action")), action_timestep=one(golden.inputs["in/action_timesteps"]),
        clean_actions=one(golden.actions("actions")), text=one(golden.inputs["in/text_emb"]),
        chunk_frames=jnp.int32(2), window_blocks=jnp.int32(3), frame_valid=jnp.ones((1, 5), bool).at[:, 4].set(False))
    return golden.adapter("jax"), inputs


def spec_of(adapter, width: int, ffn: int, **options) -> LingBotVAMoTSpec:
    fields = {f.name: getattr(adapter.spec, f.name) for f in dataclasses.fields(adapter.spec)}
    return LingBotVAMoTSpec(**fields, action_stream_dim=width, action_ffn_dim=ffn, **options)


def test_equal_weights_in_both_streams_give_the_shared_network(shared):
    """The oracle is held to the reference's numbers (tests/test_parity.py)."""
    adapter, inputs = shared
    model, params = functional.abstract(LingBotVAMoT, spec_of(adapter, 96, 192)), {}
    for name, shape in functional.parameters(model).items():
        source = name.replace("block.video", "block").replace("block.action", "block").replace("blocks.video", "blocks")
        source = source.replace("blocks.action", "blocks").replace("action_text", "text").replace("action_head_m", "head_m")
        params[name] = adapter.params[source]
        assert params[name].shape == shape.shape
    def run(model, params):
        return jax.jit(lambda p: functional.bind(model, p)(inputs))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), run(model, params), run(adapter.model, adapter.params))


@pytest.fixture(scope="module")
def narrow(shared):
    """A narrow action stream, every parameter random."""
    model = functional.abstract(LingBotVAMoT, spec_of(shared[0], 48, 80))
    rng = np.random.default_rng(0)
    return model, {k: jnp.asarray(0.15 * rng.normal(size=v.shape) + k.endswith("scale"), jnp.float32)
                   for k, v in functional.parameters(model).items()}


def test_cached_passes_equal_the_training_forward(shared, narrow):
    (adapter, inputs), (model, params) = shared, narrow
    n = adapter.spec.actions_per_frame
    whole = inputs._replace(window_blocks=jnp.int32(64), frame_valid=None, clean_timestep=0 * inputs.clean_timestep)
    trained = jax.jit(lambda p: functional.bind(model, p)(whole))(params)
    def bound(f):
        return jax.jit(lambda *args: f(functional.bind(model, params), *args))
    video, action = bound(cached.video_pass), bound(cached.action_pass)
    context = bound(LingBotVAMoT.encode_context)(inputs.text)
    ring, clean = cached.make_ring(model.spec, 1, 2, 4), jnp.zeros((1, 2))
    for chunk in range(2):
        frames, own = slice(2 * chunk, 2 * chunk + 2), slice(2 * chunk * n, (2 * chunk + 2) * n)
        rotary = [frame_rotary(model.spec, modality, range(frames.start, frames.stop)) for modality in Modality]
        episode = cached.Episode(context, ring, chunk)
        out, _ = video(episode, inputs.noisy_latents[:, frames], inputs.video_timestep[:, frames], rotary[0])
        np.testing.assert_allclose(out, trained.video[:, frames], atol=2e-5)
        _, ring = video(episode, inputs.clean_latents[:, frames], clean, rotary[0])
        episode = episode._replace(ring=ring)
        out, _ = action(episode, inputs.noisy_actions[:, own], inputs.action_timestep[:, frames], rotary[1])
        np.testing.assert_allclose(out, trained.action[:, own], atol=2e-5)
        _, ring = action(episode, inputs.clean_actions[:, own], clean, rotary[1])


def test_interpolation_is_linear_between_cell_middles_and_keeps_the_variance():
    ramp = np.arange(8, dtype=np.float32)
    np.testing.assert_allclose(interpolate(jnp.asarray(ramp), (4,), False), [0.5, 2.5, 4.5, 6.5])
    kernel = jnp.asarray(np.outer(ramp, np.ones(3)), jnp.float32)
    np.testing.assert_allclose(interpolate(kernel, (2, 3), True), 2 * np.outer([1.5, 5.5], np.ones(3)))
    np.testing.assert_array_equal(interpolate(kernel, (8, 3), True), kernel)


def test_the_action_stream_starts_as_the_video_stream(shared):
    params = jax.jit(lambda: functional.parameters(LingBotVAMoT(spec_of(shared[0], 48, 80), rngs=nnx.Rngs(0))))()
    for name in ("blocks.{}.self_attn.q.kernel", "final_block.{}.mlp.fc1.kernel"):
        video, action = (params[name.format(stream)] for stream in ("video", "action"))
        np.testing.assert_allclose(action, interpolate(video, action.shape, True), rtol=1e-5)
    modulation = interpolate(params["blocks.video.modulation"], (1, 6, 48), False)
    np.testing.assert_allclose(params["blocks.action.modulation"], modulation, rtol=1e-5)


def test_an_unscaled_copy_and_a_random_start():
    wide = Layer(32, 64, 2, False, 1.0, nnx.Rngs(0))
    narrow = Layer(16, 32, 2, False, 1.0, nnx.Rngs(1), head_dim=16)
    before = narrow.mlp.fc1.kernel[...]
    assert np.abs(before - interpolate(wide.mlp.fc1.kernel[...], before.shape, True)).max() > 0.05  # random
    for scaled, factor in ((False, 1), (True, 2**0.5)):
        copy_stream(wide, narrow, scaled=scaled)
        np.testing.assert_allclose(narrow.mlp.fc1.kernel[...], factor * interpolate(
            wide.mlp.fc1.kernel[...], before.shape, False), rtol=1e-5)
        np.testing.assert_allclose(narrow.self_attn.o.kernel[...], interpolate(
            wide.self_attn.o.kernel[...], (32, 16), False), rtol=1e-5)  # as many inputs as before


def test_sizes_axes_and_names(shared, narrow):
    with pytest.raises(ValueError, match="action_stream_dim = 50 is no multiple of the head width 24"):
        spec_of(shared[0], 50, 80)
    with pytest.raises(ValueError, match="action_init = 'zeros'"):
        spec_of(shared[0], 48, 80, action_init="zeros")
    axes = axes_of(functional.parameters(narrow[0]), LingBotVAMoT.param_axes)
    assert axes["blocks.action.self_attn.q.kernel"] == ("layers", "embed", "heads")
    assert axes["final_block.video.mlp.fc2.kernel"] == ("mlp", "embed")


def test_counted_work_is_that_of_two_streams():
    sizes = dict(layout=parity.read(GOLDEN).spec.layout, latent_height=4, latent_width=6, dim=96, ffn_dim=192, num_heads=4,
                 num_layers=3, freq_dim=32, latent_channels=12, text_dim=40, text_length=12, action_dim=7)
    one = make_model("lingbot_va", **sizes).training_flops
    two = make_model("lingbot_va_mot", **sizes, action_stream_dim=96, action_ffn_dim=192).training_flops
    for part in ("self_attention_projections", "mlp", "cross_attention"):
        assert two[part] + two[f"action_{part}"] == one[part]
    assert two["self_attention"] == one["self_attention"]
    half = make_model("lingbot_va_mot", **sizes, action_stream_dim=48, action_ffn_dim=96).training_flops
    assert 4 * half["action_mlp"] == two["action_mlp"]
    assert 2 * half["action_self_attention_projections"] == two["action_self_attention_projections"]
