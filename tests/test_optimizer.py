"""world_model/training/optimizer.py against optax's own chain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from world_model.training.optimizer import ema_decay_at, make_optimizer, update_ema

VALUES = dict(learning_rate=1e-2, steps=20, warmup_fraction=0.2, end_fraction=0.1, b1=0.9, b2=0.99, eps=1e-8,
              weight_decay=0.1, no_decay=r"bias$", clip_norm=0.5)
PARAMS = {"a.kernel": jnp.linspace(-1, 1, 6).reshape(2, 3), "a.bias": jnp.ones(3)}


def grads(step):
    return {name: (1 + step) * jnp.sin(p + step) for name, p in PARAMS.items()}


def check_steps(ours, oracle) -> dict:
    """Five steps of both give the same parameters and norms; returns the state after them."""
    params = expected = PARAMS
    opt, chain = ours.init(params), oracle.init(params)
    for step in range(5):
        params, opt, info = jax.jit(ours.update)(grads(step), opt, params)
        change, chain = oracle.update(grads(step), chain, expected)
        expected = optax.apply_updates(expected, change)
        for name in PARAMS:
            np.testing.assert_allclose(params[name], expected[name], rtol=2e-6)
        np.testing.assert_allclose(info["grad_norm"], optax.global_norm(grads(step)), rtol=1e-6)
    return opt


def test_steps_equal_optax_adamw():
    ours = make_optimizer(**VALUES)
    opt = check_steps(ours, optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(
        ours.schedule, 0.9, 0.99, 1e-8, weight_decay=0.1, mask={"a.kernel": True, "a.bias": False})))
    assert opt["count"] == 5 and set(opt) == {"count", "mu", "nu"}


def test_rates_by_name_equal_an_optax_optimizer_for_each_group():
    ours = make_optimizer(**VALUES, rate_factors=[["kernel", 0.1], ["a", 2]])  # as JSON has them; "a" is left the bias
    groups = {name: optax.adamw(lambda count, factor=factor: factor * ours.schedule(count), 0.9, 0.99, 1e-8,
                                weight_decay=decay)
              for name, factor, decay in (("a.kernel", 0.1, 0.1), ("a.bias", 2.0, 0.0))}
    check_steps(ours, optax.chain(optax.clip_by_global_norm(0.5),
                                  optax.partition(groups, {name: name for name in PARAMS})))


@pytest.mark.parametrize("factors, sentence", [
    ((("a.kernl", 0.1),), r"optimizer.rate_factors = 'a.kernl' matches none of 2 parameters; the nearest is a.kernel$"),
    ((("a", 0.1), ("bias", 2.0)), "'bias' matches none of 0 parameters: the patterns before it took all"),
    ((("bias", 0.0),), r"a number above 0, found \('bias', 0.0\); optimizer.trainable says what is frozen"),
    (("bias", 0.1), "expected pairs of a pattern and a number above 0, found 'bias'"),
    ((("(", 0.1),), r"'\(' is no regular expression"),
])
def test_factors_that_cannot_be_meant_are_refused(factors, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_optimizer(**VALUES, rate_factors=factors).init(PARAMS)


def test_rate_warms_up_and_falls_to_its_end():
    rate = make_optimizer(**VALUES).schedule
    assert [float(rate(step)) for step in (0, 4, 20)] == pytest.approx([0.0, 1e-2, 1e-3])
    assert float(rate(2)) == pytest.approx(0.5e-2)
    assert float(make_optimizer(**VALUES | {"warmup_fraction": 0.0}).schedule(0)) == pytest.approx(1e-2)


@pytest.mark.parametrize("schedule, rates", [("linear", (0.5e-2, 1e-2, 0.55e-2, 1e-3)), ("constant", (0.5e-2,) + 3 * (1e-2,)),
                                             ("wsd", (0.5e-2, 1e-2, 1e-2, 1e-3))])
def test_schedules(schedule, rates):
    rate = make_optimizer(**VALUES, schedule=schedule).schedule
    assert [float(rate(step)) for step in (2, 4, 12, 20)] == pytest.approx(rates)
    assert float(rate(18)) == pytest.approx({"linear": 2.125e-3, "constant": 1e-2, "wsd": 5.5e-3}[schedule])


def test_average_by_a_power_law_weighs_step_t_by_t_to_the_power():
    ema = {"w": jnp.float32(7.0)}
    for step in range(5):
        ema = update_ema(ema, {"w": jnp.float32(step)}, ema_decay_at(2.0, jnp.int32(step)))
    weights = np.array([((t + 1) ** 3 - t**3) for t in range(5)])  # exactly: differences of t ** (power + 1)
    np.testing.assert_allclose(ema["w"], weights @ np.arange(5) / weights.sum(), rtol=1e-6)
    assert ema_decay_at(0.75, jnp.int32(3)) == 0.75


def test_average_moves_towards_the_weights():
    ema = update_ema({"w": jnp.float32(1.0)}, {"w": jnp.float32(3.0), "frozen": jnp.float32(9.0)}, 0.75)
    assert ema == {"w": jnp.float32(1.5)}
