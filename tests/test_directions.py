"""world_model/training/directions.py: optax's numbers, layer by layer; the same state again on other devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from tests import tiny_training as tiny
from world_model.parallel import sharding
from world_model.training import checkpoint, checkpoint_reader, directions, optimizer, state
from world_model.training.checkpoint_writer import Checkpoints

VALUES = dict(learning_rate=1e-2, steps=20, warmup_fraction=0.2, end_fraction=0.1, b1=0.9, b2=0.99, eps=1e-8,
              weight_decay=0.1, no_decay=r"bias$", clip_norm=0.5)
SHAPES = {"blocks.q.kernel": (2, 130, 160), "blocks.q.bias": (2, 160), "head.kernel": (160, 4), "head.bias": (4,)}
PARAMS = {name: jnp.linspace(-1, 1, np.prod(shape)).reshape(shape) for name, shape in SHAPES.items()}
KERNELS = {name: name.endswith("kernel") for name in SHAPES}


def grads(step, params=PARAMS):
    return {name: jnp.sin((7 + step) * jnp.arange(p.size).reshape(p.shape)) for name, p in params.items()}


def by_layer(name, shape):
    """Names of a stack's layers as parameters of their own."""
    return [f"{i}.{name}" for i in range(shape[0])] if name.startswith("blocks.") else [name]


def unstacked(tree):
    return {part: x[i] if name.startswith("blocks.") else x for name, x in tree.items()
            for i, part in enumerate(by_layer(name, x.shape))}


def oracle(name, rate):
    """optax's own, over layers that stand alone."""
    def decayed(params):
        return {name: name.endswith("kernel") for name in params}

    def matrices(params):
        return {name: MuonDimensionNumbers() if name.endswith("kernel") else None for name in params}

    made = {
        "adamw": lambda: optax.adamw(rate, 0.9, 0.99, weight_decay=0.1, mask=decayed),
        "lion": lambda: optax.lion(rate, 0.9, 0.99, weight_decay=0.1, mask=decayed),
        "muon": lambda: optax.contrib.muon(rate, beta=0.9, weight_decay=0.1, adam_b2=0.99, consistent_rms=0.2,
                                           muon_weight_dimension_numbers=matrices),
        "adafactor": lambda: optax.chain(
            optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.ema(0.9, debias=False),
            optax.add_decayed_weights(0.1, decayed), optax.scale_by_learning_rate(rate))}
    return optax.chain(optax.clip_by_global_norm(0.5), made[name]())


@pytest.mark.parametrize("name", directions.RULES)
def test_a_stack_is_its_layers_and_each_is_optax_s(name):
    ours = optimizer.make_optimizer(name=name, **VALUES)
    chain = oracle(name, ours.schedule)
    params, expected = PARAMS, unstacked(PARAMS)
    opt, theirs = ours.init(params), chain.init(expected)
    update, step_of = jax.jit(ours.update), jax.jit(chain.update)
    for step in range(3):
        params, opt, _ = update(grads(step), opt, params)
        change, theirs = step_of(unstacked(grads(step)), theirs, expected)
        expected = optax.apply_updates(expected, change)
    if name == "muon":  # its Adam has Nesterov's momentum; ours is AdamW's
        params, expected = ({n: x for n, x in tree.items() if n.endswith("kernel")} for tree in (params, expected))
    for part, value in unstacked(params).items():
        np.testing.assert_allclose(value, expected[part], rtol=1e-5, atol=2e-6, err_msg=part)


def test_what_is_no_matrix_is_muon_s_adamw():
    found = [optimizer.make_optimizer(name=name, **VALUES | {"clip_norm": 1e9}) for name in ("adamw", "muon")]
    after = [one.update(grads(0), one.init(PARAMS) | {"count": jnp.int32(3)}, PARAMS)[0] for one in found]
    for name in SHAPES:
        assert np.array_equal(after[0][name], after[1][name]) != KERNELS[name], name


def test_rows_and_columns_stand_for_a_large_matrix_s_second_moments():
    opt = optimizer.make_optimizer(name="adafactor", **VALUES | {"b1": 0.0}).init(PARAMS)
    assert "mu" not in opt
    assert opt["v_row"]["blocks.q.kernel"].shape == (2, 130) and opt["v_col"]["blocks.q.kernel"].shape == (2, 160)


def test_a_bfloat16_moment_follows_its_mean_where_rounding_to_the_nearest_would_stand_still():
    old = jnp.full(4096, 1.0)
    keys = jax.random.split(jax.random.key(3), 500)
    wide, narrow = old, old.astype(jnp.bfloat16)
    for key in keys:
        wide = 0.999 * wide
        narrow = directions.rounded(0.999 * narrow.astype(jnp.float32), key)
    assert jnp.float32(0.999).astype(jnp.bfloat16) == 1.0
    np.testing.assert_allclose(narrow.astype(jnp.float32).mean(), wide[0], rtol=5e-3)


MODEL = tiny.Model()


def place(name, dtype, devices):
    """(target of a state, function of (state, step) that takes one step of the optimizer alone)."""
    mesh = sharding.make_mesh(fsdp=devices, devices=jax.devices()[:devices])
    own = optimizer.make_optimizer(name=name, moments_dtype=dtype, **VALUES | {"schedule": "wsd"})

    def make():
        return state.create(MODEL.init_params(jax.random.key(0)), own, seed=7)

    target = state.abstract_state(make, sharding.shardings(MODEL.axes(), MODEL.shapes(), mesh))

    def step(now, number):
        given = {name: jnp.sin((7 + number) * (1 + p)) for name, p in now["params"].items()}
        params, opt, _ = own.update(given, now["opt"], now["params"])
        return now | {"params": params, "opt": opt}

    compiled = jax.jit(step, out_shardings=state.state_shardings(target))

    def steps(now, *numbers):
        with jax.set_mesh(mesh):
            for number in numbers:
                now = compiled(now, number)
        return now

    return make, target, steps


@pytest.mark.parametrize("name, dtype", [("adamw", "bfloat16"), *((name, "float32") for name in directions.RULES)])
def test_bits_come_back_and_go_on_on_the_same_devices_and_on_half_of_them(name, dtype, tmp_path):
    (make, target, steps), (_, half, on_half) = place(name, dtype, 8), place(name, dtype, 4)
    written = steps(state.init_state(make, target), 0, 1)
    writer = Checkpoints(tmp_path / "checkpoints", keep_last=1)
    meta = checkpoint.make_meta(written, {}, family="tiny", config={}, statistics={}, statistics_hash="", code_version="")
    writer.save(2, written, data={}, meta=meta, frozen={})
    writer.close()
    whole = steps(written, 2, 3)
    jax.tree.map(np.testing.assert_array_equal, steps(checkpoint_reader.restore(tmp_path / "checkpoints", 2, target), 2, 3), whole)
    found = checkpoint_reader.restore(tmp_path / "checkpoints", 2, half)
    jax.tree.map(np.testing.assert_array_equal, found, written)
    for part, value in on_half(found, 2, 3)["params"].items():
        np.testing.assert_allclose(value, whole["params"][part], atol=1e-5, err_msg=part)


def test_muon_turns_whole_layers_on_their_device_and_gathers_none():
    mesh = sharding.make_mesh(fsdp=2, devices=jax.devices()[:2])
    name = "blocks.q.kernel"
    placed = sharding.shardings({name: MODEL.axes()[name]}, {name: SHAPES[name]}, mesh)
    stack = {name: jax.ShapeDtypeStruct(SHAPES[name], jnp.float32, sharding=placed[name])}
    own = optimizer.make_optimizer(name="muon", **VALUES)
    opt = {"count": jax.ShapeDtypeStruct((), jnp.int32), "mu": stack, "nu": {}}
    with jax.set_mesh(mesh):
        text = jax.jit(own.update, out_shardings=(placed, {"count": None, "mu": placed, "nu": {}}, None)).lower(
            stack, opt, stack).compile().as_text()
    assert "all-to-all" in text and "all-gather" not in text


def test_muon_turns_every_expert_of_every_layer_by_itself():
    stack = {"blocks.mlp.experts_fc1": jax.random.normal(jax.random.key(0), (2, 3, 20, 30))}
    alone = {f"{at}.kernel": x for at, x in enumerate(stack["blocks.mlp.experts_fc1"].reshape(6, 20, 30))}
    rule = directions.muon(0.95, 0.99, 1e-8)
    found, expected = (rule.update(grads, rule.init(grads), grads)[0] for grads in (stack, alone))
    np.testing.assert_allclose(found["blocks.mlp.experts_fc1"].reshape(6, 20, 30), np.stack(list(expected.values())),
                               atol=1e-5)
