"""LingBot-VA's PyTorch runtime: the goldens' inference, exports through the gate, and weights that do not fit."""

import json
from pathlib import Path

import numpy as np
import pytest

from configs import lingbot_va_5b, lingbot_va_mot_5b, quickstart
from launch import export, import_weights, parity
from launch.setup.experiment import Experiment
from launch.setup.restore import Restored
from world_model.families.dreamzero.torch import loading
from world_model.families.lingbot_va.torch import network as torch_lingbot_va
from world_model.families.lingbot_va.torch.sampler import LingBotVATorchSampler
from world_model.weights.safetensors_io import Weights, WeightsError, write

GOLDENS = Path(__file__).parent / "goldens"
STEM = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def golden():
    return parity.read(GOLDENS / "lingbot_va_tiny.npz")


@pytest.mark.filterwarnings("ignore:evaluate.window_blocks")
def test_inference_equals_the_golden(golden):
    """Cached passes, cache contents with eviction, the serving loop whole and partly denoised."""
    differences = parity.compare(golden, golden.adapter("torch"))
    assert {entry.split("/")[0] for entry in differences} == {"inf", "srv"} and len(differences) > 60
    assert parity.first_above(differences, 5e-5) is None


def test_weights_are_loaded_strictly(golden):
    swapped = dict(golden.weights)
    swapped["blocks.0.norm4.weight"] = swapped.pop("blocks.0.norm2.weight")
    with pytest.raises(RuntimeError, match=r"Missing key[\s\S]*norm3.weight[\s\S]*Unexpected key[\s\S]*norm4"):
        golden.adapter("torch", swapped)


@pytest.fixture(scope="module")
def restored(tmp_path_factory):
    return untrained(quickstart.get_config("lingbot_va_debug"), tmp_path_factory.mktemp("run"))


def untrained(config, workdir):
    """A model with every parameter random."""
    config.evaluate.update(solver_steps=2, action_steps=2, window_blocks=4, guidance=2.0)
    experiment, rng = Experiment(config), np.random.default_rng(0)
    shapes = experiment.model.shapes
    params = {name: (0.2 * rng.normal(size=x.shape) + name.endswith("scale")).astype(np.float32)
              for name, x in shapes.items()}
    return Restored(experiment, 7, params, {}, {}, workdir)


@pytest.fixture(scope="module")
def exported(restored, quick_compiles, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "export"
    return out, export.export(restored, out)


@pytest.mark.filterwarnings("ignore:evaluate.window_blocks")
def test_an_export_passes_the_gate_on_final_actions(exported):
    out, report = exported
    assert report["compared_with"] == "PyTorch runtime" and report["passed"] and report["max"] < 2e-5
    assert {"reacting/chunk2_actions", "imagined/chunk2_actions", "reacting/chunk0_latents"} <= report["entries"].keys()
    assert json.loads((out / "wamax.json").read_text())["rollout"]["guidance"] == 2.0


@pytest.mark.filterwarnings("ignore:evaluate.window_blocks")
def test_a_mixture_of_transformers_passes_the_gate_and_is_read_strictly(quick_compiles, tmp_path):
    """Two narrower streams that meet in the cache: every chunk's latents and actions; no other variant reads it."""
    config = lingbot_va_mot_5b.get_config("debug")
    config.model.update(num_layers=2)
    config.layout.update(frames=13)
    restored, out = untrained(config, tmp_path), tmp_path / "export"
    report = export.export(restored, out)
    assert report["passed"] and report["max"] < 2e-5
    assert {f"{kind}/chunk{chunk}_{what}" for kind in ("reacting", "imagined") for chunk in (0, 1)
            for what in ("latents", "actions")} == report["entries"].keys()
    found = import_weights.import_weights(config, "lingbot_va_mot", out, None)
    assert found["parameters_loaded"] == len(restored.params) and not found["left_in_source"]
    with pytest.raises(WeightsError, match=r"config.json: expected the class WanTransformer3DModel, found Wamax"):
        import_weights.import_weights(lingbot_va_5b.get_config("debug"), "lingbot_va", out, None)
    spec = torch_lingbot_va.load(out)[1]
    weights = dict(Weights(out / "transformer", STEM))
    weights["blocks.1.action.attn1.to_k.weight"] = weights.pop("blocks.1.video.attn1.to_k.weight")
    with pytest.raises(RuntimeError, match=r"Missing key[\s\S]*blocks.1.video.self_attn.k.weight[\s\S]*size mismatch"):
        torch_lingbot_va.load_network(weights, spec)


@pytest.mark.filterwarnings("ignore:evaluate.window_blocks")
def test_another_number_of_steps_is_found(restored, quick_compiles, tmp_path, monkeypatch):
    """The gate is no formality: what PyTorch does otherwise is told, and the directory put aside."""
    plain = torch_lingbot_va.load

    def load(*place, **options):
        network, spec, settings = plain(*place, **options)
        return network, spec, settings | {"action_steps": 3}

    monkeypatch.setattr(torch_lingbot_va, "load", load)
    with pytest.raises(export.ParityError, match="reacting/chunk0_actions differs"):
        export.export(restored, tmp_path / "out")
    assert (tmp_path / "out.rejected" / "parity.json").exists() and not (tmp_path / "out").exists()


def test_what_does_not_fit_is_named(exported, restored, tmp_path):
    out, _ = exported
    weights = dict(Weights(out / "transformer", STEM))
    broken = tmp_path / "broken"
    (broken / "transformer").mkdir(parents=True)
    for name in ("wamax.json", "transformer/config.json"):
        (broken / name).write_text((out / name).read_text())
    weights["proj_out.weight"] = weights["proj_out.weight"][:-1]
    write(broken / "transformer", weights.items(), stem=STEM)
    with pytest.raises(WeightsError, match=r"proj_out.weight: expected F32 .* found F32"):
        torch_lingbot_va.load(broken)


def test_settings_outside_the_trained_range_warn_and_impossible_ones_are_refused(golden):
    with pytest.warns(UserWarning, match=r"chunk_frames = 5 lies outside the trained range 1\.\.4"):
        LingBotVATorchSampler(None, golden.spec, chunk_frames=5)
    with pytest.raises(ValueError, match="must be an even number"):
        LingBotVATorchSampler(None, golden.spec, window_blocks=7)


def test_directories_of_the_other_family_are_refused_both_ways(exported, tmp_path):
    with pytest.raises(WeightsError, match=r"config.json: missing; a wamax export has its configuration there"):
        loading.load(exported[0])
    (tmp_path / "config.json").write_text(json.dumps({"wamax": {}}))  # where DreamZero's exports have theirs
    with pytest.raises(WeightsError, match=r"wamax.json: missing; .* is no export of a LingBot-VA model"):
        torch_lingbot_va.load(tmp_path)
