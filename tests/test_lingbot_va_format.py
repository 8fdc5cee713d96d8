"""LingBot-VA's released directory: read in one file or shards, any precision; written; what does not fit is named."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import lingbot_va_mot_5b
from launch import build, export, parity
from world_model import functional
from world_model.families.lingbot_va import LingBotVA
from world_model.interop import lingbot_va_format, names
from world_model.interop.lingbot_va_names import LINGBOT_VA
from world_model.interop.safetensors_io import Weights, WeightsError

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="module")
def golden():
    return parity.read(GOLDENS / "lingbot_va_tiny.npz")


@pytest.fixture(scope="module")
def params(golden):
    shapes = functional.parameters(functional.abstract(LingBotVA, golden.spec))
    return names.from_reference(golden.weights, shapes, golden.spec.head_dim, LINGBOT_VA)


@pytest.fixture
def released(golden, tmp_path):
    """As a release: one file, diffusers' config."""
    folder = tmp_path / "release" / "transformer"
    folder.mkdir(parents=True)
    save_file(golden.weights, folder / "diffusion_pytorch_model.safetensors")
    model = golden.config["model"]
    (folder / "config.json").write_text(json.dumps(
        {"_class_name": "WanTransformer3DModel", "attn_mode": "flex", "pos_embed_seq_len": None, **model}))
    return folder.parent


def test_a_release_is_read(golden, params, released):
    found = lingbot_va_format.read(released, golden.spec)
    assert found.keys() == params.keys()
    for name, x in params.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)
    # A linear over (channel, row, column) and one over (row, column, channel), by definition.
    patch = np.random.default_rng(0).normal(size=(12, 2, 2)).astype(np.float32)
    np.testing.assert_allclose(patch.transpose(1, 2, 0).ravel() @ found["patch_embedding.kernel"],
                               golden.weights["patch_embedding_mlp.weight"] @ patch.ravel(), atol=1e-5)
    np.testing.assert_array_equal(found["video_head.kernel"], golden.weights["proj_out.weight"].T)


def test_bfloat16_is_read_as_float32(golden, params, released):
    half = {name: x.astype(ml_dtypes.bfloat16) for name, x in golden.weights.items()}
    save_file(half, released / "transformer/diffusion_pytorch_model.safetensors")
    found = lingbot_va_format.read(released, golden.spec)
    assert {x.dtype for x in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(found["action_head.bias"], half["action_proj_out.bias"].astype(np.float32))


def test_written_and_read_is_the_same_bit_for_bit_and_unread_tensors_are_there(golden, params, tmp_path):
    lingbot_va_format.write(tmp_path, golden.spec, params, shard_bytes=400_000)
    assert len(list((tmp_path / "transformer").glob("diffusion_pytorch_model-*.safetensors"))) > 1
    found = lingbot_va_format.read(tmp_path, golden.spec)
    for name, x in params.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)
    weights = Weights(tmp_path / "transformer", "diffusion_pytorch_model")
    assert weights.keys() == golden.weights.keys()
    for name, x in golden.weights.items():
        theirs = name.replace("condition_embedder_action.text", "condition_embedder.text")
        np.testing.assert_array_equal(weights[name], golden.weights[theirs], err_msg=name)
        assert weights[name].shape == x.shape


@pytest.mark.parametrize("change,match", [
    ({"ffn_dim": 256}, r"config.json: ffn_dim: expected 192 .* found 256"),
    ({"pos_embed_seq_len": 1024}, "fractional times"),
    ({"_class_name": "CausalWanModel"}, "expected the class WanTransformer3DModel, found CausalWanModel")])
def test_another_config_is_refused(golden, released, change, match):
    path = released / "transformer/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsError, match=match):
        lingbot_va_format.read(released, golden.spec)


def test_a_dreamzero_directory_and_dreamzero_weights_are_refused(golden, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="transformer/config.json: missing"):
        lingbot_va_format.read(tmp_path, golden.spec)
    shapes = functional.parameters(functional.abstract(LingBotVA, golden.spec))
    other = parity.read(GOLDENS / "dreamzero_ti2v_tiny.npz").weights
    with pytest.raises(ValueError, match=r"missing \['action_embedder.bias'"):
        names.from_reference(other, shapes, golden.spec.head_dim, LINGBOT_VA)
    dreamzero = parity.read(GOLDENS / "dreamzero_ti2v_tiny.npz")
    with pytest.raises(ValueError, match=r"unexpected \['action_embedder.bias'"):
        dreamzero.face("jax", golden.weights)


def test_a_family_without_a_release_is_not_exported(tmp_path):
    config = lingbot_va_mot_5b.get_config("debug")
    restored = build.Restored(config, 1, None, {}, None, {}, tmp_path)
    with pytest.raises(ValueError, match="'lingbot_va_mot' has no released layout"):
        export.export(restored, tmp_path / "out")
