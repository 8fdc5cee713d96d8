"""The policy over sessions: equal to the sampler on a whole window, and no session reaches another."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from launch.serving.engine import Engine, Request
from launch.serving.servable import choose_robot
from launch.setup.experiment import Experiment
from launch.setup.restore import restore
from tests import tiny_policy
from world_model.families.wan.inputs import Conditions

STATE = np.array([200.0, 300.0])
NOTHING = np.zeros((0, 2))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    restored = restore(tiny_policy.write(tmp_path_factory.mktemp("policy")))
    return Engine(restored, choose_robot(restored, "pusht", None), sessions=3, batch_sizes=(1, 2))


def test_a_model_trained_on_a_tpu_acts_here(engine):
    assert engine.model.config.model.attention == engine.model.experiment.model.spec.attention == "blockwise"


def clip(seed: int, frames: int) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 255, (frames, 4, 4, 3))
    return np.kron(blocks, np.ones((8, 8, 1))).astype(np.uint8)


def request(engine, session, block, frames, state=STATE, key=(7, 1), in_flight=NOTHING):
    return Request(session, block, {"image": frames}, state, engine.tokenize("push the T"), key, in_flight)


def test_sessions_equal_the_sampler_of_the_whole_window(engine):
    """First frame, one chunk, the frames really seen, the next chunk: numbers of the sampler with history."""
    video = clip(0, 9)
    first, = engine.step([request(engine, 1, 1, video[:1])])
    second, = engine.step([request(engine, 1, 2, video[1:5])])
    restored, sampler = engine.model, engine.policy.sampler
    ids, length = engine.tokenize("push the T")
    latents, condition, text, _ = jax.jit(restored.experiment.inputs.features)(restored.frozen, {
        "video": video[None], "text_ids": ids[None], "text_length": np.int32([length])})
    state = np.tile(engine.robot.state(STATE), (1, 2, 1))
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 7), 1)
    conditions = Conditions(latents[:, :1], text, state, condition)
    whole = sampler(engine.policy.params, conditions, key[None], history=latents)
    normalised = whole.actions.reshape(2, 4, -1)
    for answer, actions, frames in ((first, normalised[0], whole.latents[0, 1:2]),
                                    (second, normalised[1], whole.latents[0, 2:3])):
        np.testing.assert_allclose(answer.actions, engine.robot.commands(np.asarray(actions), STATE), rtol=1e-4)
        np.testing.assert_allclose(answer.latents, frames, atol=1e-4)
    assert first.gap is None
    assert second.gap == pytest.approx(float(np.sqrt(np.square(latents[0, 1:2] - whole.latents[0, 1:2]).mean())), rel=1e-4)


def test_a_session_does_not_depend_on_the_others_in_its_batch(engine):
    """Alone and beside a neighbour at another block: the same to rounding."""
    def ask(session, seed, block):
        return request(engine, session, block, clip(seed, 1 if block == 1 else 4), key=(seed, block))

    alone = [engine.step([ask(0, 1, 1)])[0], engine.step([ask(0, 1, 2)])[0]]
    engine.step([ask(1, 2, 1)])
    engine.step([ask(0, 1, 1)])
    together, other = engine.step([ask(0, 1, 2), ask(1, 3, 1)])
    np.testing.assert_allclose(together.actions, alone[1].actions, rtol=1e-4)
    assert np.abs(together.actions - other.actions).max() > 1
    assert engine.decode(together.latents).shape == (4, 32, 32, 3)


@pytest.mark.parametrize("embodiment,dataset", [("droid", None), (None, "other"), ("pusht", "other")])
def test_another_embodiment_is_refused(engine, embodiment, dataset):
    with pytest.raises(ValueError, match="it knows 'pusht' \\(dataset 'toy'\\)"):
        choose_robot(engine.model, embodiment, dataset)


def test_one_of_two_datasets_of_a_robot_is_chosen(engine):
    """As a run has that was trained on recordings and on dreams."""
    both = dataclasses.replace(engine.model, statistics=engine.model.statistics | {
        "dreams": engine.model.statistics["toy"] | {"dataset": "dreams"}})
    with pytest.raises(ValueError, match="knows 'pusht' .*'dreams'.*'pusht' .*'toy'.*: choose one with --dataset$"):
        choose_robot(both, "pusht", None)
    assert choose_robot(both.of_dataset("dreams"), "pusht", None).statistics["dataset"] == "dreams"
    assert both.of_dataset(None) is both
    with pytest.raises(ValueError, match="--dataset=drems: the checkpoint was trained on dreams, toy"):
        both.of_dataset("drems")
    toy = engine.model.statistics["toy"]  # of two that share a normalisation none need be chosen
    shared = dataclasses.replace(engine.model, statistics={"toy": toy, "dreams": toy})
    assert choose_robot(shared, "pusht", None).statistics is toy


def test_the_recordings_of_a_chosen_dataset_are_opened_alone(engine, monkeypatch):
    """As launch.dream asks for them."""
    config, toy = engine.model.config.copy_and_resolve_references(), engine.model.statistics["toy"]
    config.data.datasets = ConfigDict({name: config.data.datasets.pusht for name in ("toy", "dreams")})
    both = dataclasses.replace(engine.model, experiment=Experiment(config), statistics={"toy": toy, "dreams": toy})
    monkeypatch.setattr(Experiment, "data", lambda self, statistics: (set(self.config.data.datasets), set(statistics)))
    assert both.data == ({"toy", "dreams"},) * 2 and both.of_dataset("dreams").data == ({"dreams"},) * 2


@pytest.mark.parametrize("part,slots", [("action", 1), ("state", 1)])
def test_a_model_too_narrow_for_the_robot_is_refused(engine, part, slots):
    config = engine.model.config.copy_and_resolve_references()
    config.model[f"{part}_dim"] = slots
    with pytest.raises(ValueError, match=f"'pusht' has its {part} in slots up to 1, the checkpoint's model.{part}_dim = 1"):
        choose_robot(dataclasses.replace(engine.model, experiment=Experiment(config)), None, None)


def test_a_setting_of_another_family_is_refused(engine):
    with pytest.raises(ValueError, match="the sampler of family 'dreamzero' has no setting 'action_steps'; it has .*'guidance'"):
        engine.model.policy(1, np.ones(32, bool), (1,), action_steps=2)


def test_actions_in_flight_are_kept_and_seen(engine):
    """The first two come back as they were sent; the video and the later actions depend on them."""
    def ask(actions):
        return engine.step([request(engine, 0, 1, clip(5, 1), in_flight=np.array(actions))])[0]

    free, first, other = ask(NOTHING), ask([[210, 290], [220, 280]]), ask([[390, 110], [120, 380]])
    np.testing.assert_allclose(first.actions[:2], [[210, 290], [220, 280]], atol=0.1)
    np.testing.assert_allclose(other.actions[:2], [[390, 110], [120, 380]], atol=0.1)
    for a, b in ((free, first), (first, other)):
        assert np.abs(a.actions[2:] - b.actions[2:]).max() > 1e-2 and np.abs(a.latents - b.latents).max() > 1e-3


def test_guidance_on_two_devices_answers_the_same(engine):
    """And both branches' caches stand apart."""
    def ask(other):
        return other.step([request(other, 0, 1, clip(6, 1))])[0]

    batched, apart = (Engine(engine.model, engine.robot, 1, batch_sizes=(1,), sampling={"guidance": 2.0, **more})
                      for more in ({}, {"branch_devices": 2}))
    expected, found = ask(batched), ask(apart)
    np.testing.assert_allclose(found.actions, expected.actions, rtol=1e-4)
    np.testing.assert_allclose(found.latents, expected.latents, atol=1e-4)
    assert np.abs(found.latents - ask(engine).latents).max() > 1e-2
