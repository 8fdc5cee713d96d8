"""LingBot-VLA's training step: routers' biases by their rule, and in float32 whatever the rest is; teachers' heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import lingbot_vla_v2_6b
from launch.setup import training
from launch.setup.experiment import Experiment
from tests import tiny_policy
from world_model.analysis.program import Program
from world_model.families.lingbot_vla.flops import forward_flops
from world_model.families.lingbot_vla.inputs import field_of
from world_model.families.lingbot_vla.loss import BIAS, LOAD, moved_bias
from world_model.families.lingbot_vla.spec import HEADS
from world_model.parallel import host_rows
from world_model.training import state

pytestmark = pytest.mark.usefixtures("quick_compiles")
BATCH, SPEED = 4, 2.5e-4
QUERIES = {"query_tokens": 2, "query_seeds": 8, "teacher_width": 6, "teacher_heads": 2, "teacher_head_width": 8}


def experiment_of(**sections) -> Experiment:
    config = lingbot_vla_v2_6b.get_config("debug")
    config.optimizer.warmup_fraction, config.train.global_batch_size = 0.0, BATCH
    for section, values in sections.items():
        config[section].update(values)
    return Experiment(config)


def batch_of(experiment) -> dict:
    rng = np.random.default_rng(0)
    def values(shape, dtype):
        if np.dtype(dtype).kind in "iu":
            return rng.integers(1, 8, shape).astype(dtype)
        return np.ones(shape, bool) if dtype == np.bool_ else rng.normal(size=shape).astype(dtype)
    return {name: values((BATCH, *shape), dtype) for name, (shape, dtype) in experiment.inputs.batch_fields().items()
            } | {"sample_index": np.arange(BATCH, dtype=np.uint32)}


def params_of(experiment) -> dict:
    return tiny_policy._weights(experiment.model.shapes, np.random.default_rng(0))


def step_of(experiment, batch):
    """(parameters after a step, metrics) on two devices, in two microbatches."""
    mesh = training.make_mesh(experiment.config, jax.devices()[:2])
    with jax.set_mesh(mesh):
        _, target = training.make_target(experiment, mesh)
        make = jax.jit(functools.partial(training.create_state, experiment, seed=experiment.config.seed), out_shardings=state.state_shardings(target))
        before = make(params_of(experiment))
        after, metrics = training.make_step(experiment, target)(before, host_rows.put_batch(batch, mesh))
    return jax.device_get((after["params"], metrics))


def test_biases_follow_the_load_of_the_whole_batch():
    experiment = experiment_of(loss={"bias_speed": SPEED, "bias_centred": True},
                               train={"accumulation": 2, "compute_dtype": "float32"},
                               optimizer={"weight_decay": 0.1})
    batch, before = batch_of(experiment), params_of(experiment)
    after, metrics = step_of(experiment, batch)
    assert LOAD not in metrics and np.isfinite(metrics["router_busiest"]) and metrics["router_busiest"] >= 1
    key = jax.random.fold_in(jax.random.key(experiment.config.seed), 0)
    _, whole = jax.jit(experiment.loss_fn)(before, batch, key, experiment.loss.count(batch))
    spec = experiment.model.spec
    tokens = BATCH * (1 + spec.layout.actions_per_block) * spec.experts_per_token
    np.testing.assert_array_equal(whole[LOAD].sum(axis=1), [tokens] * spec.num_layers)
    np.testing.assert_array_equal(after[BIAS], moved_bias(before[BIAS], whole[LOAD], SPEED, True))
    assert np.abs(after[BIAS] - before[BIAS]).max() > SPEED / 2
    np.testing.assert_allclose(after[BIAS].mean(axis=1), 0, atol=1e-7)


def test_a_bias_that_does_not_train_stays():
    load = jnp.array([[3.0, 1]])
    for speed, params in ((SPEED, {"other": 1}), (0.0, {BIAS: jnp.zeros((1, 2))})):
        found, metrics = experiment_of(loss={"bias_speed": speed}).loss.after_step(params, {LOAD: load, "loss": 2})
        assert found is params and metrics == {"loss": 2, "router_busiest": 1.5}


def test_routers_stay_float32_where_all_else_is_rounded():
    experiment = experiment_of()
    assert experiment.config.train.compute_dtype == "bfloat16"
    params, batch = params_of(experiment), batch_of(experiment)
    cast = experiment.model.cast(params, "bfloat16")
    assert {name for name, x in cast.items() if x.dtype == jnp.float32} == {
        f"expert_blocks.mlp.{name}" for name in ("router", "router_bias")}
    _, metrics = jax.jit(experiment.loss_fn)(cast, batch, jax.random.key(0), experiment.loss.count(batch))
    assert metrics[LOAD].dtype == jnp.float32 and np.isfinite(metrics["action_loss"])


def test_teachers_shape_the_queries_where_the_first_view_is_there():
    experiment = experiment_of(model=QUERIES | {"teachers": ("current_depth", "future_video")})
    batch, params = batch_of(experiment), params_of(experiment)
    batch["view_mask"][1, 0] = False

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params, batch):
        return experiment.loss_fn(params, batch, jax.random.key(0), experiment.loss.count(batch))

    (loss, metrics), gradients = run(params, batch)
    reached = {name.split("queries.")[1].split(".")[0] for name, g in gradients.items()
               if name.startswith("queries.") and np.abs(g).max() > 0}
    assert {name for name in reached if "head" in name} == {"current_depth_head", "future_video_head"}
    assert all(np.abs(gradients[f"language_final_block.{name}.kernel"]).max() > 0 for name in ("mlp.fc2", "self_attn.o"))
    assert metrics["teacher_current_depth"] > 0.1 and metrics["teacher_future_video"] > 0.1
    for row, same in ((1, True), (2, False)):
        changed = {name: x.copy() for name, x in batch.items()}
        changed[field_of("current_depth")][row] += 3
        assert (run(params, changed)[0][0] == loss) == same


def test_without_features_the_heads_cost_nothing_and_their_work_is_counted():
    batches = {}
    for teachers in ((), HEADS):
        experiment = experiment_of(model=QUERIES | {"teachers": teachers}, train={"compute_dtype": "float32"})
        batch = batches[teachers] = batch_of(experiment)

        def loss(params, batch, experiment=experiment):
            return experiment.loss_fn(params, batch, jax.random.key(0), experiment.loss.count(batch))

        text = jax.jit(loss).lower(experiment.model.shapes, batch).compiler_ir("hlo").as_hlo_text()
        counted = sum(flops for part in forward_flops(experiment.model.spec).values() for flops, _ in part)
        batches[teachers] = Program(text).executed_flops() / BATCH, counted
    (least, counted_least), (most, counted_most) = batches.values()
    assert most - least == pytest.approx(counted_most - counted_least, rel=0.15)


@pytest.mark.parametrize("model, message", [
    ({"teachers": ("current_depth",)}, r"model.teachers names 'current_depth': .* model.query_tokens \(here 0\)"),
    (QUERIES | {"teachers": ("depth",)}, "model.teachers names 'depth': there are current_depth, future_depth"),
    (QUERIES | {"query_seeds": 7}, "model.query_seeds = 7 does not divide into model.query_tokens = 2 groups")])
def test_bad_sizes_of_queries_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        _ = experiment_of(model=model).model
