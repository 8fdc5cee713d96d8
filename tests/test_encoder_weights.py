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
from launch.setup import build, train_parts
from world_model import encoders
from world_model.encoders import names as encoder_names
from world_model.encoders.clip_vit import ClipSpec
from world_model.encoders.umt5 import Umt5Spec, Umt5Text
from world_model.encoders.wan_vae import WAN22
from world_model.encoders.wan_video import WanVideo
from world_model.encoders.weights import Source
from world_model.parallel import sharding
from world_model.training.train_step import gradients
from world_model.weights.safetensors_io import WeightsError, write

TINY_VAE = dataclasses.replace(WAN22, latent_channels=4, mean=(0.0,) * 4, std=(1.0,) * 4, encoder_dim=8, decoder_dim=12,
                               blocks=1)
TINY_TEXT = Umt5Spec(vocabulary=50, dim=32, heads=2, head_dim=16, ffn_dim=32, layers=2)
TINY_CLIP = ClipSpec(size=28, patch=14, dim=32, heads=2, layers=2)
TABLES = {"vae": (encoder_names.vae(TINY_VAE), WanVideo(TINY_VAE)),
          "umt5": (encoder_names.umt5(2), Umt5Text(6, TINY_TEXT)),
          "clip": (encoder_names.clip(2), encoders.ClipImage(TINY_CLIP))}


def arrays_of(encoder, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=x.shape).astype(np.float32) for name, x in encoder.shapes().items()}


def write_file(path, kind, form="wan", **changes):
    """Random weights in their layout; changes: names to set, or to leave out (None). Returns ours."""
    tables, encoder = TABLES[kind]
    ours = arrays_of(encoder)
    theirs = dict(encoder_names.to_published(tables[form], ours)) | changes
    save_file({name: x for name, x in theirs.items() if x is not None}, path)
    return ours


def loaded(kind, path, **options):
    encoder = dataclasses.replace(TABLES[kind][1], weights=Source(str(path), **options))
    return encoder.load(encoder.init())


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("form", ["wan", "diffusers", "dreamzero"])
def test_there_and_back(kind, form, tmp_path):
    ours = write_file(tmp_path / "weights.safetensors", kind, form)
    found = loaded(kind, tmp_path / "weights.safetensors")
    assert found.keys() == ours.keys()
    for name in ours:
        np.testing.assert_array_equal(found[name], ours[name])


def test_out_of_a_whole_dreamzero_checkpoint(tmp_path):
    """Three encoders and a network in one folder of shards; each reads its own, and misses what is missing."""
    ours = {kind: arrays_of(encoder) for kind, (_, encoder) in TABLES.items()}
    theirs = {"action_head.model.blocks.0.ffn.0.weight": np.zeros((3, 2), np.float32)}
    for kind, (tables, _) in TABLES.items():
        theirs |= dict(encoder_names.to_published(tables["dreamzero"], ours[kind]))
    assert {"action_head.vae.model.conv1.weight", "action_head.text_encoder.token_embedding.weight",
            "action_head.image_encoder.model.visual.cls_embedding"} <= theirs.keys()
    theirs["action_head.image_encoder.model.log_scale"] = np.zeros((), np.float32)
    write(tmp_path, theirs.items(), shard_bytes=50_000)
    for kind in TABLES:
        for name, x in loaded(kind, tmp_path).items():
            np.testing.assert_array_equal(x, ours[kind][name])
    (tmp_path / "cut").mkdir()
    write(tmp_path / "cut", ((name, x) for name, x in theirs.items() if not name.endswith("vae.model.conv1.bias")))
    with pytest.raises(WeightsError, match=r"nearest, dreamzero: 1 missing \['action_head.vae.model.conv1.bias'\], 0"):
        loaded("vae", tmp_path / "cut")


def test_a_folder_of_shards(tmp_path):
    tables, encoder = TABLES["umt5"]
    ours = arrays_of(encoder)
    write(tmp_path, encoder_names.to_published(tables["diffusers"], ours), shard_bytes=5000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    np.testing.assert_array_equal(loaded("umt5", tmp_path)["token_embedding"], ours["token_embedding"])


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
    tables, encoder = TABLES["vae"]
    ours = arrays_of(encoder)
    theirs = {name: torch.from_numpy(x).bfloat16() for name, x in encoder_names.to_published(tables["wan"], ours)}
    torch.save(theirs, tmp_path / "Wan2.2_VAE.pth")
    with pytest.raises(WeightsError, match="encoders.allow_pickle"):
        loaded("vae", tmp_path / "Wan2.2_VAE.pth")
    found = loaded("vae", tmp_path / "Wan2.2_VAE.pth", allow_pickle=True)
    np.testing.assert_array_equal(found["from_latent.kernel"],
                                  ours["from_latent.kernel"].astype(ml_dtypes.bfloat16).astype(np.float32))
    torch.save({"step": torch.optim.SGD}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="not a file of plain tensors"):
        loaded("vae", tmp_path / "other.pth", allow_pickle=True)


def test_other_weights_than_before(tmp_path):
    file = tmp_path / "weights.safetensors"
    write_file(file, "vae")
    encoder = dataclasses.replace(TABLES["vae"][1], weights=Source(str(file)))
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
    run = lambda specs: jax.jit(lambda *args: gradients(loss, args[0], {"w"}, args[1], key, 8, 2, None, args[2:], specs))
    (expected, _), expected_gradient = run(())(params, batch, frozen)
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    placed = train_parts.place(frozen, mesh)
    assert placed["text"]["blocks.mlp.gate.kernel"].sharding.spec == PartitionSpec(None, ("fsdp",), ("tensor",))
    with jax.set_mesh(mesh):
        (found, _), gradient = run((jax.tree.map(lambda a: a.sharding.spec, placed),))(
            params, sharding.put_batch(batch, mesh), placed)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(gradient["w"], expected_gradient["w"], rtol=1e-3, atol=1e-5)


def test_from_a_config(tmp_path, monkeypatch):
    """Names in a config give encoders whose arrays come from its files; a checkpoint keeps fingerprints."""
    monkeypatch.setattr(encoders, "WAN22", TINY_VAE)
    monkeypatch.setattr(encoders, "Umt5Text", lambda length, **options: Umt5Text(length, TINY_TEXT, **options))
    monkeypatch.setattr(encoders, "ClipImage", lambda **options: type(TABLES["clip"][1])(TINY_CLIP, **options))
    ours = {kind: write_file(tmp_path / f"{kind}.safetensors", kind) for kind in TABLES}
    c = base.get_config()
    c.model.update(latent_channels=4, text_dim=32, text_length=6, image_dim=32, image_tokens=5)
    c.encoders.update(video="wan22", text="umt5", image="clip", dtype="bfloat16",
                      video_weights=str(tmp_path / "vae.safetensors"), text_weights=str(tmp_path / "umt5.safetensors"),
                      image_weights=str(tmp_path / "clip.safetensors"))

    class NoData:
        cache = None

        def clips(self, count):
            raise AssertionError("nothing is fitted")

    kept = build.frozen(c, NoData(), tmp_path)
    assert {part: tuple(arrays) for part, arrays in kept.items()} == dict.fromkeys(("video", "text", "image"), ("sha256",))
    arrays = build.arrays(c, kept)
    for part, kind in (("video", "vae"), ("text", "umt5"), ("image", "clip")):
        name = next(iter(ours[kind]))
        np.testing.assert_array_equal(arrays[part][name], ours[kind][name].astype(ml_dtypes.bfloat16))
    c.model.latent_channels = 16
    with pytest.raises(ValueError, match="model.latent_channels = 16, but encoders.video = 'wan22' has 4"):
        build.video_codec(c)
    c.model.image_dim = 48
    with pytest.raises(ValueError, match="image_tokens x image_dim = 5 x 48, but encoders.image = 'clip' gives 5 x 32"):
        build.image_encoder(c)
    c.encoders.image = "vit"
    with pytest.raises(ValueError, match="encoders.image = 'vit': expected one of none, clip"):
        build.image_encoder(c)
