"""LingBot-VLA's network, losses, gradients and sampler against numbers measured on the published code of both versions.

`python -m launch.parity` computes the squared error's gradients of version 2 too."""

from pathlib import Path

import pytest

from launch import parity

pytestmark = pytest.mark.usefixtures("quick_compiles")
GOLDENS = Path(__file__).parent / "goldens"
EXACT = ("mask_2d", "pad_mask", "pos_mask", "position_ids", "router_selected", "tokens_per_expert", "times_")


@pytest.mark.parametrize("name, sections, count", [
    ("lingbot_vla_tiny", ("vit/", "train/", "grad_l1/", "inf/"), 56), ("lingbot_vla_v2_tiny", ("vit/", "nq/"), 79),
    ("lingbot_vla_v2_tiny", ("q/",), 73)])
def test_every_entry_of_a_golden(name, sections, count):
    golden = parity.read(GOLDENS / f"{name}.npz")
    golden.expected = {key: x for key, x in golden.expected.items()
                       if key.startswith(sections) and not ("v2" in name and key.endswith("_mse"))}
    differences = parity.compare(golden, golden.adapter("jax"))
    assert differences.keys() == golden.expected.keys() and len(differences) == count
    assert parity.first_above(differences, 4e-5) is None
    exact = {key: d for key, d in differences.items() if any(part in key for part in EXACT)}
    assert len(exact) >= 6 and parity.first_above(exact, 0) is None
    close = {key: d for key, d in differences.items() if key.endswith(("v_t", "steps", "step0_v", "_preds"))}
    assert parity.first_above(close, 1.5e-5) is None


@pytest.mark.parametrize("name, count", [("lingbot_vla_tiny", 15), ("lingbot_vla_v2_tiny", 23)])
def test_pytorch_computes_what_it_serves(name, count):
    golden = parity.read(GOLDENS / f"{name}.npz")
    differences = parity.compare(golden, golden.adapter("torch"))
    assert differences.keys() == golden.expected.keys() and len(differences) == count
    assert parity.first_above(differences, 1.5e-5) is None
