"""LingBot-VA: sizes, leakage under drawn chunks and windows, video-only clips, cached rollout against training."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import parity
from world_model import functional
from world_model.attention import visibility
from world_model.attention.tokens import CLEAN_ACTION, CLEAN_VIDEO, NOISY_ACTION, NOISY_VIDEO, Group
from world_model.batch import Layout
from world_model.diffusion.inpainting import Inpainting
from world_model.families import make_model
from world_model.families.lingbot_va import cached
from world_model.families.lingbot_va.forward_inputs import ForwardInputs
from world_model.families.lingbot_va.layout import GROUPS, Modality, frame_rotary, make_sequence
from world_model.families.lingbot_va.sampler import LingBotVASampler
from world_model.families.lingbot_va.steps import levels
from world_model.families.lingbot_va.visibility import TABLES
from world_model.families.lingbot_va.weights.names import LINGBOT_VA
from world_model.families.wan.inputs import Conditions
from world_model.weights import names

HERE = Path(__file__).parent
FULL = dict(layout=Layout(33, 384, 320, 1, 16, 1), latent_height=24, latent_width=20, dim=3072, ffn_dim=14336,
            num_heads=24, num_layers=30, freq_dim=256, latent_channels=48, text_dim=4096, text_length=512, action_dim=30)


def test_full_size_has_exactly_the_released_tensors():
    shapes = make_model("lingbot_va", **FULL).shapes
    theirs = {k: list(v.shape) for k, v in names.published_shapes(shapes, 128, LINGBOT_VA).items()}
    assert theirs == json.loads((HERE / "goldens/shapes/lingbot_va_5b.json").read_text())
    unread = [v for k, v in theirs.items() if k.startswith("condition_embedder_action.text_embedder.")]
    def count(found):
        return sum(int(np.prod(shape)) for shape in found)
    assert (len(theirs), count(theirs.values())) == (839, 5_088_872_670)
    assert count(x.shape for x in shapes.values()) == 5_088_872_670 - count(unread)


@pytest.fixture(scope="module")
def golden():
    found = parity.read(HERE / "goldens/lingbot_va_tiny.npz")
    return found, found.adapter("jax")


@pytest.fixture(scope="module")
def inputs(golden):
    """One sample of the golden, levels per frame."""
    g, one = golden[0], lambda x: jnp.asarray(x[:1])
    return ForwardInputs(
        noisy_latents=one(g.video("noise_video")), video_timestep=one(g.inputs["in/video_timesteps"]),
        clean_latents=one(g.video("latents")), clean_timestep=jnp.zeros((1, 5)),
        noisy_actions=one(g.actions("noise_action")), action_timestep=one(g.inputs["in/action_timesteps"]),
        clean_actions=one(g.actions("actions")), text=one(g.inputs["in/text_emb"]), chunk_frames=jnp.int32(2),
        window_blocks=jnp.int32(64))


def seen_by_hand(query: Group, key: Group, query_frame: int, key_frame: int, size: int, window: int) -> bool:
    """The rule of docs/references/lingbot_va.md, "Chunks and who sees whom", in a line of its own."""
    clean, video = (CLEAN_VIDEO, CLEAN_ACTION), (CLEAN_VIDEO, NOISY_VIDEO)
    q, k = 2 * (query_frame // size) + (query not in video), 2 * (key_frame // size) + (key not in video)
    if query in clean:
        rule = key in clean and k <= q
    else:
        rule = k < q if key in clean else k == q
    return rule and abs(q - k) <= window


@pytest.mark.parametrize("size,window", [(1, 64), (2, 64), (3, 4), (4, 1), (2, 3)])
def test_drawn_masks_and_their_spans(golden, size, window):
    spec, table = golden[0].spec, visibility.get_table("lingbot_va", TABLES)
    sequence = make_sequence(spec, 7)
    mask = np.asarray(visibility.sampled_mask(table, sequence, sequence, size - 1, window))
    by_hand = [[seen_by_hand(q.group, k.group, q.frame, k.frame, size, window) for k in sequence] for q in sequence]
    np.testing.assert_array_equal(mask, by_hand)
    static = visibility.dense_mask(table, sequence, sequence)
    for span in visibility.make_spans(table, sequence, sequence, least=16):
        columns = np.concatenate([np.arange(*r) for r in span.keys])
        for row in span.rows:
            rows = np.arange(sequence[row].start, sequence[row].stop)
            assert not np.delete(static[rows], columns, axis=1).any()


def test_memory_is_foreseen_from_all_tokens(golden):
    spec = golden[0].spec
    assert spec.training_tokens == make_sequence(spec, spec.layout.latent_frames)[-1].stop


def test_forward_dynamics_shows_a_chunks_actions_to_its_video_and_hides_it_from_them(golden):
    sequence = make_sequence(golden[0].spec, 6)
    inverse, forward, either = (
        np.asarray(visibility.sampled_mask(visibility.get_table(f"lingbot_va{name}", TABLES), sequence, sequence, 1, 64))
        for name in ("", "_forward_dynamics", "_either_dynamics"))
    def changed(a, b):
        return {(sequence[i].group, sequence[j].group, sequence[i].frame // 2 == sequence[j].frame // 2)
                                for i, j in np.argwhere(a & ~b)}
    assert changed(forward, inverse) == {(NOISY_VIDEO, CLEAN_ACTION, True)}
    assert changed(inverse, forward) == {(CLEAN_ACTION, CLEAN_VIDEO, True)}
    np.testing.assert_array_equal(either, forward | inverse)


def test_forward_dynamics_leaks_nothing_and_is_what_a_grounded_rollout_computes(golden, inputs):
    """Through any number of layers a chunk's video depends on its own actions and not on its own clean copy; drawn
    otherwise it is the plain forward; and the pass over the ring gives the same numbers."""
    adapter, n = golden[1], golden[0].config["n"]

    @jax.jit
    def run(forward, clean_latents, clean_actions):
        def of_second_chunk(latents, actions):
            out = functional.bind(adapter.model, adapter.params)(inputs._replace(
                clean_latents=latents, clean_actions=actions, forward_dynamics=forward))
            return jnp.square(out.video[:, 2:4]).sum(), out

        return jax.grad(of_second_chunk, argnums=(0, 1), has_aux=True)(clean_latents, clean_actions)

    (of_video, of_action), found = run(True, inputs.clean_latents, inputs.clean_actions)
    def size(x):
        return np.abs(np.asarray(x)).reshape(5, -1).max(axis=1) > 0
    np.testing.assert_array_equal(size(of_video), [True, True, False, False, False])
    np.testing.assert_array_equal(size(of_action), [True, True, True, True, False])
    plain = jax.jit(lambda p, i: functional.bind(adapter.model, p)(i))(adapter.params, inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
                 run(False, inputs.clean_latents, inputs.clean_actions)[1], plain)
    assert np.abs(plain.video - found.video).max() > 1e-2

    rollout = LingBotVASampler(adapter.model, steps=2, action_steps=2, chunk_frames=2, window_blocks=6)
    session = rollout.start(adapter.params, inputs.text)
    video = jax.jit(lambda p, ring, x, time, rotary, chunk: cached.video_pass(
        functional.bind(adapter.model, p), session._replace(ring=ring, chunk=chunk), x, time, rotary, ahead=1))

    def rotary(modality, first):
        return frame_rotary(adapter.spec, modality, range(first, first + 2))

    def act(ring, chunk):
        return rollout._acting(adapter.params, session._replace(ring=ring, chunk=chunk), inputs.clean_actions[
            :, 2 * chunk * n:(2 * chunk + 2) * n], rotary(Modality.ACTION, 2 * chunk))
    # As in training, where no clean action sees its chunk's video: the past's actions are written before its video,
    # which does not see them.
    past = act(session.ring, 0)
    _, written = video(adapter.params, cached.hide_block(past, 1), inputs.clean_latents[:, :2], jnp.zeros((1, 2)),
                       rotary(Modality.VIDEO, 0), 0)
    ring = act(written._replace(blocks=past.blocks.at[0].set(0)), 1)
    velocity, _ = video(adapter.params, ring, noise := inputs.noisy_latents[:, 2:4], inputs.video_timestep[:, 2:4],
                        rotary(Modality.VIDEO, 2), 1)
    np.testing.assert_allclose(velocity, found.video[:, 2:4], atol=1e-5)

    def observe(session, latents, first):
        return rollout.observe(
            adapter.params, session, latents[:, first:first + 2], inputs.clean_actions[:, first * n:(first + 2) * n])
    session = observe(session, inputs.clean_latents, 0).next(2)
    stale, own = observe(session, inputs.noisy_latents, 2), inputs.clean_actions[:, 2 * n:4 * n]
    latents, grounded = rollout.ground(adapter.params, stale, noise, own)
    assert np.abs(latents - rollout.ground(adapter.params, stale, noise, own + 1)[0]).max() > 1e-3
    observed = rollout.observe(adapter.params, session, latents, own)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grounded.ring, observed.ring)


def test_no_leakage_whatever_is_drawn_and_one_compilation(golden, inputs):
    """Exact-zero gradients of every chunk's outputs with respect to all that it may not see."""
    adapter, compiled = golden[1], 0
    fields = {CLEAN_VIDEO: "clean_latents", CLEAN_ACTION: "clean_actions",
              NOISY_VIDEO: "noisy_latents", NOISY_ACTION: "noisy_actions"}

    @jax.jit
    @functools.partial(jax.grad, argnums=0)
    def gradients(parts, size, window, video_weight, action_weight):
        nonlocal compiled
        compiled += 1
        out = functional.bind(adapter.model, adapter.params)(inputs._replace(**parts, chunk_frames=size, window_blocks=window))
        action = out.action.reshape(1, 5, -1) * action_weight[:, None]
        return (out.video * video_weight[:, None, None, None]).sum() + action.sum()

    parts = {name: getattr(inputs, name) for name in fields.values()}
    for size, window in ((2, 64), (1, 3), (3, 64)):
        for group, frame in ((NOISY_VIDEO, 2), (NOISY_ACTION, 2), (NOISY_VIDEO, 4)):
            one = (np.arange(5) == frame).astype(np.float32)
            weights = (one, 0 * one) if group is NOISY_VIDEO else (0 * one, one)
            found = gradients(parts, np.int32(size), np.int32(window), *weights)
            reached = reach(group, frame, size, window)
            for key, name in fields.items():
                size_of = np.abs(np.asarray(found[name])).reshape(5, -1).max(axis=1)
                visible = np.array([(key, f) in reached for f in range(5)])
                assert (size_of[~visible] == 0).all() and (size_of[visible] > 0).all(), (group, frame, size, key, size_of)
    assert compiled == 1


def reach(group: Group, frame: int, size: int, window: int) -> set:
    """(group, frame) that an output can depend on in two layers."""
    reached = {(group, frame)}
    for _ in range(2):
        reached |= {(key, f) for key in GROUPS for f in range(5)
                    if any(seen_by_hand(g, key, at, f, size, window) for g, at in reached)}
    return reached


def test_video_only_is_independent_of_the_action_slots(golden, inputs):
    adapter = golden[1]
    two = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0) if x.ndim else x, inputs)
    valid = jnp.zeros((2, 15), bool).at[1].set(True)
    run = jax.jit(lambda **parts: functional.bind(adapter.model, adapter.params)(two._replace(action_valid=valid, **parts)))
    plain = run(noisy_actions=two.noisy_actions, clean_actions=two.clean_actions)
    other = run(noisy_actions=two.noisy_actions.at[0].set(1e3), clean_actions=two.clean_actions.at[0].set(-9.0))
    np.testing.assert_array_equal(plain.video[0], other.video[0])
    assert np.abs(plain.video[0] - plain.video[1]).max() > 1e-3  # with actions the prediction is another


def test_cached_passes_equal_the_training_forward(golden, inputs):
    """With room for everything: chunk by chunk the velocities of one masked row."""
    adapter, n = golden[1], golden[0].config["n"]
    trained = jax.jit(lambda p, i: functional.bind(adapter.model, p)(i))(adapter.params, inputs)
    session = adapter.start(np.asarray(inputs.text), 2, 6)
    for chunk in range(2):
        frames, own = slice(2 * chunk, 2 * chunk + 2), slice(2 * chunk * n, (2 * chunk + 2) * n)
        for modality, noisy, clean, time, expected in (
                (Modality.VIDEO, inputs.noisy_latents[:, frames], inputs.clean_latents[:, frames], inputs.video_timestep,
                 trained.video[:, frames]),
                (Modality.ACTION, inputs.noisy_actions[:, own], inputs.clean_actions[:, own], inputs.action_timestep,
                 trained.action[:, own])):
            out = session.run(noisy, time[:, frames], chunk, modality=modality, write=False)
            np.testing.assert_allclose(out, expected, atol=1e-5)
            session.run(clean, np.zeros((1, 2), np.float32), chunk, modality=modality, write=True)


def test_rollout_history_decides_the_cache(golden, inputs):
    """Own predictions as history give the imagined rollout; other history changes later chunks alone."""
    adapter = golden[1]
    rollout = LingBotVASampler(adapter.model, steps=2, action_steps=2, chunk_frames=2, window_blocks=6)
    mask = jnp.ones(inputs.clean_actions.shape, bool)
    given = Conditions(inputs.clean_latents[:, :1], inputs.text, None, actions=inputs.clean_actions, action_mask=mask)
    keys = jax.random.split(jax.random.key(0), 1)
    imagined = rollout(adapter.params, given, keys)
    np.testing.assert_array_equal(imagined.latents[:, :1], inputs.clean_latents[:, :1])
    own = given._replace(actions=jnp.pad(imagined.actions, ((0, 0), (3, 0), (0, 0))))
    again = rollout(adapter.params, own, keys, history=imagined.latents)
    np.testing.assert_allclose(again.latents, imagined.latents, atol=1e-5)
    np.testing.assert_allclose(again.actions, imagined.actions, atol=1e-5)
    real = rollout(adapter.params, given, keys, history=inputs.clean_latents)
    np.testing.assert_array_equal(real.latents[:, :2], imagined.latents[:, :2])
    assert np.abs(real.latents[:, 2:] - imagined.latents[:, 2:]).max() > 1e-3


def test_video_alone(golden, inputs):
    """Nothing of actions is predicted or remembered: what is imagined is that of a clip without actions."""
    adapter = golden[1]
    rollout = LingBotVASampler(adapter.model, steps=1, action_steps=1, chunk_frames=2, window_blocks=6)
    keys = jax.random.split(jax.random.key(0), 1)
    given = Conditions(inputs.clean_latents[:, :1], inputs.text, None)
    alone = rollout(adapter.params, given, keys, history=inputs.clean_latents, video_alone=True)
    noise = jnp.concatenate([rollout.noise(keys, i, c.stop - c.start)[0] for i, c in enumerate(rollout.chunks())], axis=1)
    times, changes = levels(1, rollout.shift)
    trained = jax.jit(lambda p, i: functional.bind(adapter.model, p)(i))(adapter.params, inputs._replace(
        noisy_latents=noise, video_timestep=jnp.full((1, 5), times[0]), action_valid=jnp.zeros((1, 15), bool)))
    assert alone.actions is None
    np.testing.assert_allclose(alone.latents[:, 2:], (noise + changes[0] * trained.video)[:, 2:], atol=1e-5)
    np.testing.assert_array_equal(alone.latents[:, :1], inputs.clean_latents[:, :1])


def test_given_video_comes_back_and_decides_the_actions(golden, inputs):
    """Inverse dynamics of one chunk; given actions come back too."""
    adapter = golden[1]
    rollout = LingBotVASampler(adapter.model, steps=2, action_steps=2, chunk_frames=2, window_blocks=6)
    noise, session = rollout.noise(jax.random.split(jax.random.key(0), 1), 0, 2), rollout.start(adapter.params, inputs.text)
    video, actions = inputs.clean_latents[:, :2], 0.1 * inputs.clean_actions[:, :noise[1].shape[1]]

    def run(of_video, of_actions):
        return rollout.predict(adapter.params, session, *noise, inpainting=Inpainting(
            actions, jnp.full(actions.shape, of_actions), video, jnp.full(video.shape, of_video)))[:2]

    free, inverse, forced = run(False, False), run(True, False), run(False, True)
    np.testing.assert_allclose(inverse[0], video, atol=1e-5)
    np.testing.assert_allclose(forced[1], actions, atol=1e-5)
    np.testing.assert_allclose(forced[0], free[0], atol=1e-5)  # a chunk's video comes before its actions
    assert np.abs(inverse[1] - free[1]).max() > 1e-3


def test_ring_positions_do_not_matter(golden, inputs):
    """A later chunk number over an empty ring gives the same as an early one: only its own positions differ."""
    adapter = golden[1]
    def video(chunk):
        model = functional.bind(adapter.model, adapter.params)
        episode = cached.Episode(model.encode_context(inputs.text), cached.make_ring(adapter.spec, 1, 2, 4), chunk)
        return cached.video_pass(model, episode, inputs.noisy_latents[:, :2], inputs.video_timestep[:, :2],
                                 frame_rotary(adapter.spec, Modality.VIDEO, range(2)))[0]

    run = jax.jit(video)
    np.testing.assert_array_equal(run(0), run(3))


@pytest.mark.parametrize("change,match", [
    (dict(dim=30), "num_heads = 4"), (dict(num_layers=1), "at least 2"), (dict(visibility="nobody"), "lingbot_va"),
    (dict(layout=Layout(17, 32, 48, 2, 6, 1)), "set it to 1"), (dict(max_chunk_frames=0), "at least 1"),
    (dict(min_window_blocks=9, max_window_blocks=8), "min <= max")])
def test_sizes_that_do_not_fit_are_refused(golden, change, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(golden[0].spec, **change)


def test_what_another_family_has_is_refused():
    with pytest.raises(ValueError, match="model.concat_first_frame means nothing to family 'lingbot_va'"):
        make_model("lingbot_va", **FULL, concat_first_frame=True)


def test_rollouts_outside_the_trained_range_warn_and_impossible_ones_are_refused(golden):
    model = golden[1].model
    with pytest.warns(UserWarning, match=r"chunk_frames = 5 lies outside the trained range 1\.\.4"):
        LingBotVASampler(model, chunk_frames=5)
    with pytest.warns(UserWarning, match=r"window_blocks - 1 = 71 lies outside the trained range 4\.\.64"):
        LingBotVASampler(model, window_blocks=72)
    with pytest.warns(UserWarning, match=r"0\.882 lies outside the trained range 0\.\.0\.833"):
        LingBotVASampler(model, steps=5, executed_steps=3)
    with pytest.raises(ValueError, match="executed_steps = 6"):
        LingBotVASampler(model, steps=5, executed_steps=6)
    with pytest.raises(ValueError, match="must be an even number"):
        cached.make_ring(golden[0].spec, 1, 2, 5)
    for blocks in (2, 7):  # with 2 a chunk's video sees the actions before it, and no video
        with pytest.raises(ValueError, match=f"window_blocks = {blocks}: .* must be an even number, at least 4"):
            LingBotVASampler(model, window_blocks=blocks)
