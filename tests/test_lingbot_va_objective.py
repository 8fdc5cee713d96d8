"""LingBot-VA's inputs and loss: what is drawn, losses that add up, the dummy action group, clips, dropped prompts."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from world_model import encoders
from world_model.batch import Layout, batch_spec, check_batch
from world_model.families import make_model
from world_model.families.lingbot_va.inputs import LingBotVAInputs
from world_model.families.lingbot_va.loss import LingBotVALoss

LAYOUT = Layout(frames=13, height=16, width=16, frames_per_block=1, actions_per_block=4, states_per_block=1)
SIZES = dict(layout=LAYOUT, latent_height=2, latent_width=2, dim=16, ffn_dim=32, num_heads=2, num_layers=2, freq_dim=16,
             latent_channels=16, text_dim=8, text_length=4, action_dim=6, max_chunk_frames=3)


def make_batch(size: int, seed: int = 0) -> dict:
    """Random robot samples; the last one a clip without actions, the first one with padded frames."""
    rng, spec = np.random.default_rng(seed), batch_spec(LAYOUT, action_dim=6, state_dim=4, text_length=4)
    batch = {name: np.zeros((size, *shape), dtype) for name, (shape, dtype) in spec.items()}
    batch["video"] = rng.integers(0, 256, batch["video"].shape, np.uint8)
    batch["frame_mask"][:] = True
    batch["frame_mask"][0, 9:] = False
    batch["action_mask"][:-1, :, :3] = True
    batch["action_mask"][0, 8:] = False
    batch["actions"] = rng.uniform(-1, 1, batch["actions"].shape).astype(np.float32) * batch["action_mask"]
    batch["text_ids"], batch["text_length"] = rng.integers(1, 9, (size, 4), np.int32), np.full(size, 3, np.int32)
    batch["sample_index"] = np.arange(size, dtype=np.uint32)
    check_batch(batch, spec, size)
    return batch


class Goal(NamedTuple):
    """A loss and what its examples are made of."""

    inputs: LingBotVAInputs
    frozen: dict
    loss: LingBotVALoss

    def encode(self, batch):
        return self.inputs.encode(self.frozen, batch)

    def __call__(self, params, batch, key, counts):
        return self.loss(params, self.encode(batch), key, counts)


@pytest.fixture(scope="module")
def made():
    """(parameters, function that makes a `Goal`)."""
    model = make_model("lingbot_va", **SIZES)
    params = jax.jit(model.init_params)(jax.random.key(0))
    rng = np.random.default_rng(1)
    params = {k: v + 0.1 * rng.normal(size=v.shape).astype(np.float32) for k, v in sorted(params.items())}
    codec = encoders.make_video_codec("patch_pca", channels=16)
    text = encoders.make_text_encoder("hash", text_length=4, text_dim=8)
    frozen = {"video": codec.init(lambda: make_batch(8, 1)["video"]), "text": text.init()}
    inputs = LingBotVAInputs(model.spec, codec, text, drops_text=True)
    return params, lambda **options: Goal(inputs, jax.tree.map(jnp.asarray, frozen),
                                          LingBotVALoss(model.module, **options))


@pytest.fixture(scope="module")
def loss(made):
    goal = made[1](action_average="valid")
    return jax.jit(lambda batch, counts: goal(made[0], batch, jax.random.key(3), counts)), goal


def drawn(goal, batch, step: int = 0):
    key = jax.random.fold_in(jax.random.key(3), step)
    def keys(use):
        return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, use), i))(batch["sample_index"])
    return goal.loss.sample(keys, goal.encode(batch), key)


def test_microbatches_add_up_to_the_whole(loss):
    run, goal = loss
    batch = make_batch(4)
    counts = goal.loss.count(batch)
    assert counts == {"frames": 15, "actions": 2 + 3 + 3}
    whole, metrics = run(batch, counts)
    parts = [run({k: v[rows] for k, v in batch.items()}, counts) for rows in ([3, 1], [2, 0])]
    np.testing.assert_allclose(sum(part for part, _ in parts), whole, rtol=1e-5)
    for name, value in metrics.items():
        np.testing.assert_allclose(sum(m[name] for _, m in parts), value, rtol=1e-5, err_msg=name)


def test_a_clip_trains_no_action_and_its_slots_do_not_matter(loss):
    run, goal = loss
    clip = {k: v[2:] for k, v in make_batch(4).items()}
    clip = {k: np.stack([v[1], v[1]]) for k, v in clip.items()}  # two rows, as compiled above
    counts = goal.loss.count(clip)
    value, metrics = run(clip, counts)
    other = run(dict(clip, actions=np.full_like(clip["actions"], 9), state=np.full_like(clip["state"], np.nan)), counts)
    assert float(metrics["action_loss"]) == 0 < float(metrics["video_loss"]) == float(value) == float(other[0])


def test_chunk_and_window_are_drawn_once_a_step_and_levels_per_sample_and_frame(made):
    goal, batch = made[1](), make_batch(4)
    steps = [drawn(goal, batch, step) for step in range(40)]
    assert {int(d.chunk_frames) for d in steps} == {1, 2, 3}
    assert min(int(d.window_blocks) for d in steps) >= 4 and max(int(d.window_blocks) for d in steps) in range(50, 65)
    one = steps[0]
    for index, low in ((one.video_index, 0), (one.action_index, 0), (one.history_index, 500)):
        assert index.shape == (4, 4) and len(np.unique(index)) > 12 and index.min() >= low and index.max() < 1000
    coins = np.stack([d.history for d in steps])
    assert 0.4 < coins.mean() < 0.6 and (coins != coins[:, :1]).any()
    same = drawn(made[1](shared_levels=True), batch)
    for field in ("video_index", "action_index", "history_index", "history"):
        assert (getattr(same, field) == getattr(same, field)[:1]).all()
    assert (same.noise[0] != same.noise[1]).any()


def test_what_the_model_is_given(made):
    """Clean where the coin says so, noised and told otherwise; masked channels and the dummy group zero."""
    goal, batch = made[1](), make_batch(4)
    example, draws = goal.encode(batch), drawn(goal, batch)
    draws = draws._replace(history=jnp.array([True, False, True, False]), no_text=jnp.array([False, True, True, False]))
    x = goal.loss.inputs(example, draws)
    np.testing.assert_array_equal(x.clean_latents[1], example.latents[1])
    assert (x.clean_timestep[1] == 0).all() and (x.clean_timestep[0] > 0).all() and x.clean_timestep.max() <= 834
    assert np.abs(x.clean_latents[0] - example.latents[0]).max() > 0.01
    for actions in (x.noisy_actions, x.clean_actions):
        assert (actions[:, :4] == 0).all() and (actions[..., 3:] == 0).all() and (actions[1, 4:, :3] != 0).all()
    np.testing.assert_array_equal(x.clean_actions[:, 4:], batch["actions"])
    np.testing.assert_array_equal(x.action_valid, np.pad(batch["action_mask"].any(-1), ((0, 0), (4, 0)))
                                  | (np.arange(16) < 4) & batch["action_mask"].any((1, 2))[:, None])
    np.testing.assert_array_equal(x.text[1], goal.inputs.fixed_text(goal.frozen, "", 4)[1])
    np.testing.assert_array_equal(x.text[0], example.text[0])


def test_forward_dynamics_is_drawn_for_its_share_of_the_steps_and_counted_apart(made):
    goal, batch = made[1](forward_dynamics=0.5), make_batch(4)
    coins = [bool(drawn(goal, batch, step).forward_dynamics) for step in range(40)]
    assert 10 < sum(coins) < 30 and drawn(made[1](), batch).forward_dynamics is None
    run = jax.jit(lambda key: goal(made[0], batch, key, goal.loss.count(batch))[1])
    def key(coin):
        return jax.random.fold_in(jax.random.key(3), coins.index(coin))
    with_actions, without = run(key(True)), run(key(False))
    assert with_actions["forward_dynamics_loss/count"] == 15 and without["forward_dynamics_loss/count"] == 0
    np.testing.assert_allclose(with_actions["forward_dynamics_loss/sum"] / 15, with_actions["video_loss"], rtol=1e-5)
    assert without["forward_dynamics_loss/sum"] == 0 < without["video_loss"]


def test_a_given_first_frame_is_shown_as_rollouts_show_it_and_costs_nothing(made):
    goal, batch = made[1](given_first_frame=True), make_batch(4)
    example, draws = goal.encode(batch), drawn(goal, batch)
    given, plain = goal.loss.inputs(example, draws), made[1]().loss.inputs(example, draws)
    np.testing.assert_array_equal(given.noisy_latents[:, 0], example.latents[:, 0])
    assert not given.video_timestep[:, 0].any() and not given.action_timestep[:, 0].any()
    for field in ("noisy_latents", "video_timestep", "action_timestep"):
        np.testing.assert_array_equal(getattr(given, field)[:, 1:], getattr(plain, field)[:, 1:])
    np.testing.assert_array_equal(given.noisy_actions, plain.noisy_actions)
    assert goal.loss.count(batch)["frames"] == 15 - 4
    run = jax.jit(lambda noise: goal.loss.loss_at(made[0], example, draws._replace(noise=noise), goal.loss.count(batch)))
    value, metrics = run(draws.noise)
    assert value == run(draws.noise.at[:, 0].add(1.0))[0]
    assert sum(n for name, n in metrics.items() if name.startswith("video") and name.endswith("count")) == 15 - 4


def test_stored_features_cannot_drop_their_prompt(made):
    text = encoders.make_text_encoder("features", text_length=4, text_dim=8)
    inputs = dataclasses.replace(made[1]().inputs, text=text)
    with pytest.raises(ValueError, match="text_features"):
        inputs.fixed_text({"text": {}}, "", 2)
