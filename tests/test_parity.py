"""launch.parity: the JAX model against the goldens, and errors planted where it must find them."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from launch import parity
from world_model.families.lingbot_va.visibility import TABLES

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture
def golden():
    return parity.read(GOLDENS / "dreamzero_i2v_tiny.npz")


@pytest.fixture
def quick_compiles():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def only(golden, *sections):
    """The golden without the other sections, and without gradients."""
    golden.expected = {key: x for key, x in golden.expected.items()
                       if key.startswith(sections) and key not in ("tf/loss", "tf/grad_norm")
                       and not key.endswith("_loss")}
    return golden


def test_jax_model_equals_every_section_of_a_golden(golden, quick_compiles):
    differences = parity.compare(golden, golden.adapter("jax"))
    assert differences.keys() == golden.expected.keys()
    assert parity.first_above(differences, 1e-5) is None


def test_jax_model_without_first_frame_concatenation_equals_its_golden(quick_compiles):
    golden = only(parity.read(GOLDENS / "dreamzero_ti2v_tiny.npz"), "tf/", "tfv/")
    differences = parity.compare(golden, golden.adapter("jax"))
    assert {"tf/block0", "tf/block1", "tf/video", "tf/action", "tfv/sane_video"} <= differences.keys()
    assert parity.first_above(differences, 1e-5) is None


@pytest.mark.parametrize("runtime", ["jax", "torch"])
def test_the_references_cached_inference_past_its_window(quick_compiles, runtime):
    """Nine frames under a window of five: the first frame is gone for good, which training always sees."""
    golden = parity.read(GOLDENS / "dreamzero_window_tiny.npz")
    assert golden.spec.window_frames == 5 < golden.spec.layout.latent_frames == 9
    differences = parity.compare(golden, golden.adapter(runtime))
    assert {f"inf/block{i}_{part}" for i in range(4) for part in ("video", "action")} <= differences.keys()
    assert parity.first_above(differences, 1e-5) is None


@pytest.mark.parametrize("runtime, window_blocks", [("jax", 1), ("jax", 3), *(("torch", w) for w in range(5))])
def test_a_cached_rollout_is_the_training_forward_at_any_window(quick_compiles, runtime, window_blocks):
    """By default, on the same tokens; windows shorter than the clip included."""
    golden = parity.read(GOLDENS / "dreamzero_window_tiny.npz")
    golden.config["model"]["max_chunk_size"] = window_blocks
    adapter, parts, layout = golden.adapter(runtime), golden.parts(clean=True, actions=True), golden.spec.layout
    whole = adapter.forward(parts)
    session = adapter.start(parts["text"], parts["image"], golden.spec.rollout_visibility)
    session.prefill(parts["clean_latents"][:, :1], None)
    for i in range(layout.num_blocks):
        frames, actions = slice(1 + 2 * i, 3 + 2 * i), slice(4 * i, 4 * i + 4)
        cut = {"noisy_latents": frames, "video_timestep": frames, "noisy_actions": actions, "action_timestep": actions,
               "state": slice(i, i + 1)}
        out = session.denoise({name: parts[name][:, own] for name, own in cut.items()}, None)
        np.testing.assert_allclose(out.video, whole.video[:, frames], atol=1e-5)
        np.testing.assert_allclose(out.action, whole.action[:, actions], atol=1e-5)
        if i + 1 < layout.num_blocks:
            session.prefill(parts["clean_latents"][:, frames], None)


@pytest.mark.filterwarnings("ignore:evaluate.window_blocks")
def test_lingbot_va_equals_every_section_of_its_golden(quick_compiles):
    golden = parity.read(GOLDENS / "lingbot_va_tiny.npz")
    differences = parity.compare(golden, golden.adapter("jax"))
    assert differences.keys() == golden.expected.keys() and len(differences) == 209
    assert parity.first_above(differences, 1e-5) is None
    exact = ("mask/", "sched/shift0.05/infer", "sched/shift5/infer", "sched/shift1/infer")
    assert parity.first_above({k: d for k, d in differences.items() if k.startswith(exact)}, 0) is None
    assert parity.first_above({k: d for k, d in differences.items() if k.startswith("rope/")}, 1e-6) is None


@pytest.mark.filterwarnings("ignore:evaluate.window_blocks")
@pytest.mark.parametrize("runtime", ["jax", "torch"])
def test_without_guidance_a_file_has_the_conditional_row_alone(quick_compiles, runtime):
    """In the cached section, whatever the training batch is (2 here)."""
    golden = parity.read(GOLDENS / "lingbot_va_tiny.npz")
    golden.config["server"]["guidance"] = 1.0
    rows = {key: x for key, x in golden.expected.items() if key.startswith("inf/c0/")}
    golden.expected = {key: x if x.ndim < 3 else x[:1] for key, x in rows.items()}
    differences = parity.compare(golden, golden.adapter(runtime))
    assert len(differences) == len(rows) > 9 and parity.first_above(differences, 1e-5) is None


def test_a_changed_rule_is_found(monkeypatch):
    monkeypatch.setitem(TABLES, "lingbot_va", TABLES["lingbot_va_forward_dynamics"])
    golden = only(parity.read(GOLDENS / "lingbot_va_tiny.npz"), "mask/")
    assert parity.first_above(parity.compare(golden, None), 1e-4).startswith("first above 0.0001: mask/k2_w64 differs")


def test_a_file_of_no_known_family_is_named(tmp_path):
    np.savez(tmp_path / "other.npz", cfg_json=json.dumps({"model": {"width": 3}}))
    with pytest.raises(ValueError, match=r"no model of a known family.*among \['width'\]"):
        parity.read(tmp_path / "other.npz")


def planted(golden, change):
    weights = {key: x.copy() for key, x in golden.weights.items()}
    change(weights)
    differences = parity.compare(only(golden, "tf/"), golden.adapter("torch", weights))
    return parity.first_above(differences, 1e-4)


def swap(weights):
    a, b = "blocks.0.self_attn.k.weight", "blocks.0.self_attn.q.weight"
    weights[a], weights[b] = weights[b], weights[a]


def transpose(weights):
    weights["blocks.1.cross_attn.o.weight"] = np.ascontiguousarray(weights["blocks.1.cross_attn.o.weight"].T)


def nudge(weights):
    weights["blocks.0.ffn.2.weight"][3, 5] += 0.05


def spoil(weights):
    weights["head.head.bias"][0] = np.nan


@pytest.mark.parametrize("change,where", [
    (None, None), (swap, "tf/block0"), (transpose, "tf/block1"), (nudge, "tf/block0"), (spoil, "tf/video")])
def test_planted_errors_are_found_and_placed(golden, change, where):
    problem = planted(golden, change or (lambda weights: None))
    assert (problem is None) if where is None else problem.startswith(f"first above 0.0001: {where} differs by ")


def test_only_what_the_file_holds_is_computed(golden):
    class NoForward:
        solve = None

    only(golden, "sched/fm")
    assert set(parity.compare(golden, NoForward())) == {
        "sched/fm_sigmas", "sched/fm_timesteps", "sched/fm_linear_timesteps_weights", "sched/fm_weight_at_query"}


@pytest.mark.parametrize("entry", ["tf/something", "new/video", "sched/heun8_traj"])
def test_unknown_entries_are_an_error(golden, entry):
    only(golden, "sched/fm", "tf/video")
    golden.expected[entry] = np.zeros((2, 1))
    adapter = golden.adapter("torch")
    with pytest.raises(ValueError, match=f"does not know: .*{entry}"):
        parity.compare(golden, adapter)


def test_another_shape_is_an_error(golden):
    only(golden, "tf/action")
    golden.expected["tf/action"] = golden.expected["tf/action"][:1]
    with pytest.raises(ValueError, match=r"tf/action: expected shape \(1, 8, 7\), found \(2, 8, 7\)"):
        parity.compare(golden, golden.adapter("torch"))


def test_command(tmp_path, golden):
    """Exit code 0 and one JSON object; above the tolerance the object all the same, and exit code 1."""
    few = ("w/", "in/", "cfg_json", "sched/fm_", "tf/video")
    with np.load(GOLDENS / "dreamzero_ti2v_tiny.npz") as file:
        np.savez(tmp_path / "few.npz", **{key: file[key] for key in file.files if key.startswith(few)})
    def run(*args):
        return subprocess.run([sys.executable, "-m", "launch.parity", "--runtime=torch", *args],
                                           capture_output=True, text=True)
    good = run(f"--golden={tmp_path / 'few.npz'}")
    assert good.returncode == 0, good.stderr
    printed = json.loads(good.stdout)
    assert "tf/video" in printed and printed["max"] == max(printed.values()) < 1e-5
    strict = run(f"--golden={tmp_path / 'few.npz'}", "--tolerance=1e-9")
    assert strict.returncode == 1
    assert json.loads(strict.stdout) == printed
    assert "first above 1e-09: sched/fm_linear_timesteps_weights differs by" in strict.stderr
    missing = run(f"--golden={tmp_path / 'none.npz'}")
    assert missing.returncode == 1 and "none.npz" in missing.stderr and "Traceback" not in missing.stderr
