"""Plans: what is reckoned from a compiled step, and what a wrong question is answered with. The compiler here is the
CPU's, on eight virtual devices: the text it writes is read by the same code as the TPU's."""

import jax
import pytest

from configs import dreamzero_5b, dreamzero_14b
from launch import plan
from launch.chips import CHIPS

PROMISED = {
    "topology", "chips", "mesh", "global_batch", "remat", "parameters", "model_flops_per_sample",
    "executed_flops_per_sample", "visible_attention_flops_per_sample", "executed_attention_flops_per_sample",
    "hbm_peak_gib_per_chip", "hbm_capacity_gib_per_chip", "collective_bytes_per_chip", "fsdp_minimum_bytes_per_chip",
    "step_seconds_overlapped", "step_seconds_serial", "mfu_overlapped", "mfu_serial", "samples_per_second_per_chip",
    "lower_seconds", "compile_seconds"}


@pytest.fixture(scope="module")
def planned():
    config = dreamzero_14b.get_config("debug")
    config.train.compute_dtype = "float32"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "describe_topology", lambda *_: (CHIPS["v5p"], jax.devices()))
        return plan.plan(config, "v5p:2x2x2")


def test_a_plan_has_what_was_promised(planned):
    assert planned.keys() >= PROMISED
    assert planned["chips"] == 8 and planned["mesh"]["fsdp"] == 8
    assert all(planned[name] > 0 for name in PROMISED - {"topology", "mesh", "remat"})
    assert planned["step_seconds_overlapped"] <= planned["step_seconds_serial"]


def test_a_plan_counts_all_work(planned):
    """Full rematerialisation runs the blocks' forward twice: between 1 and 4/3 of the model's own work, but for the
    embedders of frozen features, of which the model's count is exact and the program's is not."""
    ratio = planned["executed_flops_per_sample"] / planned["model_flops_per_sample"]
    assert 1.0 < ratio < 1.4
    attention = planned["executed_attention_flops_per_sample"] / planned["visible_attention_flops_per_sample"]
    assert 1.0 <= attention < 1.4


def test_a_plan_can_be_read(planned):
    text = plan.describe(planned)
    assert "v5p:2x2x2" in text and "MFU" in text and "all-gather over 8" in text


@pytest.mark.parametrize("module", [dreamzero_14b, dreamzero_5b])
def test_the_real_configs_are_the_published_sizes(module):
    config = module.get_config()
    family = plan.build.model(config)
    tokens, layout = family.spec.tokens_per_frame, plan.build.layout_of(config)
    count = sum(p.size for p in jax.eval_shape(family.init_params, jax.random.key(0)).values())
    assert (tokens, count) == {dreamzero_14b: (880, 16_484_292_448), dreamzero_5b: (50, 5_606_692_832)}[module]
    assert (layout.latent_frames, layout.num_blocks, layout.num_actions) == (9, 4, 96)


def test_unknown_chips_are_named():
    with pytest.raises(plan.PlanError, match="'v9' is no chip; there are v5e, v5p"):
        plan.describe_topology("v9:2x2")


def test_a_missing_compiler_is_named(monkeypatch):
    def missing(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(plan.topologies, "get_topology_desc", missing)
    with pytest.raises(plan.PlanError, match=r"pip install 'wamax\[tpu\]'"):
        plan.describe_topology("v5p:2x2x1")


def test_a_batch_that_does_not_divide_is_named(monkeypatch):
    config = dreamzero_14b.get_config("debug")
    config.train.global_batch_size = 12
    monkeypatch.setattr(plan, "describe_topology", lambda *_: (CHIPS["v5p"], jax.devices()))
    with pytest.raises(ValueError, match="nearest: (8|16)"):
        plan.plan(config, "v5p:2x2x2")
