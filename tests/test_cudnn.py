"""What cuDNN's attention lowers to for a GPU, without one; its numbers are held through XLA in test_attention.py."""

import collections
import re

import jax
import jax.numpy as jnp
import pytest

from configs import lingbot_va_5b, lingbot_vla_4b
from launch.setup import fit, training
from launch.setup.experiment import Experiment
from tests.test_attention import SEQUENCE, arrays
from world_model.attention import make_attend, visibility
from world_model.attention.context import get_attend_context
from world_model.families.dreamzero.visibility import TABLES
from world_model.parallel.remat import remat

TABLE = visibility.get_table("dreamzero", TABLES)


@pytest.fixture(autouse=True)
def cudnn_is_here(monkeypatch):
    """JAX asks for cuDNN's version when it traces."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91300)


def lower(jitted, *arguments) -> tuple[collections.Counter, str]:
    """(cuDNN's kernels by name, the program)."""
    text = jitted.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    return collections.Counter(re.findall(r"@__cudnn\$(\w+)", text)), text


def lower_step(config, devices: int) -> tuple[collections.Counter, str]:
    """`lower` of a train step with so many samples on so many devices."""
    config.model.attention, config.train.remat, config.train.global_batch_size = "cudnn", "wide", devices
    experiment = Experiment(config).fitted(jax.devices()[:devices])
    mesh = training.make_mesh(experiment.config, jax.devices()[:devices])
    _, target = training.make_target(experiment, mesh)
    with jax.set_mesh(mesh):
        return lower(training.make_step(experiment, target), target, training.abstract_batch(experiment, mesh))


def shapes() -> set[tuple[int, int]]:
    """(queries, keys) of the spans, brought to even lengths."""
    def count(ranges):
        return sum(stop - start for start, stop in ranges)
    spans = visibility.make_spans(TABLE, SEQUENCE, SEQUENCE)
    found = {(count(s.queries), count(s.keys)) for s in spans}
    assert any(q % 2 for q, _ in found) and any(k % 2 for _, k in found) and len(found) > 4
    return {(q + q % 2, k + k % 2) for q, k in found}


@pytest.mark.parametrize("policy, forward", [("none", 1), ("lean", 1), ("products", 1), ("full", 2)])
def test_each_shape_of_span_is_one_kernel_each_way(policy, forward):
    """In a loop over layers, as the model has it; what the backward pass reads is kept, unless nothing is."""
    (x, _, _), _, valid = arrays()
    attend = make_attend("cudnn", TABLE, SEQUENCE, SEQUENCE)
    block = remat(lambda x: jnp.tanh(attend(2 * x, x, x, valid)), policy)
    def value(x):
        return jax.lax.scan(lambda x, _: (block(x), None), x, length=2)[0].sum(dtype=jnp.float32)
    kernels, text = lower(jax.jit(jax.value_and_grad(value)), x.astype(jnp.bfloat16))
    assert kernels == {"fmhaSoftmax": forward * len(shapes()), "fmhaSoftmaxBackward": len(shapes())}
    assert "stablehlo.exponential" not in text and "stablehlo.dot_general" not in text
    span = r"tensor<\d+x(\d+)x2x8xbf16>"  # [samples, tokens, heads, d]
    calls = re.findall(rf"@__cudnn\$fmhaSoftmax\(.*: \({span}, {span},", text)
    assert {(int(q), int(k)) for q, k in calls} == shapes()


def test_cross_attention_is_a_kernel_too():
    q, k = jax.ShapeDtypeStruct((2, 31, 4, 8), jnp.bfloat16), jax.ShapeDtypeStruct((2, 5, 4, 8), jnp.bfloat16)
    attend = get_attend_context("cudnn")
    kernels, text = lower(jax.jit(jax.grad(lambda q, k: attend(q, k, k).sum(dtype=jnp.float32))), q, k)
    assert kernels == {"fmhaSoftmax": 1, "fmhaSoftmaxBackward": 1} and "stablehlo.dot_general" not in text


def test_a_train_step_lowers_for_a_gpu():
    """Of LingBot-VA, which draws who sees whom: a mask, which cuDNN takes as a bias."""
    kernels, _ = lower_step(lingbot_va_5b.get_config("debug"), 1)
    assert kernels["fmhaScaleBiasSoftmax"] == kernels["fmhaScaleBiasSoftmaxBackward"] > 5
    assert kernels["fmhaSoftmax"] == kernels["fmhaSoftmaxBackward"] == 2  # cross-attention of the loop, and of the last
    assert len(kernels) == 4


@pytest.mark.parametrize("make", [lingbot_va_5b, lingbot_vla_4b], ids=["LingBot-VA", "LingBot-VLA"])
def test_several_gpus_each_run_the_kernel(make):
    """What the partitioner would have to split it cannot, in the part of a step where `data` and `fsdp` are manual."""
    kernels, text = lower_step(make.get_config("debug"), 4)
    assert sum(kernels.values()) > 5 and "CustomSPMDPartitioning" not in text


def test_vision_and_language_attend_in_kernels():
    """LingBot-VLA's lengths are odd; where all that exist see the same, there is no mask of pairs."""
    kernels, _ = lower_step(lingbot_vla_4b.get_config("debug"), 1)
    assert kernels["fmhaSoftmax"] == kernels["fmhaSoftmaxBackward"] == 1  # the language model's
    assert kernels["fmhaScaleBiasSoftmax"] == kernels["fmhaScaleBiasSoftmaxBackward"] == 2  # windows; state and actions


def test_float32_products_are_exact_where_the_config_says_so():
    config = lingbot_va_5b.get_config("debug")
    config.train.float32_products = "highest"
    before = jax.config.jax_default_matmul_precision
    try:
        Experiment(config)
        x = jnp.ones((4, 4))
        text = jax.jit(lambda x: x @ x).trace(x).lower(lowering_platforms=("cuda",)).as_text()
        assert "precision = [HIGHEST, HIGHEST]" in text
    finally:
        jax.config.update("jax_default_matmul_precision", before)


def test_what_the_devices_or_the_dtype_do_not_have_is_named():
    config = lingbot_va_5b.get_config("debug")
    config.model.attention = "cudnn"
    with pytest.raises(ValueError, match="'cudnn' is a kernel for GPUs, and the devices are cpus: --config.model.attent"):
        fit.check_kernel(config)
    config.train.compute_dtype = "float32"
    gpu = type("Gpu", (), {"platform": "gpu"})
    with pytest.raises(ValueError, match="train.compute_dtype is float32: --config.train.compute_dtype=bfloat16, or "):
        fit.check_kernel(config, [gpu])
