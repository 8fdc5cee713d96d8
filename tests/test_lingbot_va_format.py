"""LingBot-VA's released directory: read in one file or shards, any precision; written; what does not fit is named."""

import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import dreamzero_5b, lingbot_va_5b
from launch import import_weights, parity
from launch.setup import training
from launch.setup.experiment import Experiment
from world_model import functional
from world_model.families import get_family
from world_model.families.lingbot_va.model import LingBotVA
from world_model.families.lingbot_va.weights import released_format as lingbot_va_format
from world_model.families.lingbot_va.weights.export import where_it_differs
from world_model.families.lingbot_va.weights.names import LINGBOT_VA
from world_model.training import checkpoint_reader
from world_model.training.checkpoint import CheckpointError
from world_model.weights import conversion, names
from world_model.weights.safetensors_io import Weights, WeightsError

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="module")
def golden():
    return parity.read(GOLDENS / "lingbot_va_tiny.npz")


@pytest.fixture(scope="module")
def params(golden):
    shapes = functional.parameters(functional.abstract(LingBotVA, golden.spec))
    return names.from_published(golden.weights, shapes, golden.spec.head_dim, LINGBOT_VA)


@pytest.fixture
def released(golden, tmp_path):
    """A directory as it is released: one file, diffusers' config."""
    folder = tmp_path / "release" / "transformer"
    folder.mkdir(parents=True)
    save_file(golden.weights, folder / "diffusion_pytorch_model.safetensors")
    model = golden.config["model"]
    (folder / "config.json").write_text(json.dumps(
        {"_class_name": "WanTransformer3DModel", "attn_mode": "flex", "pos_embed_seq_len": None, **model}))
    return folder.parent


def read(directory, spec):
    shapes = functional.parameters(functional.abstract(LingBotVA, spec))
    return conversion.read(get_family("lingbot_va").imports["lingbot_va"].open(directory), shapes, spec)


def test_a_release_is_read(golden, params, released):
    found = read(released, golden.spec)
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
    found = read(released, golden.spec)
    assert {x.dtype for x in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(found["action_head.bias"], half["action_proj_out.bias"].astype(np.float32))


def test_written_and_read_is_the_same_bit_for_bit_and_unread_tensors_are_there(golden, params, tmp_path):
    lingbot_va_format.write(tmp_path, golden.spec, params, shard_bytes=400_000)
    assert len(list((tmp_path / "transformer").glob("diffusion_pytorch_model-*.safetensors"))) > 1
    found = read(tmp_path, golden.spec)
    for name, x in params.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)
    weights = Weights(tmp_path / "transformer", "diffusion_pytorch_model")
    assert weights.keys() == golden.weights.keys()
    for name, x in golden.weights.items():
        original = name.replace("condition_embedder_action.text", "condition_embedder.text")
        np.testing.assert_array_equal(weights[name], golden.weights[original], err_msg=name)
        assert weights[name].shape == x.shape


@pytest.mark.parametrize("change,match", [
    ({"ffn_dim": 256}, r"config.json: ffn_dim: expected 192 .* found 256"),
    ({"pos_embed_seq_len": 1024}, "fractional times"),
    ({"_class_name": "CausalWanModel"}, "expected the class WanTransformer3DModel, found CausalWanModel")])
def test_another_config_is_refused(golden, released, change, match):
    path = released / "transformer/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsError, match=match):
        read(released, golden.spec)


def config_of(golden):
    """A config of the golden's model."""
    config = lingbot_va_5b.get_config("debug")
    spec, layout = golden.spec, golden.spec.layout
    config.model.update({key: getattr(spec, key) for key in config.model if key != "family"})
    config.layout.update({key: getattr(layout, key) for key in config.layout})
    config.layout.update(height=16 * spec.latent_height, width=16 * spec.latent_width)
    config.encoders.update(video="wan22_latents", text="features")
    return config


def test_a_release_is_imported_and_starts_no_run_of_another_family(golden, params, released, tmp_path):
    """The command that imports DreamZero's imports it; tensors that nothing reads are counted and left."""
    config, out = config_of(golden), tmp_path / "out"
    report = import_weights.import_weights(config, "lingbot_va", released, out)
    assert report["left_in_source"] == {conversion.UNREAD: 4} and not report["fresh"]
    assert report["parameters_loaded"] == len(params) and report["tensors_loaded"] == len(golden.weights) - 4
    found = dict(checkpoint_reader.read_arrays(out / "checkpoints", 0, lambda name: True))
    for name, x in params.items():
        np.testing.assert_array_equal(found[f"params.{name}"], x, err_msg=name)
    other = dreamzero_5b.get_config("debug")
    other.mesh.update(data=1, fsdp=8, context=1)
    other.train.init_from = str(out)
    experiment = Experiment(other)
    target = training.make_target(experiment, training.make_mesh(other))
    with pytest.raises(CheckpointError, match="params"):
        training.start(experiment, *target)


def test_another_family_is_refused_both_ways(golden, released, tmp_path):
    """Its directory, its weights, its format and its checkpoint, given to this family; and this one's to DreamZero."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="transformer.*missing"):
        read(tmp_path, golden.spec)
    other, shapes = parity.read(GOLDENS / "dreamzero_ti2v_tiny.npz"), functional.parameters(
        functional.abstract(LingBotVA, golden.spec))
    with pytest.raises(ValueError, match=r"missing \['action_embedder.bias'"):
        names.from_published(other.weights, shapes, golden.spec.head_dim, LINGBOT_VA)
    with pytest.raises(ValueError, match=r"unexpected \['action_embedder.bias'"):
        other.adapter("jax", golden.weights)
    for config, name in ((config_of(golden), "dreamzero"), (dreamzero_5b.get_config("debug"), "lingbot_va")):
        with pytest.raises(ValueError, match=rf"--format={name} holds a network of family '{name}'"):
            import_weights.import_weights(config, name, released, None)


@pytest.mark.parametrize("width, said", [(128, False), (16, True), (64, True), (24, False)])
def test_heads_that_the_original_cannot_turn_are_said(golden, width, said):
    spec = dataclasses.replace(golden.spec, dim=width * golden.spec.num_heads)
    sentences = list(where_it_differs(spec))
    assert len(sentences) == said and all(f"heads {width} wide" in sentence for sentence in sentences)
