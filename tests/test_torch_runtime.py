"""The PyTorch runtime against the goldens, and the properties that they do not show."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo.testing

from launch import parity
from world_model.attention import visibility
from world_model.diffusion.solvers import make_solver
from world_model.families.dreamzero.torch import loading
from world_model.families.dreamzero.torch import runtime as torch_runtime
from world_model.families.dreamzero.torch.sampler import DreamZeroTorchSampler, Stepper
from world_model.families.dreamzero.visibility import TABLES

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="module", params=["i2v", "ti2v"])
def golden(request):
    return parity.read(GOLDENS / f"dreamzero_{request.param}_tiny.npz")


@pytest.fixture(scope="module")
def adapter(golden):
    return golden.adapter("torch")


def parts_of(golden, **which):
    parts = {k: None if x is None else torch.from_numpy(np.array(x)) for k, x in golden.parts(**which).items()}
    return parts.pop("text"), parts.pop("image"), parts


def test_every_section_of_the_goldens(golden, adapter):
    differences = parity.compare(golden, adapter)
    assert parity.first_above(differences, 1e-5) is None
    assert {entry.split("/")[0] for entry in differences} == {"sched", "tf", "tfv", "ntf", "inf"}


@torch.no_grad()
def test_cached_inference_equals_the_training_forward(golden, adapter):
    """By default; the goldens' cached inference, in which states see everything, does not."""
    text, image, parts = parts_of(golden, clean=True, actions=True)
    runtime, layout = adapter.runtime, golden.spec.layout
    whole = runtime.forward(runtime.model.context(text, image), **parts)

    def cut(x, n, start, block):
        return None if x is None else x[:, start + block * n:start + (block + 1) * n]

    for table, same in (("dreamzero", True), ("dreamzero_state_sees_all", False)):
        session = runtime.start(text, image, visibility.get_table(table, TABLES))
        condition = parts["condition"]
        session.prefill(parts["clean_latents"][:, :1], cut(condition, 1, 0, 0))
        for i in range(layout.num_blocks):
            n = layout.frames_per_block
            out = session.denoise(
                noisy_latents=cut(parts["noisy_latents"], n, 1, i), condition=cut(condition, n, 1, i),
                video_timestep=cut(parts["video_timestep"], n, 1, i),
                noisy_actions=cut(parts["noisy_actions"], layout.actions_per_block, 0, i),
                action_timestep=cut(parts["action_timestep"], layout.actions_per_block, 0, i),
                state=cut(parts["state"], layout.states_per_block, 0, i))
            expected = cut(whole.video, n, 1, i), cut(whole.action, layout.actions_per_block, 0, i)
            gaps = [float((a - b).abs().max()) for a, b in zip((out.video, out.action), expected, strict=True)]
            assert (max(gaps) < 1e-5) == same, (table, i, gaps)
            session.prefill(cut(parts["clean_latents"], n, 1, i), cut(condition, n, 1, i))


def test_incomplete_block_is_refused(golden, adapter):
    text, image, parts = parts_of(golden, clean=True, actions=True)
    parts = {k: None if x is None else x[:, :4] for k, x in parts.items()}
    with pytest.raises(ValueError, match="4 latent frames from block 0 on are no whole number of blocks of 2"):
        adapter.runtime.forward(adapter.runtime.model.context(text, image), **parts)


def test_weights_are_loaded_strictly(golden):
    swapped = dict(golden.weights)
    swapped["blocks.0.norm4.weight"] = swapped.pop("blocks.0.norm3.weight")
    with pytest.raises(RuntimeError, match=r"Missing key.*norm3.weight[\s\S]*Unexpected key.*norm4"):
        golden.adapter("torch", swapped)
    swapped = golden.weights | {"blocks.0.ffn.0.weight": golden.weights["blocks.0.ffn.0.weight"].T}
    with pytest.raises(RuntimeError, match=r"size mismatch for blocks.0.ffn.0.weight"):
        golden.adapter("torch", swapped)


def test_a_directory_that_is_no_export(tmp_path):
    with pytest.raises(loading.WeightsError, match=r"config\.json: missing; a wamax export has its configuration there"):
        loading.load(tmp_path)


def test_euler_steps_follow_the_velocity():
    solver = make_solver("euler", 3)
    stepper, x = Stepper(solver), torch.zeros(2)
    for i in range(3):
        x = stepper.step(i, torch.ones(2), x)
    np.testing.assert_allclose(x, solver.sigmas[-1] - solver.sigmas[0], rtol=1e-6)


def sampler_inputs(golden):
    text, image, parts = parts_of(golden, clean=True, actions=True)
    return parts["clean_latents"][:, :1], text, parts["state"], noise_of_a_block(golden, parts), parts["condition"], image


def noise_of_a_block(golden, parts):
    layout, generator = golden.spec.layout, torch.Generator().manual_seed(0)
    sizes = ((parts["clean_latents"], layout.frames_per_block), (parts["noisy_actions"], layout.actions_per_block))
    return [tuple(torch.randn(like.shape[0], n, *like.shape[2:], generator=generator) for like, n in sizes)]


def test_skipped_steps_reuse_the_last_prediction(golden, adapter, monkeypatch):
    """As in world_model/diffusion/step_skipping.py: a table's steps call the network, and a rule that never bites changes
    nothing."""
    calls, plain = [], torch_runtime.CachedBlocks.denoise
    monkeypatch.setattr(torch_runtime.CachedBlocks, "denoise", lambda self, **parts: (calls.append(
        float(parts["video_timestep"][0, 0])), plain(self, **parts))[1])
    inputs, times = sampler_inputs(golden), make_solver("unipc", 16).timesteps
    every, _ = DreamZeroTorchSampler(adapter.runtime)(*inputs)
    assert len(calls) == 16
    calls.clear()
    some, _ = DreamZeroTorchSampler(adapter.runtime, skipping="6")(*inputs)
    np.testing.assert_allclose(calls, np.float32(times)[[0, 1, 5, 10, 14, 15]])
    assert not torch.allclose(some, every, atol=1e-3)
    never, _ = DreamZeroTorchSampler(adapter.runtime, skipping="adaptive", skip_thresholds=((2.0, 3),))(*inputs)
    torch.testing.assert_close(never, every)


def test_bfloat16_stays_near(golden, adapter):
    inputs = sampler_inputs(golden)
    expected = DreamZeroTorchSampler(adapter.runtime, steps=4)(*inputs)
    low = copy.copy(adapter.runtime)
    low.model = copy.deepcopy(low.model).to(torch.bfloat16)
    found = DreamZeroTorchSampler(low, steps=4)(*inputs)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == torch.float32 and 0 < (x - y).abs().mean() < 0.05 * y.abs().mean()


@torch.no_grad()
def test_the_network_compiles_as_one_graph():
    """By a backend that needs no compiler of C++; what is sampled is the same."""
    golden = parity.read(GOLDENS / "dreamzero_i2v_tiny.npz")
    adapter = golden.adapter("torch")
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = copy.copy(adapter.runtime)
    compiled.model = copy.deepcopy(compiled.model)
    compiled.model.compile(backend=counter, fullgraph=True)
    inputs = sampler_inputs(golden)
    both = (DreamZeroTorchSampler(runtime, steps=2)(*inputs) for runtime in (compiled, adapter.runtime))
    for found, expected in zip(*both, strict=True):
        torch.testing.assert_close(found, expected)
    assert counter.frame_count


def test_guidance_extrapolates_from_the_unconditional_video_and_leaves_actions_alone(golden, adapter):
    text, image, parts = parts_of(golden, clean=True, actions=True)
    noise = noise_of_a_block(golden, parts)

    def run(guidance, text):
        return DreamZeroTorchSampler(adapter.runtime, "euler", 1, guidance=guidance)(
            parts["clean_latents"][:, :1], text, parts["state"], noise, parts["condition"], image,
            unconditional_text=torch.zeros_like(text))

    video, actions = run(1.0, text)
    plain, _ = run(1.0, torch.zeros_like(text))
    guided, guided_actions = run(3.0, text)
    torch.testing.assert_close(guided, plain + 3 * (video - plain), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(guided_actions, actions)
    assert not torch.allclose(guided, video, atol=1e-3)
    with pytest.raises(ValueError, match="guidance other than 1 needs unconditional_text"):
        dataclasses.replace(DreamZeroTorchSampler(adapter.runtime), guidance=2).start(text)
