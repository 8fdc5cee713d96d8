"""Frozen encoders from files: every format, everything that can be wrong with one, and the way into a training step."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec
from safetensors.numpy import save_file

from configs import base
from launch.setup.experiment import Experiment
from world_model import encoders
from world_model.encoders import names as encoder_names
from world_model.encoders.clip_vit import ClipSpec
from world_model.encoders.umt5 import Umt5Spec, Umt5Text
from world_model.encoders.wan_vae import WAN22
from world_model.encoders.wan_video import WanVideo
from world_model.encoders.weights import WeightsFile
from world_model.parallel import host_rows, sharding
from world_model.training.train_step import gradients
from world_model.weights.safetensors_io import WeightsError, write

TINY_VAE = dataclasses.replace(WAN22, latent_channels=4, mean=(0.0,) * 4, std=(1.0,) * 4, encoder_dim=8, decoder_dim=12,
                               blocks=1)
TINY_TEXT = Umt5Spec(vocabulary=50, dim=32, heads=2, head_dim=16, ffn_dim=32, layers=2)
TINY_CLIP = ClipSpec(size=28, patch=14, dim=32, heads=2, layers=2)
TABLES = {"vae": (encoder_names.vae(TINY_VAE), WanVideo(TINY_VAE)),
          "umt5": (encoder_names.umt5(2), Umt5Text(6, TINY_TEXT)),
          "clip": (encoder_names.clip(2), encoders.ClipImage(TINY_CLIP))}
PREFIXES = {"vae": "action_head.vae.model.", "umt5": "action_head.text_encoder.",  # in DreamZero's checkpoints
            "clip": "action_head.image_encoder.model."}


def arrays_of(encoder, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=x.shape).astype(np.float32) for name, x in encoder.shapes().items()}


def published(kind, arrays, form="wan", prefix=""):
    """Published names, behind a prefix, and tensors of an encoder's arrays."""
    return {prefix + name: x for name, x in encoder_names.to_published(TABLES[kind][0][form], arrays)}


def write_file(path, kind, form="wan", prefix="", **changes):
    """Writes random weights as published; changes: names to set, or to leave out (None). Returns our arrays."""
    arrays = arrays_of(TABLES[kind][1])
    tensors = published(kind, arrays, form, prefix) | changes
    save_file({name: x for name, x in tensors.items() if x is not None}, path)
    return arrays


def loaded(kind, path, **options):
    encoder = dataclasses.replace(TABLES[kind][1], weights=WeightsFile(str(path), **options))
    return encoder.load(encoder.init())


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("form", ["wan", "diffusers"])
@pytest.mark.parametrize("nested", [False, True])
def test_there_and_back(kind, form, nested, tmp_path):
    arrays = write_file(tmp_path / "weights.safetensors", kind, form, PREFIXES[kind] if nested else "")
    found = loaded(kind, tmp_path / "weights.safetensors")
    assert found.keys() == arrays.keys()
    for name in arrays:
        np.testing.assert_array_equal(found[name], arrays[name])


def test_out_of_a_whole_dreamzero_checkpoint(tmp_path):
    """Three encoders and a network are in one folder of shards; each encoder reads its own, and misses what is missing."""
    arrays = {kind: arrays_of(encoder) for kind, (_, encoder) in TABLES.items()}
    tensors = {"action_head.model.blocks.0.ffn.0.weight": np.zeros((3, 2), np.float32)}
    for kind in TABLES:
        tensors |= published(kind, arrays[kind], prefix=PREFIXES[kind])
    assert {"action_head.vae.model.conv1.weight", "action_head.text_encoder.token_embedding.weight",
            "action_head.image_encoder.model.visual.cls_embedding"} <= tensors.keys()
    tensors["action_head.image_encoder.model.log_scale"] = np.zeros((), np.float32)
    write(tmp_path, tensors.items(), shard_bytes=50_000)
    for kind in TABLES:
        for name, x in loaded(kind, tmp_path).items():
            np.testing.assert_array_equal(x, arrays[kind][name])
    for i, lost in enumerate(("conv1.bias", "conv1.weight")):  # the latter is the first name of the table
        (tmp_path / str(i)).mkdir()
        write(tmp_path / str(i), ((name, x) for name, x in tensors.items() if not name.endswith(f"vae.model.{lost}")))
        with pytest.raises(WeightsError, match=rf"nearest, wan under 'action_head.vae.model.': 1 missing "
                           rf"\['action_head.vae.model.{lost}'\], 0 unexpected"):
            loaded("vae", tmp_path / str(i))


def test_a_component_fits_exactly_or_not_at_all(tmp_path):
    """Names that are not the encoder's are an error under its prefix, and another component's elsewhere."""
    file, extra = tmp_path / "weights.safetensors", np.zeros(3, np.float32)
    write_file(file, "vae", prefix="first.vae.", **{"first.other": extra, "conv1.bias": extra})
    loaded("vae", file)
    write_file(file, "vae", prefix="first.vae.", **{"first.vae.conv9.bias": extra})
    with pytest.raises(WeightsError, match=r"nearest, wan under 'first.vae.': 0 missing \[\], 1 unexpected "
                       r"\['first.vae.conv9.bias'\]"):
        loaded("vae", file)
    average = arrays_of(TABLES["vae"][1])
    for form, told in (("wan", "wan under 'average.vae.', wan under 'first.vae.'"),
                       ("diffusers", "wan under 'first.vae.', diffusers under 'average.vae.'")):
        write_file(file, "vae", prefix="first.vae.", **published("vae", average, form, "average.vae."))
        with pytest.raises(WeightsError, match=f"more than one such encoder: {told}; give a file of one"):
            loaded("vae", file)
    write_file(file, "vae", **published("vae", average, prefix="average."))
    with pytest.raises(WeightsError, match=r"nearest, wan: 0 missing \[\], .* unexpected \['average.conv1.bias'"):
        loaded("vae", file)


def test_a_folder_of_shards(tmp_path):
    arrays = arrays_of(TABLES["umt5"][1])
    write(tmp_path, published("umt5", arrays, "diffusers").items(), shard_bytes=5000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    np.testing.assert_array_equal(loaded("umt5", tmp_path)["token_embedding"], arrays["token_embedding"])


def test_tied_and_unread_names(tmp_path):
    """A repeated table of words may stand alone or be there twice, if equal; a text tower is left alone."""
    file = tmp_path / "weights.safetensors"
    words = arrays_of(TABLES["umt5"][1])["token_embedding"]
    for changes in ({"shared.weight": None}, {}):
        write_file(file, "umt5", "diffusers", **{"encoder.embed_tokens.weight": words}, **changes)
        np.testing.assert_array_equal(loaded("umt5", file)["token_embedding"], words)
    write_file(file, "umt5", "diffusers", **{"encoder.embed_tokens.weight": words + 1})
    with pytest.raises(WeightsError, match="encoder.embed_tokens.weight should repeat shared.weight"):
        loaded("umt5", file)
    write_file(file, "clip", **{"textual.head.weight": np.zeros(3, np.float32), "log_scale": np.zeros((), np.float32),
                                "visual.transformer.2.norm1.bias": np.zeros(32, np.float32)})
    loaded("clip", file)


@pytest.mark.parametrize("changes, message", [
    ({"conv1.bias": None}, r"the nearest, wan: 1 missing \['conv1.bias'\], 0 unexpected"),
    ({"conv9.bias": np.zeros(3, np.float32)}, r"0 missing \[\], 1 unexpected \['conv9.bias'\]"),
    ({"conv2.bias": np.zeros(3, np.float32)}, r"conv2.bias \(ours: from_latent.bias\): expected shape \(4,\), found \(3"),
])
def test_what_does_not_fit(changes, message, tmp_path):
    write_file(tmp_path / "weights.safetensors", "vae", **changes)
    with pytest.raises(WeightsError, match=message):
        loaded("vae", tmp_path / "weights.safetensors")


def test_files_that_are_none(tmp_path):
    with pytest.raises(WeightsError, match="no such file or folder; give a local path"):
        loaded("vae", "")
    (tmp_path / "cut.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{")
    with pytest.raises(WeightsError, match=r"cut.safetensors: truncated or not safetensors \(9 bytes"):
        loaded("vae", tmp_path / "cut.safetensors")


def test_pickles_only_when_asked_and_only_of_tensors(tmp_path):
    arrays = arrays_of(TABLES["vae"][1])
    tensors = {name: torch.from_numpy(x).bfloat16() for name, x in published("vae", arrays).items()}
    torch.save(tensors, tmp_path / "Wan2.2_VAE.pth")
    with pytest.raises(WeightsError, match="encoders.allow_pickle"):
        loaded("vae", tmp_path / "Wan2.2_VAE.pth")
    found = loaded("vae", tmp_path / "Wan2.2_VAE.pth", allow_pickle=True)
    np.testing.assert_array_equal(found["from_latent.kernel"],
                                  arrays["from_latent.kernel"].astype(ml_dtypes.bfloat16).astype(np.float32))
    torch.save({"step": torch.optim.SGD}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="not a file of plain tensors"):
        loaded("vae", tmp_path / "other.pth", allow_pickle=True)


def test_other_weights_than_before(tmp_path):
    file = tmp_path / "weights.safetensors"
    write_file(file, "vae")
    encoder = dataclasses.replace(TABLES["vae"][1], weights=WeightsFile(str(file)))
    kept = encoder.init()
    assert kept["sha256"].shape == (32,)
    write_file(file, "vae", **{"conv1.bias": np.ones(8, np.float32)})
    with pytest.raises(WeightsError, match="not the weights that this run, checkpoint or cache was made with"):
        encoder.load(kept)


def test_sharded_text_encoder_in_a_training_step():
    """Weights as arguments, shares of them on each device, give the loss and the gradient of one device."""
    text = Umt5Text(6, TINY_TEXT)
    frozen = {"text": arrays_of(text)}
    rng = np.random.default_rng(1)
    batch = {"ids": rng.integers(1, 50, (8, 6)), "length": rng.integers(1, 7, 8)}
    params = {"w": rng.normal(size=32).astype(np.float32)}

    def loss(params, batch, key, counts, frozen):
        features = text.encode(frozen["text"], batch["ids"], batch["length"])
        return jnp.tanh(features @ params["w"]).sum() / counts, {}

    key = jax.random.key(0)

    def run(specs):
        return jax.jit(lambda *args: gradients(loss, args[0], {"w"}, args[1], key, 8, 2, None, args[2:], specs))

    (expected, _), expected_gradient = run(())(params, batch, frozen)
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    placed = encoders.place(frozen, mesh)
    assert placed["text"]["blocks.mlp.gate.kernel"].sharding.spec == PartitionSpec(None, ("fsdp",), ("tensor",))
    with jax.set_mesh(mesh):
        (found, _), gradient = run((jax.tree.map(lambda a: a.sharding.spec, placed),))(
            params, host_rows.put_batch(batch, mesh), placed)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(gradient["w"], expected_gradient["w"], rtol=1e-3, atol=1e-5)


def test_from_a_config(tmp_path, monkeypatch):
    """Names in a config give encoders whose arrays come from its files; a checkpoint keeps fingerprints."""
    monkeypatch.setattr(encoders, "WAN22", TINY_VAE)
    monkeypatch.setattr(encoders, "Umt5Text", lambda length, **options: Umt5Text(length, TINY_TEXT, **options))
    monkeypatch.setattr(encoders, "ClipImage", lambda **options: type(TABLES["clip"][1])(TINY_CLIP, **options))
    written = {kind: write_file(tmp_path / f"{kind}.safetensors", kind) for kind in TABLES}
    c = base.get_config()
    c.model.update(latent_channels=4, text_dim=32, text_length=6, image_dim=32, image_tokens=5)
    c.encoders.update(video="wan22", text="umt5", image="clip", dtype="bfloat16",
                      video_weights=str(tmp_path / "vae.safetensors"), text_weights=str(tmp_path / "umt5.safetensors"),
                      image_weights=str(tmp_path / "clip.safetensors"))

    class NoData:
        cache = None

        def clips(self, count):
            raise AssertionError("nothing is fitted")

    experiment = Experiment(c)
    kept = experiment.fit_encoders(NoData())
    assert {part: tuple(arrays) for part, arrays in kept.items()} == dict.fromkeys(("video", "text", "image"), ("sha256",))
    arrays = experiment.load_encoders(kept)
    for part, kind in (("video", "vae"), ("text", "umt5"), ("image", "clip")):
        name = next(iter(written[kind]))
        np.testing.assert_array_equal(arrays[part][name], written[kind][name].astype(ml_dtypes.bfloat16))
    c.model.latent_channels = 16
    with pytest.raises(ValueError, match="model.latent_channels = 16, but encoders.video = 'wan22' has 4"):
        _ = Experiment(c).encoders
    c.model.latent_channels = 4
    c.model.image_dim = 48
    with pytest.raises(ValueError, match="image_tokens x image_dim = 5 x 48, but encoders.image = 'clip' gives 5 x 32"):
        _ = Experiment(c).encoders
    c.encoders.image = "vit"
    with pytest.raises(ValueError, match="encoders.image = 'vit': expected one of none, clip"):
        _ = Experiment(c).encoders
