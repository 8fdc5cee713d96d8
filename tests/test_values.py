"""launch/setup/values.py: a config's values are checked before anything starts."""

import re
import types

import pytest

from configs import base, quickstart
from launch import sweep, train
from launch.setup import values
from launch.setup.experiment import Experiment
from world_model.families import all_families


@pytest.mark.parametrize("key, value, expected", [
    ("checkpoint.every", 0, "at least 1"), ("train.log_every", 0, "at least 1"), ("train.accumulation", 0, "at least 1"),
    ("train.steps", 0, "at least 1"), ("train.compute_dtype", "bf16", "one of float32, bfloat16"),
    ("encoders.dtype", "float16", "one of float32, bfloat16"), ("train.remat", "ful", "one of auto, none, full, lean"),
    ("optimizer.ema_decay", -1.0, "at least 0"), ("optimizer.name", "adam", "one of adamw, muon, adafactor, lion"),
    ("optimizer.warmup_fraction", 1.0, "at least 0 and below 1"),
    ("optimizer.warmup_fraction", 0.99, "expected less, so that one of train.steps = 6"),
    ("optimizer.learning_rate", float("nan"), "a finite number"), ("optimizer.learning_rate", -1.0, "at least 0"),
    ("optimizer.no_decay", "(", "a regular expression"), ("evaluate.solver_steps", 0, "at least 1"),
    ("noise.shift", 0.0, "above 0"), ("model.num_heads", 0, "at least 1"), ("data.holdout", 1.0, "below 1"),
    ("data.unit", "frames", "one of windows, tokens"), ("evaluate.guidance", float("inf"), "a finite number"),
])
def test_a_value_that_cannot_be_meant_is_named(key, value, expected):
    with pytest.raises(values.ConfigError, match=rf"^{key} = {re.escape(repr(value))}: .*{expected}"):
        Experiment(sweep.apply(quickstart.get_config("debug"), {key: value}))


@pytest.mark.parametrize("given, sentence", [
    ({"name": "lion", "eps": 1e-6}, "optimizer.eps = 1e-06: optimizer.name = 'lion' does not read it; leave it at 1e-08"),
    ({"name": "adafactor", "b2": 0.9}, "optimizer.b2 = 0.9: optimizer.name = 'adafactor' does not read it"),
    ({"schedule": "constant", "end_fraction": 0.1}, "end_fraction = 0.1: optimizer.schedule = 'constant' does not read"),
])
def test_a_key_that_the_optimizer_does_not_read_is_named(given, sentence):
    config = base.get_config()
    config.optimizer.update(given)
    with pytest.raises(values.ConfigError, match=sentence):
        values.check(config)


def test_what_is_not_read_is_left_at_its_default():
    flat = dict(values._leaves(base.get_config().to_dict()))
    assert all(flat[key] == default and other in flat for key, default, other, _ in values.UNREAD_KEYS)


def test_every_problem_is_said_at_once_before_anything_starts(tmp_path, monkeypatch):
    config = sweep.apply(quickstart.get_config("debug"), {"checkpoint.every": 0, "train.log_every": 0})
    monkeypatch.setattr(train, "CONFIG", types.SimpleNamespace(value=config))
    monkeypatch.setattr(train, "WORKDIR", types.SimpleNamespace(value=str(tmp_path / "run")))
    with pytest.raises(SystemExit, match="checkpoint.every = 0: expected at least 1\ntrain.log_every = 0: "):
        train.main(["train"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("family", all_families(), ids=lambda family: family.name)
def test_defaults_may_be_meant_and_rules_are_for_keys_that_are_there(family):
    values.check(base.get_config(family.name))
    configs = [base.get_config(one.name) for one in all_families()]
    base.student(configs[0])
    known = {key for config in configs for key, _ in values._leaves(config.to_dict())}
    assert values.RULES.keys() <= known
