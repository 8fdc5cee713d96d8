"""DreamZero: sizes, leakage, video-only independence, cached rollout against training, parallel meshes."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import goldens_io
from world_model import functional
from world_model.batch import Layout
from world_model.diffusion.inpainting import Inpainting
from world_model.diffusion.solvers import make_solver
from world_model.families import make_model
from world_model.families.dreamzero import cached
from world_model.families.dreamzero.model import DreamZero, ForwardInputs
from world_model.families.dreamzero.sampler import DreamZeroSampler
from world_model.families.dreamzero.weights.names import DREAMZERO
from world_model.families.wan.inputs import Conditions
from world_model.parallel import sharding
from world_model.weights import names

FULL = dict(layout=Layout(33, 352, 640, 2, 24, 1), freq_dim=256, text_dim=4096, text_length=512, image_dim=1280,
            image_tokens=257, action_dim=32, state_dim=64, action_hidden_dim=1024)
SIZES = {
    "14b": dict(latent_height=44, latent_width=80, dim=5120, ffn_dim=13824, num_heads=40, num_layers=40,
                latent_channels=16, concat_first_frame=True, **FULL),
    "5b": dict(latent_height=10, latent_width=20, dim=3072, ffn_dim=14336, num_heads=24, num_layers=30,
               latent_channels=48, concat_first_frame=False, **FULL),
}


@pytest.mark.parametrize("size,count", [("14b", 16_484_292_448), ("5b", 5_606_692_832)])
def test_full_size_has_exactly_the_published_parameters(size, count):
    shapes = make_model("dreamzero", **SIZES[size]).shapes
    assert sum(int(np.prod(x.shape)) for x in shapes.values()) == count
    listed = json.loads((Path(__file__).parent / f"goldens/shapes/dreamzero_{size}.json").read_text())
    ours = {k: list(v.shape) for k, v in names.published_shapes(shapes, 128, DREAMZERO).items()}
    assert ours == listed


@pytest.fixture(scope="module", params=["i2v", "ti2v"])
def golden(request):
    z, spec, params = goldens_io.load(request.param)
    return spec, params, goldens_io.inputs(z)


def test_no_leakage(golden):
    """Exact-zero gradients of each block's outputs with respect to everything that it may not see."""
    spec, params, inputs = golden
    model, n = functional.abstract(DreamZero, spec), spec.layout.frames_per_block
    video, action = inputs.noisy_latents, inputs.noisy_actions
    fields = ("clean_latents", "noisy_latents", "noisy_actions", "state")

    frame_block = np.array([0 if f == 0 else 1 + (f - 1) // n for f in range(video.shape[1])])
    action_block = 1 + np.arange(action.shape[1]) // spec.layout.actions_per_block

    def outputs(block, parts):
        out = functional.bind(model, params)(inputs._replace(**parts))
        frames = jnp.where((frame_block == block)[:, None, None, None], out.video, 0)
        return frames.sum() + jnp.where((action_block == block)[:, None], out.action, 0).sum()

    gradients = jax.jit(jax.grad(outputs, argnums=1))
    state_block = 1 + np.arange(inputs.state.shape[1]) // spec.layout.states_per_block
    for block in range(spec.layout.num_blocks + 1):
        found = gradients(block, {name: getattr(inputs, name) for name in fields})
        sees = {"clean_latents": frame_block < block, "noisy_latents": frame_block == block,
                "noisy_actions": action_block == block, "state": state_block == block}
        for name, visible in sees.items():
            size = np.abs(np.asarray(found[name])).reshape(*found[name].shape[:2], -1).max(axis=(0, 2))
            assert (size[~visible] == 0).all(), (block, name, size)
            assert (size[visible] > 0).all(), (block, name, size)


def test_video_only_is_independent_of_the_action_slots(golden):
    """By a single bit, also where a clip shares its batch with robot data."""
    spec, params, inputs = golden
    batch = inputs.text.shape[0]
    valid = jnp.zeros((batch, inputs.noisy_actions.shape[1]), bool).at[1:].set(True)
    run = jax.jit(lambda **parts: functional.bind(functional.abstract(DreamZero, spec), params)(
        inputs._replace(action_valid=valid, **parts)))
    plain = run(noisy_actions=inputs.noisy_actions, state=inputs.state)
    other = run(noisy_actions=inputs.noisy_actions.at[0].set(1e3), state=inputs.state.at[0].add(-7.0))
    np.testing.assert_array_equal(plain.video[0], other.video[0])
    none = jax.jit(lambda i: functional.bind(functional.abstract(DreamZero, spec), params)(i))(
        inputs._replace(noisy_actions=None, action_timestep=None, state=None))
    np.testing.assert_allclose(plain.video[0], none.video[0], atol=1e-5)


def test_cached_rollout_equals_training_forward(golden):
    spec, params, inputs = golden
    model, n, k = functional.abstract(DreamZero, spec), 2, spec.layout.actions_per_block
    def bound(f):
        return functools.partial(jax.jit(lambda p, *args: f(functional.bind(model, p), *args)), params)
    prefill, denoise = bound(cached.prefill), bound(cached.denoise)
    trained = bound(lambda m, i: m(i))(inputs)
    context = bound(cached.encode_context)(inputs.text, inputs.image)
    cache = cached.empty_cache(spec, inputs.text.shape[0])
    def cut(x, block):
        return None if x is None else x[:, :1] if block == 0 else x[:, 1 + (block - 1) * n:1 + block * n]
    for block in range(spec.layout.num_blocks + 1):
        if block:
            own = slice((block - 1) * k, block * k)
            noisy = cached.Noisy(cut(inputs.noisy_latents, block), cut(inputs.video_timestep, block),
                                 inputs.noisy_actions[:, own], inputs.action_timestep[:, own],
                                 inputs.state[:, block - 1:block])
            out = denoise(cache, context, noisy, cut(inputs.condition, block), block)
            np.testing.assert_allclose(out.video, cut(trained.video, block), atol=1e-5)
            np.testing.assert_allclose(out.action, trained.action[:, own], atol=1e-5)
        if block < spec.layout.num_blocks:
            cache = prefill(cache, context, cut(inputs.clean_latents, block), cut(inputs.condition, block), block)


def test_rollout_history_decides_the_cache():
    """Own predictions as history give the imagined rollout; other history changes later blocks alone."""
    z, spec, params = goldens_io.load("i2v")
    inputs = goldens_io.inputs(z)
    rollout = DreamZeroSampler(functional.abstract(DreamZero, spec), solver="euler", steps=2)
    given = Conditions(inputs.clean_latents[:, :1], inputs.text, inputs.state, inputs.condition, inputs.image)
    keys = jax.random.split(jax.random.key(0), inputs.text.shape[0])
    imagined = rollout(params, given, keys)
    np.testing.assert_allclose(rollout(params, given, keys, history=imagined.latents).latents, imagined.latents,
                               atol=1e-6)
    real = rollout(params, given, keys, history=inputs.clean_latents)
    np.testing.assert_array_equal(real.latents[:, :3], imagined.latents[:, :3])
    assert np.abs(real.latents[:, 3:] - imagined.latents[:, 3:]).max() > 1e-3


def test_guidance_extrapolates_from_the_unconditional_branch():
    """Of the video and of the actions, each by its own scale; 1 leaves alone; on two devices the same."""
    z, spec, params = goldens_io.load("ti2v")
    inputs = goldens_io.inputs(z)
    given = Conditions(inputs.clean_latents[:, :1], inputs.text, inputs.state, None, inputs.image, 0 * inputs.text)
    keys = jax.random.split(jax.random.key(0), 1)
    make = functools.partial(DreamZeroSampler, functional.abstract(DreamZero, spec), solver="euler", steps=1)
    plain = make()(params, given, keys)
    near_one = make(guidance=1 + 1e-6)(params, given, keys)
    strong = make(guidance=3.0, action_guidance=2.0)(params, given, keys)
    unconditional = make()(params, given._replace(text=0 * inputs.text), keys)
    np.testing.assert_allclose(near_one.latents, plain.latents, atol=1e-4)
    np.testing.assert_allclose(near_one.actions[:, :4], plain.actions[:, :4], atol=1e-5)
    first = slice(1, 3)  # before any prediction has entered the cache, one Euler step is linear in the velocity
    np.testing.assert_allclose(strong.latents[:, first], 3 * plain.latents[:, first]
                               - 2 * unconditional.latents[:, first], atol=1e-4)
    np.testing.assert_allclose(strong.actions[:, :4], 2 * plain.actions[:, :4] - unconditional.actions[:, :4], atol=1e-4)
    spread = make(guidance=3.0, action_guidance=2.0, branch_devices=2)
    apart = spread(spread.placed(params), given, keys)
    np.testing.assert_allclose(apart.latents, strong.latents, atol=1e-4)
    np.testing.assert_allclose(apart.actions, strong.actions, atol=1e-4)
    context = spread.context(params, spread.branches(inputs.text, 0 * inputs.text), spread.both(inputs.image))
    keys = jax.tree.leaves(context.final)[0]
    assert len(keys) == 2 and keys.sharding.shard_shape(keys.shape)[0] == 1  # each device holds its branch
    with pytest.raises(ValueError, match="without guidance there is one branch"):
        make(branch_devices=2)
    with pytest.raises(ValueError, match="branch_devices = 3: guidance has 2 branches"):
        make(guidance=3.0, branch_devices=3)


def test_video_alone(golden):
    """Without a state no action is predicted, and what is imagined is that of a clip without actions."""
    spec, params, inputs = golden
    given = Conditions(inputs.clean_latents[:, :1], inputs.text, None, inputs.condition, inputs.image)
    keys = jax.random.split(jax.random.key(0), inputs.text.shape[0])
    rollout = DreamZeroSampler(functional.abstract(DreamZero, spec), solver="euler", steps=1)
    alone = rollout(params, given, keys, history=inputs.clean_latents)
    noise = [rollout.noise(keys, block + 1)[0] for block in range(spec.layout.num_blocks)]
    sigma, time = (float(x[0]) for x in (make_solver("euler", 1).sigmas, make_solver("euler", 1).timesteps))
    noisy = jnp.concatenate([inputs.noisy_latents[:, :1], *noise], axis=1)
    trained = jax.jit(lambda i: functional.bind(functional.abstract(DreamZero, spec), params)(i))(inputs._replace(
        noisy_latents=noisy, video_timestep=jnp.full(noisy.shape[:2], time), noisy_actions=None, action_timestep=None,
        state=None))
    assert alone.actions is None
    np.testing.assert_allclose(alone.latents[:, 1:], (noisy - sigma * trained.video)[:, 1:], atol=1e-4)


def mesh_shapes():
    """Each axis alone or beside the others; a compilation each."""
    return [dict(fsdp=1), dict(fsdp=8), dict(data=2, fsdp=2, tensor=2), dict(tensor=2, context=2, fsdp=2),
            dict(context=8)]  # over eight, four heads: keys go round


# XLA's fusion emitters take 3/4 of this test's compilation. From jax 0.11 on they cannot be switched off.
PLAIN_FUSIONS = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}


def test_loss_and_gradients_do_not_depend_on_the_mesh():
    model = make_model("dreamzero", layout=Layout(17, 32, 32, 2, 8, 1), latent_height=4, latent_width=4, dim=32,
                       ffn_dim=64, num_heads=4, num_layers=3, freq_dim=16, latent_channels=16, concat_first_frame=True,
                       text_dim=16, text_length=8, image_dim=24, image_tokens=8, action_dim=4, state_dim=4,
                       action_hidden_dim=16)
    params = model.init_params(jax.random.key(0))
    params = {k: v + 0.05 * jax.random.normal(jax.random.fold_in(jax.random.key(1), i), v.shape)
              for i, (k, v) in enumerate(sorted(params.items()))}
    batch = example(model.spec, 8)
    results = []
    for shape in mesh_shapes():
        devices = jax.devices()[:int(np.prod(list(shape.values())))]
        mesh = sharding.make_mesh(**{"fsdp": 1, **shape}, devices=devices)
        placed = sharding.shardings(model.axes(), {k: v.shape for k, v in params.items()}, mesh)
        with jax.set_mesh(mesh):
            step = jax.jit(jax.value_and_grad(lambda p, b: mean_square(model, p, b)),
                           in_shardings=(placed, sharding.batch_sharding(mesh)),
                           compiler_options=PLAIN_FUSIONS)
            results.append(jax.device_get(step(jax.device_put(params, placed),
                                               jax.device_put(batch, sharding.batch_sharding(mesh)))))
    loss, gradients = results[0]
    assert loss > 0.1
    for other_loss, other in results[1:]:
        np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
        for name, value in gradients.items():
            np.testing.assert_allclose(other[name], value, atol=2e-5 * max(1.0, np.abs(value).max()), err_msg=name)


def example(spec, batch):
    """Random inputs of a training forward, one sample of them video-only, and targets."""
    rng = np.random.default_rng(0)
    def f(*shape):
        return rng.normal(size=(batch, *shape)).astype(np.float32)
    frames, n = spec.layout.latent_frames, spec.layout.num_actions
    video = (frames, spec.latent_height, spec.latent_width, spec.latent_channels)
    inputs = dict(noisy_latents=f(*video), video_timestep=np.abs(f(frames)) * 300, text=f(spec.text_length, spec.text_dim),
                  clean_latents=f(*video), condition=f(*video[:-1], 4 + spec.latent_channels),
                  image=f(spec.image_tokens, spec.image_dim), noisy_actions=f(n, spec.action_dim),
                  action_timestep=np.abs(f(n)) * 300, state=f(spec.layout.num_states, spec.state_dim),
                  frame_valid=np.ones((batch, frames), bool),
                  action_valid=np.arange(batch)[:, None] > np.zeros((1, n)))
    return {"inputs": inputs, "video": f(*video), "action": f(n, spec.action_dim)}


def mean_square(model, params, batch):
    out = functional.bind(model.module, params)(ForwardInputs(**batch["inputs"]))
    return jnp.square(out.video - batch["video"]).mean() + jnp.square(out.action - batch["action"]).mean()


@pytest.mark.parametrize("change,match", [
    (dict(dim=30), "num_heads = 4"), (dict(num_layers=1), "at least 2"), (dict(visibility="nobody"), "dreamzero_no_clean")])
def test_sizes_that_do_not_fit_are_refused(change, match):
    _, spec, _ = goldens_io.load("i2v")
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(spec, **change)


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_forward_and_inverse_dynamics(solver):
    """What is given comes back; the other modality depends on it, in its own block and, through the cache, later."""
    z, spec, params = goldens_io.load("i2v")
    inputs = goldens_io.inputs(z)
    rollout = DreamZeroSampler(functional.abstract(DreamZero, spec), solver=solver, steps=3)
    given = Conditions(inputs.clean_latents[:, :1], inputs.text, inputs.state, inputs.condition, inputs.image)
    keys = jax.random.split(jax.random.key(0), inputs.text.shape[0])

    def run(actions, video):
        return rollout(params, given, keys, inpainting=Inpainting(
            0.1 * inputs.noisy_actions, jnp.full_like(inputs.noisy_actions, actions, bool),
            inputs.clean_latents, jnp.full(inputs.clean_latents.shape, video)))

    free, forward, inverse = run(False, False), run(True, False), run(False, True)
    plain = rollout(params, given, keys)
    np.testing.assert_allclose(free.latents, plain.latents, atol=1e-5)
    np.testing.assert_allclose(forward.actions, 0.1 * inputs.noisy_actions, atol=1e-4)
    np.testing.assert_allclose(inverse.latents, inputs.clean_latents, atol=1e-4)
    n = spec.layout.frames_per_block
    assert np.abs(forward.latents[:, 1:1 + n] - free.latents[:, 1:1 + n]).max() > 1e-3
    assert np.abs(inverse.actions - free.actions).max() > 1e-3


def test_video_beside_clean_actions_is_what_training_predicts_beside_them(golden):
    """One Euler step of the first block, against the training forward with actions of noise level 0."""
    spec, params, inputs = golden
    model, block = functional.abstract(DreamZero, spec), slice(1, 1 + spec.layout.frames_per_block)
    sampler, own = DreamZeroSampler(model, solver="euler", steps=1), slice(spec.layout.actions_per_block)
    context = sampler.context(params, inputs.text, inputs.image)
    cache = sampler.prefill(params, cached.empty_cache(spec, inputs.text.shape[0]), context, inputs.clean_latents[:, :1],
                            sampler.block_frames(inputs.condition, 0), 0)
    noise, actions = inputs.noisy_latents[:, block], inputs.noisy_actions[:, own]
    keep = Inpainting(actions, jnp.ones_like(actions, bool), noise, jnp.zeros_like(noise, bool))
    video, kept, _ = sampler.denoise(params, cache, context, noise, actions, inputs.state[:, :1],
                                     sampler.block_frames(inputs.condition, 1), 1, keep, True)
    solver = sampler.solvers.video
    trained = functional.bind(model, params)(inputs._replace(
        video_timestep=inputs.video_timestep.at[:, block].set(solver.timesteps[0]),
        action_timestep=inputs.action_timestep.at[:, own].set(0)))
    np.testing.assert_array_equal(kept, actions)
    np.testing.assert_allclose(video, noise - solver.sigmas[0] * trained.video[:, block], atol=2e-5)
