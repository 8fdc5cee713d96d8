"""Plans: what is reckoned from a compiled step, and what a wrong question is answered with. The compiler here is the
CPU's, on eight virtual devices: the text it writes is read by the same code as the TPU's."""

import json
from types import SimpleNamespace

import jax
import pytest

from benchmarks import plan_table
from configs import dreamzero_5b, dreamzero_14b
from launch import plan
from launch.planning import encoding, estimate, gpu, plan_text
from launch.setup import fit
from launch.setup.experiment import Experiment
from world_model.analysis.chips import CHIPS

PROMISED = {
    "topology", "chips", "mesh", "global_batch", "remat", "parameters", "model_flops_per_sample",
    "executed_flops_per_sample", "visible_attention_flops_per_sample", "executed_attention_flops_per_sample",
    "hbm_peak_gib_per_chip", "hbm_needed_gib_per_chip", "hbm_capacity_gib_per_chip", "collective_bytes_per_chip",
    "fsdp_minimum_bytes_per_chip",
    "step_seconds", "step_seconds_least", "step_seconds_most", "mfu", "mfu_least", "mfu_most",
    "samples_per_second_per_chip", "run", "seconds_by_part",
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
    assert all(planned[name] > 0 for name in PROMISED - {"topology", "mesh", "remat", "run", "seconds_by_part"})
    assert planned["step_seconds_least"] <= planned["step_seconds"] <= planned["step_seconds_most"]
    assert planned["mfu_least"] <= planned["mfu"] <= planned["mfu_most"]


def test_a_plan_counts_all_work(planned):
    """Full rematerialisation runs the blocks' forward twice: between 1 and 4/3 of the model's own work, but for the
    embedders of frozen features, of which the model's count is exact and the program's is not."""
    ratio = planned["executed_flops_per_sample"] / planned["model_flops_per_sample"]
    assert 1.0 < ratio < 1.4
    attention = planned["executed_attention_flops_per_sample"] / planned["visible_attention_flops_per_sample"]
    assert 1.0 <= attention < 1.4


def test_plans_make_a_table(planned, tmp_path):
    (tmp_path / "tiny.json").write_text(json.dumps(planned))
    row = plan_table.table([plan_table.read(tmp_path / "tiny.json")]).splitlines()[2]
    assert row.startswith("| tiny |") and f"{planned['hbm_needed_gib_per_chip']:.1f} of" in row
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(ValueError, match="torn.json"):
        plan_table.read(tmp_path / "torn.json")


def test_a_plan_can_be_read(planned):
    text = plan_text.report(planned)
    assert "v5p:2x2x2" in text and "MFU" in text and "all-gather over 8 of fsdp" in text
    assert "planned, not run: step" in text


@pytest.mark.parametrize("module", [dreamzero_14b, dreamzero_5b])
def test_the_real_configs_are_the_published_sizes(module):
    config = module.get_config()
    model = Experiment(config).model
    tokens, layout = model.spec.tokens_per_frame, model.spec.layout
    count = sum(p.size for p in jax.eval_shape(model.init_params, jax.random.key(0)).values())
    assert (tokens, count) == {dreamzero_14b: (880, 16_484_292_448), dreamzero_5b: (50, 5_606_692_832)}[module]
    assert (layout.latent_frames, layout.num_blocks, layout.num_actions) == (9, 4, 96)


def test_a_missing_compiler_is_named_with_its_extra(monkeypatch):
    def missing(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(plan.topologies, "get_topology_desc", missing)
    with pytest.raises(plan.PlanError, match=r"libtpu, the TPU compiler, is missing: pip install 'wamax\[tpu\]'"):
        plan.describe_topology("v5p:2x2x2")


def test_unknown_chips_are_named():
    with pytest.raises(plan.PlanError, match="'v9' is no chip; there are v5e, v5p"):
        plan.describe_topology("v9:2x2")
    with pytest.raises(plan.PlanError, match=r"somebody describes \(h[12]00, h[12]00, .*a100.*\), as in h100:8"):
        plan.describe_topology("h800")


def test_a_gpu_that_is_not_here_is_described_or_what_is_missing_named(monkeypatch):
    seen = {}
    monkeypatch.setattr(gpu, "check_compiler", lambda _: None)
    monkeypatch.setattr(gpu.topologies, "get_topology_desc", lambda **given: seen.update(given) or Found)
    assert plan.describe_topology("h100:2x8") == (CHIPS["h100"], [Gpu] * 16)
    assert seen["topology"] == "1x2x8" and 'name: "NVIDIA H100 80GB HBM3"' in seen["target_config"]
    assert seen["target_config"].count("{") == seen["target_config"].count("}")
    with pytest.raises(ValueError, match="expected GPUs, or hosts x GPUs, as h100:8"):
        plan.describe_topology("h100:2x2x2")
    monkeypatch.undo()
    monkeypatch.setattr(gpu, "PLUGIN", "no_such_package.plugin")
    with pytest.raises(ValueError, match="compiled by JAX 0.11 or newer .Python 3.12. with its CUDA plug-in; here is"):
        plan.describe_topology("h100")


def test_one_gpu_holds_its_gradients_and_has_what_jax_takes_of_it(monkeypatch):
    """12 bytes a parameter of weights and moments, 4 of gradients and copies: of a 2B model `dots` does not fit, which
    would by 12 and all of the memory. A frozen one of 4B in bfloat16 takes 8, and leaves it room."""
    config = dreamzero_5b.get_config()
    config.train.global_batch_size = 16
    config.mesh.update(data=1, fsdp=1, tensor=1, context=1)
    spec, count = Experiment(config).model.spec, 2_000_000_000
    assert fit.choose_remat(config, Gpu, spec, held(count)) != "dots"
    config.optimizer.trainable = "trained"
    assert fit.choose_remat(config, Gpu, spec, held(2 * count, "bfloat16")) == "dots"  # 2 bytes, and nothing beside
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    assert CHIPS["h100"].usable_gib == pytest.approx(0.95 * 79.6) and CHIPS["v5p"].usable_gib == 95


def test_a_card_smaller_than_the_program_says_what_would_do(planned):
    text = plan_text.report(planned | {"hbm_needed_gib_per_chip": 100.0, "fits_on": ["h200", "b200"],
                                       "what_takes_less": ["--config.train.remat=full"]})
    assert "DOES NOT FIT" in text and "it would fit on h200, b200; what takes less memory" in text
    assert "  --config.train.remat=full" in text and "it would fit" not in plan_text.report(planned)


@pytest.mark.parametrize("chip, needed, fits", [("v6e", 24, True), ("h200", 36, True), ("l40s", 36, False)])
def test_a_tpu_needs_what_is_live_at_once_and_a_gpu_all(planned, chip, needed, fits):
    """libtpu compiles what is live at once within the chip: it refuses by that number. Nothing refuses for a GPU."""
    found = estimate.memory_of(Memory, CHIPS[chip])
    assert (found["hbm_needed_gib_per_chip"], found["hbm_peak_gib_per_chip"]) == (needed, 36)
    text = plan_text.report(planned | found | {"fits_on": []})
    assert ("(fits): at most 24.0 at once; arguments 3.0 and temporaries 33.0" in text) == fits
    assert ("DOES NOT FIT" in text) != fits


def test_the_devices_here_are_planned_for_where_something_is_published_of_them(monkeypatch):
    with pytest.raises(plan.PlanError, match="no figures of 'cpu', the devices here; .* NVIDIA H100"):
        plan.describe_topology("local")
    monkeypatch.setattr(plan.jax, "devices", lambda: [Gpu] * 8)
    assert plan.describe_topology("local") == (CHIPS["h100"], [Gpu] * 8)


def test_a_kernel_for_other_devices_is_named():
    with pytest.raises(ValueError, match="'flash' is a kernel for TPUs, and the devices are cpus: --config.model.att"):
        fit.check_kernel(dreamzero_14b.get_config())


def test_a_missing_compiler_is_named(monkeypatch):
    def missing(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(plan.topologies, "get_topology_desc", missing)
    with pytest.raises(plan.PlanError, match=r"pip install 'wamax\[tpu\]'"):
        plan.describe_topology("v5p:2x2x1")


def test_encoders_without_weights_are_not_planned():
    with pytest.raises(ValueError, match=r"--encoders: this config's encoders of video.* have no weights"):
        encoding.plan(Experiment(dreamzero_5b.get_config("debug")), CHIPS["v5e"], jax.devices()[0])


def test_a_batch_that_does_not_divide_is_named(monkeypatch):
    config = dreamzero_14b.get_config("debug")
    config.train.global_batch_size = 12
    config.mesh.update(data=1, fsdp=-1, context=1)
    monkeypatch.setattr(plan, "describe_topology", lambda *_: (CHIPS["v5p"], jax.devices()))
    with pytest.raises(ValueError, match="nearest: (8|16)"):
        plan.plan(config, "v5p:2x2x2")


def held(count: int, dtype: str = "float32") -> dict:
    """The abstract state of so many parameters, of which one is trained where they are bfloat16."""
    trained = count if dtype == "float32" else 1
    arrays = {"params": {"frozen": (count - trained, dtype), "trained": (trained, "float32")},
              "mu": {"trained": (trained, "float32")}, "nu": {"trained": (trained, "float32")}}
    return jax.tree.map(lambda one: jax.ShapeDtypeStruct(one[:1], one[1]), arrays,
                        is_leaf=lambda x: isinstance(x, tuple))


class Gpu:
    """As JAX shows one."""

    device_kind, platform = "NVIDIA H100 80GB HBM3", "gpu"


class Memory:
    """A compiler's account: more arguments and temporaries than a v6e has, and less at once."""

    argument_size_in_bytes, temp_size_in_bytes, peak_memory_in_bytes = 3 * 2**30, 33 * 2**30, 24 * 2**30
    output_size_in_bytes = alias_size_in_bytes = generated_code_size_in_bytes = 0


class Found:
    """What a topology's description gives."""

    devices = (Gpu,) * 16


def test_the_mesh_is_chosen_for_the_devices():
    config = dreamzero_14b.get_config()
    config.train.global_batch_size = 128
    assert fit.choose_mesh(config, 64) == {"data": 1, "fsdp": 64, "tensor": 1, "context": 1}
    # Half a sample per device: two devices share its tokens.
    assert fit.choose_mesh(config, 256) == {"data": 2, "fsdp": 64, "tensor": 1, "context": 2}
    config.train.global_batch_size = 50
    with pytest.raises(ValueError, match="no mesh divides train.global_batch_size = 50 .* over 64 devices; nearest"):
        fit.choose_mesh(config, 64)


@pytest.mark.parametrize("chip, batch, remat", [
    ("v5p", 64, "dots"), ("v5p", 128, "added"), ("v5p", 512, "full"), ("v6e", 64, "lean"),
    ("h100", 128, "full")])  # where all that a program allocates has to fit, `lean` takes more
def test_more_samples_and_less_memory_a_chip_keep_less(chip, batch, remat):
    config = dreamzero_14b.get_config()
    config.train.global_batch_size = batch
    config.mesh.update(fit.choose_mesh(config, 64))
    platform = "tpu" if chip.startswith("v") else "gpu"
    spec, device = Experiment(config).model.spec, SimpleNamespace(device_kind=CHIPS[chip].kind, platform=platform)
    assert fit.choose_remat(config, device, spec, held(16_484_292_448)) == remat


def test_nothing_stays_open_on_a_cpu():
    config = dreamzero_14b.get_config("debug")
    fitted = Experiment(config).fitted().config
    assert 0 not in fitted.mesh.values() and fitted.train.remat == "full"
    config.train.remat = "auto"
    assert Experiment(config).fitted().config.train.remat == "products"  # no chip is known by its memory


def test_a_sweep_is_sorted_by_throughput_with_what_does_not_fit_last():
    good = {"mesh": {"fsdp": 8}, "remat": "full", "hbm_capacity_gib_per_chip": 95.0, "mfu": 0.5, "mfu_least": 0.4,
            "mfu_most": 0.6}
    plans = [good | {"hbm_needed_gib_per_chip": 20.0, "samples_per_second_per_chip": 0.1},
             good | {"hbm_needed_gib_per_chip": 99.0, "samples_per_second_per_chip": 0.3},
             {"topology": "v5p:2x2x2", "context": 3, "remat": "full", "error": "no mesh divides"},
             good | {"hbm_needed_gib_per_chip": 50.0, "samples_per_second_per_chip": 0.2}]
    lines = plan_text.table(plans).splitlines()
    assert [line[:7] for line in lines[:3]] == ["0.20000", "0.10000", "0.30000"]
    assert "4.0 TOO MUCH" in lines[2] and "no mesh divides" in lines[3]
