"""A denoising step as a file: PyTorch alone runs it and gives what the runtime gives."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launch import parity
from world_model.families.dreamzero.torch import step as torch_step

RUN = """
import sys, torch
arguments, expected = torch.load("arguments.pt", weights_only=True)
found = torch.export.load("step.pt2").module()(*arguments)
assert not any(name.split(".")[0] in ("world_model", "jax") for name in sys.modules)
print(max(float((a - b).abs().max()) for a, b in zip(found, expected)))
"""


@pytest.mark.parametrize("form", ["i2v", "ti2v"])
@torch.no_grad()
def test_a_saved_step_runs_without_this_package(form, tmp_path):
    golden = parity.read(Path(__file__).parent / "goldens" / f"dreamzero_{form}_tiny.npz")
    runtime, spec = golden.adapter("torch").runtime, golden.spec
    session, parts = torch_step.example(runtime, 2, 2, (spec.latent_height, spec.latent_width), spec.text_length,
                                        spec.image_tokens)
    torch_step.save(session, tmp_path / "step.pt2", **parts)
    generator = torch.Generator().manual_seed(0)
    arguments = tuple(None if x is None else torch.randn(x.shape, generator=generator)
                      for x in torch_step.arguments(session, **parts))
    expected = torch_step.DenoiseStep(session)(*arguments)
    torch.save((arguments, expected), tmp_path / "arguments.pt")
    done = subprocess.run([sys.executable, "-I", "-c", RUN], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5 < max(float(x.abs().max()) for x in expected)
