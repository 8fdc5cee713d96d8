"""launch.import_weights: every tensor where it belongs, nothing silently random, a start for launch.train."""

import json
import re
import weakref
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

from benchmarks.import_memory import headers_only
from configs import dreamzero_5b, dreamzero_14b
from launch import import_weights
from launch.setup import training
from launch.setup.experiment import Experiment
from launch.setup.initial import Initial
from world_model import hashing
from world_model.families import get_family
from world_model.training import checkpoint, checkpoint_reader
from world_model.weights import names, safetensors_io
from world_model.weights.safetensors_io import Weights, WeightsError

ACTIONS = ("state_encoder", "action_encoder", "action_decoder")
FORMATS = get_family("dreamzero").imports
STEM = FORMATS["wan"].stem
IMAGE = ("image_embedding", "cross_attn.k_image", "cross_attn.v_image")


def config_of(base=dreamzero_14b, **model):
    config = base.get_config("debug")
    config.model.update({"num_layers": 2} | model)
    return config


def random_params(config):
    rng = np.random.default_rng(0)
    shapes = Experiment(config).model.shapes
    return {name: rng.normal(size=x.shape).astype(ml_dtypes.bfloat16).astype(np.float32)  # exact in bfloat16
            for name, x in shapes.items()}


def is_in(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in name for part in parts)


def publish(directory, format_name, config, params, lacks: tuple[str, ...] = (), dtype=ml_dtypes.bfloat16):
    """`params` in a published layout, without those that such a release lacks."""
    fmt, kept = FORMATS[format_name], {k: x for k, x in params.items() if not is_in(k, lacks)}
    folder = directory / fmt.folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    tensors = names.to_published(kept, Experiment(config).model.spec.head_dim, fmt.table)
    safetensors_io.write(folder, ((fmt.prefixes[-1] + k, x.astype(dtype)) for k, x in tensors), 100_000, fmt.stem)
    return directory


def read_back(out) -> dict[str, np.ndarray]:
    arrays = checkpoint_reader.read_arrays(out / "checkpoints", 0, lambda name: True)
    return {name.removeprefix("params."): x for name, x in arrays}


@pytest.mark.parametrize("format_name,base,lacks", [
    ("wan", dreamzero_14b, ACTIONS), ("diffusers", dreamzero_5b, ACTIONS + IMAGE), ("dreamzero", dreamzero_5b, ())])
def test_every_tensor_arrives_or_is_fresh_by_rule(tmp_path, monkeypatch, format_name, base, lacks):
    config = config_of(base)
    params = random_params(config)
    source = publish(tmp_path / "source", format_name, config, params, lacks)

    def value(name):
        return np.full(params[name].shape, len(name), np.float32)

    monkeypatch.setattr(import_weights, "fresh_values", lambda *_: value)
    report = import_weights.import_weights(config, format_name, source, tmp_path / "out")
    found = read_back(tmp_path / "out")
    assert found.keys() == params.keys()
    fresh = {name for name in params if is_in(name, lacks)}
    assert set(report["fresh"]) == fresh
    assert report["parameters_loaded"] == len(params) - len(fresh)
    for name, x in params.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], value(name) if name in fresh else x, err_msg=name)
    meta = checkpoint.read_json(tmp_path / "out" / "checkpoints", 0, "meta")
    assert meta["base"] == {"format": format_name, "base_hash": report["base_hash"]}
    assert json.loads((tmp_path / "out" / "import.json").read_text()) == json.loads(json.dumps(report))


def test_fresh_values_are_those_of_a_run():
    model = Experiment(config_of()).model
    names_ = ["action_decoder.fc1.kernel", "blocks.cross_attn.k_image.kernel", "state_encoder.fc1.bias"]
    initial = jax.jit(model.init_params)(jax.random.key(3))
    fresh = import_weights.fresh_values(model, 3, names_)
    for name in names_:
        np.testing.assert_allclose(fresh(name), initial[name], atol=1e-6, err_msg=name)


def test_a_run_starts_from_it(tmp_path):
    """The run has another mesh than the import wrote on, a fresh optimizer, an average, and the base on record."""
    config = config_of()
    params = random_params(config)
    source = publish(tmp_path / "source", "dreamzero", config, params)
    report = import_weights.import_weights(config, "dreamzero", source, tmp_path / "out")
    config.train.init_from, config.optimizer.ema_decay = str(tmp_path / "out"), 0.9
    config.mesh.update(data=2, fsdp=4, context=1)
    experiment = Experiment(config)
    make_state, target = training.make_target(experiment, training.make_mesh(config))
    started = training.start(experiment, make_state, target)
    hashes = checkpoint.read_json(tmp_path / "out/checkpoints", 0, "meta")["hashes"]  # written piece by piece
    assert hashes == {f"params.{name}": found for name, found in hashing.hashes(params).items()}
    for name, x in params.items():
        np.testing.assert_array_equal(started["params"][name], x, err_msg=name)
        np.testing.assert_array_equal(started["ema"][name], x, err_msg=name)
        assert not np.any(started["opt"]["mu"][name])
        assert started["params"][name].sharding == target["params"][name].sharding
    assert int(started["step"]) == 0
    assert Initial.from_config(config).meta["base"]["base_hash"] == report["base_hash"]


def test_memory_holds_a_piece_and_not_an_array(tmp_path, monkeypatch):
    """Each tensor is read once for the hash of the base, action parts aside, and once to be written, and is gone soon
    after: what lives at any time is a few layers' tensors. benchmarks/import_memory.py measures the same at full width."""
    config = config_of(num_layers=9)
    source = publish(tmp_path / "source", "dreamzero", config, random_params(config))
    events, read = [], Weights.__getitem__
    monkeypatch.setattr(Weights, "__getitem__", lambda self, key: events.append(("read", key)) or read(self, key))
    plain, fitted, living = import_weights.conversion.fit, [], []

    def fit(*args):
        fitted.append(weakref.ref(x := plain(*args)))
        living.append(sum(y.nbytes for ref in fitted if (y := ref()) is not None))
        return x

    monkeypatch.setattr(import_weights.conversion, "fit", fit)
    report = import_weights.import_weights(config, "dreamzero", source, tmp_path / "out")
    reads = {key: events.count(("read", key)) for key in Weights(source)}
    assert reads == {key: 1 if re.search("state_encoder|action_(en|de)coder", key) else 2 for key in reads}
    assert max(living) < 1.3 * max(size for _, size in report["files"])  # of the largest shard


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch):
    config = config_of()
    source = publish(tmp_path / "source", "wan", config, random_params(config), ACTIONS)
    monkeypatch.setattr(Weights, "__getitem__", lambda *_: pytest.fail("a dry run reads no data"))
    report = import_weights.import_weights(config, "wan", source, None)
    assert report["parameters_loaded"] and sorted(p.name for p in tmp_path.iterdir()) == ["source"]
    assert "fresh: action_encoder.fc1.kernel (a video model has no actions)" in import_weights.describe(report)


def test_changed_action_sizes_by_rule(tmp_path):
    """Fewer actions take the leading ones, more states are zero past the known ones, and the decoder starts anew."""
    config = config_of(action_dim=6, state_dim=8)
    params = random_params(config)
    source = publish(tmp_path / "source", "dreamzero", config, params)
    other = config_of(action_dim=4, state_dim=9)
    with pytest.raises(WeightsError, match=r"layer1\.W .*expected shape \(1, 9, 32\), found \(1, 8, 32\).*--fit"):
        import_weights.import_weights(other, "dreamzero", source, tmp_path / "out")
    fits = {r"action_encoder\.fc1": "slice", "state_encoder": "pad_zero", r"action_decoder\.fc2": "fresh"}
    report = import_weights.import_weights(other, "dreamzero", source, tmp_path / "out", fits)
    found = read_back(tmp_path / "out")
    np.testing.assert_array_equal(found["action_encoder.fc1.kernel"], params["action_encoder.fc1.kernel"][:4])
    np.testing.assert_array_equal(found["state_encoder.fc1.kernel"][:8], params["state_encoder.fc1.kernel"])
    assert not found["state_encoder.fc1.kernel"][8:].any()
    np.testing.assert_array_equal(found["action_decoder.fc1.kernel"], params["action_decoder.fc1.kernel"])
    assert set(report["fresh"]) == {"action_decoder.fc2.kernel", "action_decoder.fc2.bias"}
    assert report["fitted"]["action_encoder.fc1.kernel"] == "slice"
    with pytest.raises(WeightsError, match=r"slice cannot make \(1, 9, 32\) of \(1, 8, 32\)"):
        import_weights.import_weights(other, "dreamzero", source, None, fits | {"state_encoder": "slice"})
    with pytest.raises(WeightsError, match="--fit=mlp=slice: no tensor of another size has such a name"):
        import_weights.import_weights(other, "dreamzero", source, None, fits | {"mlp": "slice"})
    with pytest.raises(ValueError, match="--fit=a=cut: expected PATTERN=HOW"):
        import_weights.read_fits(["a=cut"])


def test_another_base_depth_or_family_is_refused(tmp_path):
    config = config_of()
    params = random_params(config)
    wan = publish(tmp_path / "wan", "wan", config, params, ACTIONS)
    no_image = publish(tmp_path / "no_image", "wan", config, params, ACTIONS + IMAGE)
    cases = [
        (config_of(num_layers=4), "wan", wan, r"model of 4 layers.*the source has 2 layers.*64 missing \(blocks\.2\."),
        (config, "wan", no_image, r"with an image branch.*missing"),  # only Wan2.2-TI2V-5B lacks one
        (config_of(image_dim=0), "wan", wan, r"without an image branch.*unexpected"),
        (config_of(ffn_dim=96), "wan", wan, r"ffn\.0\.weight .*expected shape \(96, 64\), found \(128, 64\)"),
        (config, "dreamzero", wan, r"model\.safetensors\.index\.json: missing"),
        (config, "diffusers", wan, r"missing .*unexpected .*another base, family or --format\?")]
    for other, format_name, source, message in cases:
        with pytest.raises(WeightsError, match=message):
            import_weights.import_weights(other, format_name, source, None)
    config.model.family = "lingbot_va"
    with pytest.raises(ValueError, match="family = 'lingbot_va': --format=wan holds a network of family 'dreamzero'"):
        import_weights.import_weights(config, "wan", wan, None)


def test_two_names_of_one_tensor_are_refused(tmp_path):
    """Names with and without peft's base_layer are such names."""
    config = config_of()
    source = publish(tmp_path / "source", "dreamzero", config, random_params(config))
    weights = dict(Weights(source))
    key = next(key for key in weights if key.endswith("self_attn.q.weight"))
    again = key.replace(".weight", ".base_layer.weight")
    (tmp_path / "again").mkdir()
    safetensors_io.write(tmp_path / "again", (weights | {again: weights[key]}).items())
    with pytest.raises(WeightsError, match=r"base_layer\.weight: names the same tensor as .*self_attn\.q\.weight"):
        import_weights.import_weights(config, "dreamzero", tmp_path / "again", None)


def test_integers_are_refused(tmp_path):
    config = config_of()
    source = publish(tmp_path / "source", "wan", config, random_params(config), ACTIONS, dtype=np.int32)
    with pytest.raises(WeightsError, match=r"expected one of F32, BF16, F16, found I32"):
        import_weights.import_weights(config, "wan", source, None)


def test_pickles_only_when_asked_and_only_of_tensors(tmp_path):
    """Pickles, whole or in shards with an index, give the report and the tensors that safetensors give."""
    config = config_of()
    source = publish(tmp_path / "source", "wan", config, random_params(config), ACTIONS)
    tensors = {key: torch.from_numpy(x.astype(np.float32)).bfloat16() for key, x in Weights(source, STEM).items()}
    (tmp_path / "pickled").mkdir()
    torch.save(tensors, tmp_path / "pickled" / f"{STEM}.pth")
    with pytest.raises(WeightsError, match=rf"{STEM}.pth: not safetensors. A pickle can run code.*--allow_pickle"):
        import_weights.import_weights(config, "wan", tmp_path / "pickled", None)
    (tmp_path / "shards").mkdir()
    for part in range(2):
        torch.save(dict(sorted(tensors.items())[part::2]), tmp_path / "shards" / f"{part}.bin")
    (tmp_path / "shards" / f"{STEM}.bin.index.json").write_text(json.dumps(
        {"weight_map": {key: f"{i % 2}.bin" for i, key in enumerate(sorted(tensors))}}))
    expected = import_weights.import_weights(config, "wan", source, None)
    safe = FORMATS["wan"].open(source)
    for folder in ("pickled", "shards"):
        report = import_weights.import_weights(config, "wan", tmp_path / folder, None, allow_pickle=True)
        assert {k: v for k, v in report.items() if k not in ("source", "files")} == {
            k: v for k, v in expected.items() if k not in ("source", "files")}
        found = FORMATS["wan"].open(tmp_path / folder, allow_pickle=True)
        for name in safe.where:
            assert found.header(name) == safe.header(name)
            np.testing.assert_array_equal(found[name], safe[name])
    torch.save(tensors | {"code": torch.optim.SGD}, tmp_path / "pickled" / f"{STEM}.pth")
    with pytest.raises(WeightsError, match="not a file of plain tensors"):
        import_weights.import_weights(config, "wan", tmp_path / "pickled", None, allow_pickle=True)
    torch.save(tensors | {"step": 3}, tmp_path / "pickled" / f"{STEM}.pth")
    with pytest.raises(WeightsError, match="expected a dict of names and tensors"):
        import_weights.import_weights(config, "wan", tmp_path / "pickled", None, allow_pickle=True)


def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    config = config_of()
    source = publish(tmp_path / "source", "dreamzero", config, random_params(config))
    plain, count = import_weights.conversion.fit, []

    def full(*args):
        count.append(1)
        if len(count) > 50:
            raise OSError(28, "No space left on device")
        return plain(*args)

    monkeypatch.setattr(import_weights.conversion, "fit", full)
    with pytest.raises(checkpoint.CheckpointError, match="No space left"):
        import_weights.import_weights(config, "dreamzero", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["14b", "5b"])
def test_full_sizes_fit_the_published_lists(size, tmp_path):
    """Files without data have all headers of the full model."""
    shapes = json.loads((Path(__file__).parent / "goldens" / "shapes" / f"dreamzero_{size}.json").read_text())
    lacks = ("state_encoder", "action_", "img") if size == "5b" else ("state_encoder", "action_")
    listed = {name: shape for name, shape in shapes.items() if not is_in(name, lacks)}
    headers_only(tmp_path / "diffusion_pytorch_model.safetensors", listed)
    config = {"14b": dreamzero_14b, "5b": dreamzero_5b}[size].get_config()
    report = import_weights.import_weights(config, "wan", tmp_path, None)
    assert report["tensors_loaded"] == len(listed)
    assert len(report["fresh"]) == (14 if size == "14b" else 14 + 8 + 2 * 5)
    dropped = listed | {"head.head.weight": [1, 1]}
    headers_only(tmp_path / "diffusion_pytorch_model.safetensors", dropped)
    with pytest.raises(WeightsError, match=r"head\.head\.weight .*found \(1, 1\)"):
        import_weights.import_weights(config, "wan", tmp_path, None)
