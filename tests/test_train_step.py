"""world_model/training/train_step.py and remat.py: the same step on any mesh, in any number of pieces."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_training as tiny
from world_model.analysis.chips import CHIPS
from world_model.parallel import host_rows, sharding
from world_model.parallel.remat import remat
from world_model.training import state
from world_model.training.train_step import (
    COMPILER_OPTIONS,
    FAILING_WITH_EXPERTS,
    VECTOR_MEMORY,
    VECTOR_MEMORY_KIB,
    compiler_options,
    gradients,
    jit_train_step,
    make_train_step,
    split,
)

EXPERIMENT = tiny.Experiment(tiny.config())
MODEL, LOSS = EXPERIMENT.model, EXPERIMENT.loss
PARAMS = jax.tree.map(np.asarray, MODEL.init_params(jax.random.key(0)))
BATCH = tiny.make_batch(3, range(16))
MESHES = {"fsdp 8": (1, 8, 1, 1), "fsdp 4 x tensor 2": (1, 4, 2, 1), "data 2 x fsdp 2 x tensor 2": (2, 2, 2, 1),
          "fsdp 2 x tensor 2 x context 2": (1, 2, 2, 2)}


QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # compiling is the time here


def one_step(microbatches=1, **options):
    """(state before, state after, metrics) of one step on one device. The state is not donated."""
    optimizer = EXPERIMENT.optimizer
    before = state.create(PARAMS, optimizer, seed=1, trainable=options.get("trainable", ".*"),
                          ema=options.get("ema_decay", 0) > 0)
    before["opt"]["count"] += 1  # past the first step, whose rate is 0
    step = make_train_step(LOSS, LOSS.count, optimizer, accumulation=microbatches, **options)
    return before, *jax.jit(step, compiler_options=QUICK)(before, BATCH)


def grads_on(mesh, microbatches):
    """(loss, gradients) of BATCH with parameters and batch laid out over `mesh`."""
    def run(params, batch):
        counts, key = LOSS.count(batch), jax.random.key(5)
        (loss, _), grads = gradients(LOSS, params, set(params), batch, key, counts, microbatches, specs)
        return loss, grads

    placed = sharding.shardings(MODEL.axes(), MODEL.shapes(), mesh)
    specs = {name: p.spec for name, p in placed.items()}
    with jax.set_mesh(mesh):
        compiled = jax.jit(run, out_shardings=(None, placed), compiler_options=QUICK)
        return compiled(jax.device_put(PARAMS, placed), host_rows.put_batch(BATCH, mesh))


@pytest.fixture(scope="module")
def reference():
    return grads_on(sharding.make_mesh(devices=jax.devices()[:1]), 1)


@pytest.mark.parametrize("name", MESHES)
def test_loss_and_gradients_do_not_depend_on_the_mesh(reference, name):
    loss, grads = grads_on(sharding.make_mesh(*MESHES[name]), 2 if name == "data 2 x fsdp 2 x tensor 2" else 1)
    np.testing.assert_allclose(loss, reference[0], rtol=1e-5)
    for name, g in grads.items():
        scale = np.abs(reference[1][name]).max()
        np.testing.assert_allclose(g / scale, reference[1][name] / scale, atol=1e-5, err_msg=name)


def test_microbatches_add_up_to_the_whole():
    _, whole, metrics = one_step()
    _, parts, summed = one_step(microbatches=4)
    for name in ("loss", "video_loss", "grad_norm", "low_noise/sum", "low_noise/count"):
        np.testing.assert_allclose(summed[name], metrics[name], rtol=1e-5, err_msg=name)
    for name in PARAMS:
        np.testing.assert_allclose(parts["opt"]["mu"][name], whole["opt"]["mu"][name], rtol=1e-4, atol=1e-7)


def test_microbatches_take_rows_from_every_device():
    np.testing.assert_array_equal(split(jnp.arange(8), 2), [[0, 2, 4, 6], [1, 3, 5, 7]])


def test_frozen_parameters_stay_and_the_trained_move():
    before, after, metrics = one_step(trainable=r"^blocks\.", ema_decay=0.9)
    for name in PARAMS:
        moved = not np.array_equal(before["params"][name], after["params"][name])
        assert moved == name.startswith("blocks."), name
    assert after["opt"]["mu"].keys() == after["ema"].keys() == {n for n in PARAMS if n.startswith("blocks.")}
    name = "blocks.q.kernel"
    np.testing.assert_allclose(after["ema"][name], 0.9 * before["ema"][name] + 0.1 * after["params"][name], rtol=1e-5)
    assert after["step"] == 1 and metrics["learning_rate"] > 0


def test_masters_stay_float32_while_the_model_computes_in_bfloat16():
    seen = {}

    def loss_fn(params, batch, key, counts):
        seen.update({name: p.dtype for name, p in params.items()})
        return sum(jnp.sum(p.astype(jnp.float32) ** 2) for p in params.values()), {}

    optimizer = EXPERIMENT.optimizer
    before = state.create(PARAMS, optimizer, seed=0)
    step = make_train_step(loss_fn, lambda batch: {}, optimizer, accumulation=2,
                           cast=lambda params: {name: p.astype(jnp.bfloat16) for name, p in params.items()})
    after, metrics = jax.eval_shape(step, before, BATCH)
    assert set(seen.values()) == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves((after["params"], after["opt"]["mu"]))} == {jnp.dtype(jnp.float32)}
    assert metrics["grad_norm"].dtype == jnp.float32


def test_the_key_of_a_step_is_a_function_of_seed_and_step():
    def step_key(seed, step):
        def loss_fn(params, batch, key, counts):
            return (jnp.sum(params["w"]), {"bits": jax.random.bits(key)})
        optimizer = EXPERIMENT.optimizer
        now = state.create({"w": jnp.ones(2)}, optimizer, seed=seed) | {"step": jnp.int32(step)}
        return int(make_train_step(loss_fn, lambda batch: {}, optimizer)(now, {})[1]["bits"])

    assert step_key(0, 4) == int(jax.random.bits(jax.random.fold_in(jax.random.key(0), 4)))
    assert len({step_key(0, 4), step_key(0, 5), step_key(1, 4)}) == 3


def test_the_compiled_step_reuses_the_buffers_of_its_state():
    optimizer, mesh = EXPERIMENT.optimizer, sharding.make_mesh(2, 2, 2, 1)
    def make():
        return state.create({"w": jnp.ones((4, 6))}, optimizer, seed=0, ema=True)
    target = state.abstract_state(make, sharding.shardings({"w": ("embed", "heads")}, {"w": (4, 6)}, mesh))
    before = state.init_state(make, target)
    def loss_fn(params, batch, key, counts):
        return (jnp.sum(batch["x"] @ params["w"]), {})
    step = jit_train_step(make_train_step(loss_fn, lambda batch: {}, optimizer, ema_decay=0.9), target)
    with jax.set_mesh(mesh):
        after, _ = step(before, host_rows.put_batch({"x": np.ones((8, 4), np.float32)}, mesh))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert jax.tree.map(lambda leaf: leaf.sharding, after) == state.state_shardings(target)


@pytest.mark.parametrize("policy", ["full", "dots"])
def test_remat_changes_no_gradient_and_keeps_less(policy):
    def residuals(fn):
        return sum(x.size for x in jax.tree.leaves(jax.vjp(fn, 0.3 * jnp.ones((8, 8)))[1]))

    def fn(x):
        return jnp.sum(jnp.sin(jnp.sin(jnp.sin(x @ x))))
    np.testing.assert_allclose(jax.grad(remat(fn, policy))(jnp.eye(8)), jax.grad(fn)(jnp.eye(8)), rtol=1e-6)
    assert residuals(remat(fn, policy)) < residuals(remat(fn, "none"))


def test_an_unknown_policy_lists_the_names():
    with pytest.raises(ValueError, match=r"train.remat = 'all' is no policy; there are none, full, lean, added, wide, dots"):
        remat(lambda x: x, "all")


def test_a_mixture_of_experts_is_compiled_without_the_option_that_fails():
    tpu, cpu = (SimpleNamespace(platform=name, device_kind=name) for name in ("tpu", "cpu"))
    dense = compiler_options(tpu, {"blocks.mlp.fc1.kernel": BATCH})
    mixture = compiler_options(tpu, {"expert_blocks.mlp.experts_fc1": BATCH})
    assert dense == COMPILER_OPTIONS["tpu"] and compiler_options(cpu, {}) == {}
    assert dense | dict.fromkeys(dense.keys() & {FAILING_WITH_EXPERTS}, "false") == mixture


def test_a_chip_has_its_own_limit_of_vector_memory():
    v6e = SimpleNamespace(platform="tpu", device_kind=CHIPS["v6e"].kind)
    assert compiler_options(v6e, {}) == COMPILER_OPTIONS["tpu"] | {VECTOR_MEMORY: "98304"}
    assert set(VECTOR_MEMORY_KIB) <= {chip.kind for chip in CHIPS.values()}
