"""Adapters: what trains, what they compute, both forms of an export, DreamZero's checkpoints, and the wrong base."""

import contextlib
import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from configs import dreamzero_14b
from launch import export, import_weights
from launch.setup import provenance, training
from launch.setup.experiment import Experiment
from launch.setup.restore import Restored, restore
from tests.test_import_weights import ACTIONS, publish, read_back
from world_model import functional
from world_model.families.dreamzero.model import ForwardInputs
from world_model.families.dreamzero.torch.loading import load
from world_model.families.dreamzero.weights import reference_format
from world_model.families.dreamzero.weights.names import is_action_part
from world_model.layers import lora
from world_model.parallel import sharding
from world_model.training import checkpoint, state
from world_model.training.checkpoint_writer import Checkpoints
from world_model.weights import safetensors_io
from world_model.weights.safetensors_io import Weights, WeightsError

RANK = 3


def config_of(rank=RANK):
    config = dreamzero_14b.get_config("debug")
    config.model.update(dim=32, ffn_dim=48, num_heads=2, num_layers=3, lora_rank=rank)
    config.layout.update(height=32, width=32)
    config.optimizer.trainable = r"lora_|^(state_encoder|action_(en|de)coder)\."
    config.evaluate.solver_steps = 2
    return config


@pytest.fixture(scope="module")
def trained():
    """(experiment, parameters with every adapter random)."""
    experiment, rng = Experiment(config_of()), np.random.default_rng(0)

    def value(shape):
        return (0.2 * rng.normal(size=shape)).astype(ml_dtypes.bfloat16).astype(np.float32)

    return experiment, {name: value(x.shape) for name, x in experiment.model.shapes.items()}


def restored_of(trained, tmp_path, base=None):
    experiment, params = trained
    return Restored(experiment, 5, params, {}, {}, tmp_path, base)


def test_merged_equals_unmerged(trained):
    experiment, params = trained
    model, plain = experiment.model, Experiment(config_of(rank=0)).model
    spec = model.spec
    merged = lora.merge(params, spec.lora_alpha)
    assert merged.keys() == plain.shapes.keys()
    rng = np.random.default_rng(1)
    frames = spec.layout.latent_frames, spec.latent_height, spec.latent_width
    def normal(*shape):
        return jnp.asarray(rng.normal(size=(1, *shape)), jnp.float32)
    inputs = ForwardInputs(
        normal(*frames, 16), jnp.full((1, frames[0]), 500.0), normal(spec.text_length, spec.text_dim),
        condition=normal(*frames, 20), image=normal(spec.image_tokens, spec.image_dim))

    def forward(model):
        return jax.jit(lambda p: functional.bind(model.module, p)(inputs).video)

    with jax.default_matmul_precision("highest"):
        without = forward(plain)
        expected, found = forward(model)(params), without(merged)
        base = without({name: params[name] for name in merged})
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(base - expected).max() > 0.1


def test_adapters_begin_as_nothing_and_alone_have_moments(trained):
    config = trained[0].config.copy_and_resolve_references()
    config.mesh.update(data=1, fsdp=8, context=1)
    experiment = Experiment(config)
    _, target = training.make_target(experiment, training.make_mesh(config))
    moments = target["opt"]["mu"]
    assert {name for name in target["params"] if lora.ADAPTER.search(name)} < moments.keys()
    assert all(lora.ADAPTER.search(name) or is_action_part(name) for name in moments)
    a, b = (target["params"][f"blocks.self_attn.o.lora_{x}"] for x in "ab")
    assert a.shape == (2, 32, RANK) and b.shape == (2, RANK, 32)
    assert b.sharding.spec[2] in ("fsdp", ("fsdp",)) and a.sharding.spec[2] is None
    initial = jax.jit(lambda key: state.subset(experiment.model.init_params(key), [
        "final_block.mlp.fc2.lora_a", "final_block.mlp.fc2.lora_b"]))(jax.random.key(0))
    assert not initial["final_block.mlp.fc2.lora_b"].any()
    assert 0 < np.abs(initial["final_block.mlp.fc2.lora_a"]).max() <= 48**-0.5
    assert sharding.describe(target["params"])


def test_a_pattern_that_matches_nothing_is_refused():
    config = config_of()
    config.model.lora_pattern = "attention"
    with pytest.raises(ValueError, match=r"lora_pattern = 'attention' matches none of a layer's linears: .*self_attn\.q"):
        Experiment(config).model.module  # noqa: B018


def test_number_of_adapter_weights_is_the_published_one():
    """The released adapters hold 19,169,280 numbers at rank 4."""
    config = dreamzero_14b.get_config()
    config.model.lora_rank = 4
    shapes = Experiment(config).model.shapes
    assert sum(int(np.prod(x.shape)) for name, x in shapes.items() if lora.ADAPTER.search(name)) == 19_169_280


def test_both_forms_of_an_export_and_back(trained, tmp_path):
    """PyTorch computes the same from either; a LoRA checkpoint comes back, with or without base_layer."""
    (experiment, params), restored = trained, restored_of(trained, tmp_path)
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        report = export.export(restored, tmp_path / "lora")
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    assert report["max"] < 1e-4
    merged = export.merge_adapters(restored)
    reference_format.write(tmp_path, merged.experiment.model.spec, merged.params, rollout={})
    networks = [load(directory)[0].model.state_dict() for directory in (tmp_path / "lora", tmp_path)]
    for name, x in networks[0].items():
        np.testing.assert_allclose(x, networks[1][name], atol=1e-5, err_msg=name)
    with pytest.raises(ValueError, match="no adapters; say --merge_lora"):
        export.export(restored, tmp_path / "wan", format_name="wan")
    weights = Weights(tmp_path / "lora")
    def newer(key):
        return key.replace(".q.weight", ".q.base_layer.weight").replace(".q.bias", ".q.base_layer.bias")
    (tmp_path / "newer").mkdir()
    safetensors_io.write(tmp_path / "newer", ((newer(key), weights[key]) for key in weights))
    for source in (tmp_path / "lora", tmp_path / "newer"):
        import_weights.import_weights(experiment.config, "dreamzero", source, out := source.with_name(f"{source.name}_imported"))
        found = read_back(out)
        for name, x in params.items():
            np.testing.assert_array_equal(found[name], x, err_msg=name)
    with pytest.raises(WeightsError, match=r"adapters of rank 0 .*unexpected .*lora_A"):
        import_weights.import_weights(config_of(rank=0), "dreamzero", tmp_path / "lora", None)


def save(workdir, experiment, params):
    """As weights are imported."""
    meta = checkpoint.make_meta({"params": params}, {}, family="dreamzero", config=provenance.as_json(experiment.config),
                                statistics={}, statistics_hash="", code_version="")
    with contextlib.closing(Checkpoints(workdir / "checkpoints", keep_last=1)) as checkpoints:
        checkpoints.save(0, {"params": params}, data={}, meta=meta, frozen={})


def test_adapters_on_a_base_that_is_held_in_bfloat16(trained, tmp_path):
    """They begin as nothing where the base has none; an export has the base and what was learnt in float32."""
    params, config = trained[1], trained[0].config.copy_and_resolve_references()
    adapters = {name: x for name, x in params.items() if lora.ADAPTER.search(name)}
    base = {name: x for name, x in params.items() if name not in adapters}  # values that bfloat16 has
    save(tmp_path / "base", Experiment(config_of(rank=0)), base)
    config.train.init_from, config.optimizer.frozen_dtype = str(tmp_path / "base"), "bfloat16"
    experiment = Experiment(config).fitted()
    found = training.start(experiment, *training.make_target(experiment, training.make_mesh(experiment.config)))["params"]
    for name, x in found.items():
        kept = jnp.float32 if name in adapters or is_action_part(name) else jnp.bfloat16
        assert x.dtype == kept and (name in adapters or (np.float32(x) == base[name]).all()), name
    assert all((np.abs(found[name]).max() > 0) == name.endswith("lora_a") for name in adapters)

    save(tmp_path / "run", experiment, jax.device_get(found) | adapters)
    restored = restore(tmp_path / "run")
    merged, expected = export.merge_adapters(restored), lora.merge(params, experiment.model.spec.lora_alpha)
    for name, x in expected.items():
        np.testing.assert_array_equal(merged.params[name], x, err_msg=name)
    assert export.export(merged, tmp_path / "merged", by_tensor=True)["problem"] is None
    assert {x.dtype for x in safetensors_io.Weights(tmp_path / "merged").values()} == {np.dtype(np.float32)}


def test_adapters_go_on_their_own_base_alone(trained, tmp_path, monkeypatch):
    config, params = trained[0].config, trained[1]
    plain = config_of(rank=0)
    base_params = {name: x for name, x in params.items() if not lora.ADAPTER.search(name)}
    monkeypatch.setattr(import_weights, "fresh_values", lambda *_: lambda name: np.zeros_like(params[name]))
    wan = publish(tmp_path / "wan", "wan", plain, base_params, ACTIONS)
    first = import_weights.import_weights(config, "wan", wan, tmp_path / "start")
    assert {name for name in params if lora.ADAPTER.search(name)} <= first["fresh"].keys()
    recorded = {"format": "wan", "base_hash": first["base_hash"]}
    export.export(restored_of(trained, tmp_path, recorded), tmp_path / "adapters", format_name="adapters")
    assert json.loads((tmp_path / "adapters" / "provenance.json").read_text())["base"] == recorded
    with pytest.raises(WeightsError, match="adapters alone needs --base"):
        import_weights.import_weights(config, "dreamzero", tmp_path / "adapters", None)
    again = import_weights.import_weights(config, "dreamzero", tmp_path / "adapters", tmp_path / "again",
                                          base=("wan", wan))
    assert again["base_hash"] == first["base_hash"] and not again["fresh"]
    for name, x in read_back(tmp_path / "again").items():
        np.testing.assert_array_equal(x, params[name], err_msg=name)
    changed = dict(base_params)
    changed["blocks.mlp.fc1.bias"] = changed["blocks.mlp.fc1.bias"] + 1
    other = publish(tmp_path / "other", "wan", plain, changed, ACTIONS)
    with pytest.raises(WeightsError, match="trained on weights of hash .*give that base"):
        import_weights.import_weights(config, "dreamzero", tmp_path / "adapters", tmp_path / "no", base=("wan", other))
    assert not (tmp_path / "no").exists()
    everything = config.copy_and_resolve_references()
    everything.optimizer.trainable = dreamzero_14b.get_config("debug").optimizer.trainable
    whole = dataclasses.replace(restored_of(trained, tmp_path), experiment=Experiment(everything))
    with pytest.raises(ValueError, match="of the base was trained too"):
        export.export(whole, tmp_path / "whole", format_name="adapters")
    (tmp_path / "adapters" / "provenance.json").unlink()  # as DreamZero's, which name no base: what fits is taken
    told = import_weights.import_weights(config, "dreamzero", tmp_path / "adapters", None, base=("wan", other))
    assert "do not say which weights" in import_weights.describe(told) and again["base_named"]
    smaller = config.copy_and_resolve_references()
    smaller.model.ffn_dim = 40
    with pytest.raises(WeightsError, match=r"ffn\.0.*expected shape .*40.* found .*48"):
        import_weights.import_weights(smaller, "dreamzero", tmp_path / "adapters", None, base=("wan", wan))
