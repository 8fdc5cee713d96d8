"""LingBot-VA over sessions: equal to the sampler on a whole window, and sessions apart at different blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.serving.engine import Engine, Request
from launch.serving.servable import choose_robot
from launch.setup.restore import restore
from tests import tiny_policy
from world_model.families.wan.inputs import Conditions

STATES = np.array([[200.0, 300.0], [220.0, 280.0], [250.0, 250.0]])
NOTHING = np.zeros((0, 2))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    restored = restore(tiny_policy.write(tmp_path_factory.mktemp("run"), arm="lingbot_va_debug"))
    return Engine(restored, choose_robot(restored, None, None), sessions=2, batch_sizes=(2,))


def request(engine, session, block, video, in_flight=NOTHING):
    frames = video[:1] if block == 1 else video[4 * block - 7:4 * block - 3]
    return Request(session, block, {"image": frames}, STATES[block - 1], engine.tokenize("push the T"), (7, 1), in_flight)


def clip(seed: int) -> np.ndarray:
    return np.kron(np.random.default_rng(seed).integers(0, 255, (9, 4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)


@pytest.mark.filterwarnings("ignore:evaluate")
def test_sessions_equal_the_sampler_of_the_whole_window(engine):
    """First frame, a chunk, what was seen and done of it, the next chunk; a neighbour is one block behind."""
    video = clip(0)
    first, = engine.step([request(engine, 1, 1, video)])
    second, _ = engine.step([request(engine, 1, 2, video), request(engine, 0, 1, clip(1))])
    _, third = engine.step([request(engine, 0, 2, clip(1)), request(engine, 1, 3, clip(2))])  # slides on: no last block
    inputs, sampler = engine.model.experiment.inputs, engine.policy.sampler
    ids, length = engine.tokenize("push the T")
    latents, _, text, _ = inputs.features(engine.model.frozen, {
        "video": video[None], "text_ids": ids[None], "text_length": np.int32([length])})
    executed = jnp.zeros((1, 12, 32)).at[0, 4:8].set(engine.robot.predicted(first.actions, STATES[0], 32))
    mask = jnp.broadcast_to(jnp.asarray(engine.policy.channels), executed.shape)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 7), 1)
    whole = sampler(engine.policy.params, Conditions(latents[:, :1], text, None, actions=executed, action_mask=mask),
                    key[None], history=latents)
    for answer, actions, frame, state in ((first, whole.actions[0, :4], 1, STATES[0]),
                                          (second, whole.actions[0, 4:], 2, STATES[1])):
        expected = engine.guard.check(engine.robot.commands(np.asarray(actions), state), state, None).actions
        np.testing.assert_allclose(answer.actions, expected, rtol=1e-4)
        np.testing.assert_allclose(answer.latents, whole.latents[0, frame:frame + 1], atol=1e-4)
    imagined = whole.latents[0, 1:2]
    assert second.gap == pytest.approx(float(np.sqrt(np.square(latents[0, 1:2] - imagined).mean())), rel=1e-4)
    assert np.isfinite(third.actions).all() and np.abs(third.actions - second.actions).max() > 1


def test_actions_in_flight_are_kept_and_seen(engine):
    """The first two come back as they were sent, and the later ones depend on them."""
    flights = (NOTHING, np.array([[210, 290], [220, 280]]), np.array([[390, 110], [120, 380]]))
    answers = [engine.step([request(engine, 0, 1, clip(3), flight)])[0].actions for flight in flights]
    for actions, flight in zip(answers[1:], flights[1:]):
        np.testing.assert_allclose(actions[:2], flight, atol=0.1)
    assert np.abs(answers[0][2:] - answers[1][2:]).max() > 1e-2
    assert np.abs(answers[1][2:] - answers[2][2:]).max() > 1e-2


@pytest.mark.filterwarnings("ignore:evaluate")
def test_asked_what_actions_lead_to_it_answers_with_forward_dynamics(engine):
    """What `ground` gives; the actions that are predicted beside video never reach it."""
    world = Engine(engine.model, engine.robot, sessions=2, batch_sizes=(2,), forward=True)
    chunks = [np.full((4, 2), 150.0) + 20 * np.arange(4)[:, None], np.full((4, 2), 350.0)]
    asked = [request(world, row, 1, clip(3), chunk) for row, chunk in enumerate(chunks)]
    answers = world.step(asked)
    sampler, inputs, params = world.policy.sampler, world.model.experiment.inputs, world.policy.params
    ids, length = world.tokenize("push the T")
    start = inputs.start(world.model.frozen, clip(3)[None, :1], ids[None], np.int32([length]))
    episode = sampler.observe(params, sampler.start(params, start.text), start.first_latents, jnp.zeros((1, 4, 32)))
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 7), 1)
    for chunk, answer in zip(chunks, answers):
        given = jnp.asarray(world.robot.predicted(chunk, STATES[0], 32))[None]
        noise, _ = sampler.noise(key[None], 1, 1)
        latents, _ = sampler.ground(params, episode.next(1), noise, given)
        np.testing.assert_allclose(answer.latents, latents[0], atol=1e-4)
        np.testing.assert_allclose(answer.actions, chunk, atol=0.1)
    assert np.abs(answers[0].latents - answers[1].latents).max() > 1e-2
    blind = engine.step(asked)
    np.testing.assert_array_equal(blind[0].latents, blind[1].latents)
