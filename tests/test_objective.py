"""Inputs and loss of DreamZero: draws that follow the sample, losses that add up, clips whose action slots cannot matter."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from world_model import encoders, functional
from world_model.batch import Layout, batch_spec, check_batch, encoded_batch_spec
from world_model.families import make_model
from world_model.families.dreamzero.inputs import DreamZeroInputs
from world_model.families.dreamzero.loss import DreamZeroLoss

LAYOUT = Layout(frames=9, height=16, width=16, frames_per_block=1, actions_per_block=4, states_per_block=1)
SIZES = dict(layout=LAYOUT, latent_height=2, latent_width=2, dim=16, ffn_dim=32, num_heads=2, num_layers=2,
             freq_dim=16, latent_channels=16, concat_first_frame=True, text_dim=8, text_length=4, image_dim=0,
             image_tokens=0, action_dim=6, state_dim=4, action_hidden_dim=8)


def make_batch(size: int, seed: int = 0) -> dict:
    """Random robot samples; the last one a clip without actions, the first one with padded frames."""
    rng, spec = np.random.default_rng(seed), batch_spec(LAYOUT, action_dim=6, state_dim=4, text_length=4)
    batch = {name: np.zeros((size, *shape), dtype) for name, (shape, dtype) in spec.items()}
    batch["video"] = rng.integers(0, 256, batch["video"].shape, np.uint8)
    batch["frame_mask"][:] = True
    batch["frame_mask"][0, 6:] = False
    batch["action_mask"][:-1, :, :3] = True
    batch["actions"] = rng.uniform(-1, 1, batch["actions"].shape).astype(np.float32) * batch["action_mask"]
    batch["state"] = rng.uniform(-1, 1, batch["state"].shape).astype(np.float32)
    batch["text_ids"], batch["text_length"] = rng.integers(1, 9, (size, 4), np.int32), np.full(size, 3, np.int32)
    batch["sample_index"] = np.arange(size, dtype=np.uint32)
    check_batch(batch, spec, size)
    return batch


@pytest.fixture(scope="module")
def made():
    """(parameters, inputs, the encoders' arrays, function that makes a loss)."""
    model = make_model("dreamzero", **SIZES)
    params = model.init_params(jax.random.key(0))
    params = {k: v + 0.1 * jax.random.normal(jax.random.fold_in(jax.random.key(1), i), v.shape)
              for i, (k, v) in enumerate(sorted(params.items()))}
    codec = encoders.make_video_codec("patch_pca", channels=16)
    text = encoders.make_text_encoder("hash", text_length=4, text_dim=8)
    frozen = {"video": codec.init(lambda: make_batch(8, 1)["video"]), "text": text.init()}
    return (params, DreamZeroInputs(model.spec, codec, text), jax.tree.map(jnp.asarray, frozen),
            functools.partial(DreamZeroLoss, model.module))


def run(made, batch, counts=None, **options):
    params, inputs, frozen, make = made
    loss = make(**options)

    @jax.jit
    def of_batch(params, frozen, batch, counts):
        return loss(params, inputs.encode(frozen, batch), jax.random.key(3), counts)

    return of_batch(params, frozen, batch, counts or loss.count(batch))


@pytest.mark.parametrize("average", ["slots", "valid"])
def test_microbatches_in_any_order_add_up_to_the_whole(made, average):
    batch = make_batch(4)
    whole, metrics = run(made, batch, action_average=average)
    counts = made[-1](action_average=average).count(batch)
    parts = [run(made, {k: v[rows] for k, v in batch.items()}, counts, action_average=average)
             for rows in ([3, 1], [2, 0])]
    np.testing.assert_allclose(sum(loss for loss, _ in parts), whole, rtol=1e-5)
    for name, value in metrics.items():
        np.testing.assert_allclose(sum(m[name] for _, m in parts), value, rtol=1e-5, err_msg=name)


def test_a_clip_trains_no_action_and_its_slots_do_not_matter(made):
    batch = make_batch(2)
    clip = {k: v[1:] for k, v in batch.items()}
    loss, metrics = run(made, clip)
    other = dict(clip, actions=np.full_like(clip["actions"], 9), state=np.full_like(clip["state"], np.nan))
    assert float(metrics["action_loss"]) == 0 < float(metrics["video_loss"])
    assert float(loss) == float(run(made, other)[0])


def test_padded_frames_have_no_loss(made):
    batch = {k: v[:1] for k, v in make_batch(2).items()}
    other = dict(batch, video=batch["video"].copy())
    other["video"][:, 6:] = 0
    _, inputs, frozen, make = made
    counts = make().count(batch)
    np.testing.assert_array_equal(inputs.encode(frozen, batch).frame_valid, [[True, True, False]])
    assert counts["frames"] == 2
    assert float(run(made, batch)[1]["video_loss"]) == float(run(made, other)[1]["video_loss"])


def test_stored_features_give_the_loss_of_encoding(made):
    """The same batch with the encoders' outputs in place of pixels and tokens."""
    batch, (_, inputs, frozen, _) = make_batch(2), made
    example = inputs.encode(frozen, batch)
    stored = {k: v for k, v in batch.items() if k not in ("video", "text_ids", "text_length")}
    stored |= {"latents": example.latents, "first_latents": example.condition[..., 4:], "text_features": example.text}
    spec = encoded_batch_spec(LAYOUT, action_dim=6, state_dim=4, text=(4, 8), latent=(2, 2, 16), image=None,
                              concat_first_frame=True)
    assert {name: v.shape[1:] for name, v in stored.items()} == {name: shape for name, (shape, _) in spec.items()}
    np.testing.assert_allclose(run(made, stored)[0], run(made, batch)[0], rtol=1e-6)


def test_precomputed_encoders_encode_nothing(made):
    video = encoders.make_video_codec("wan22_latents", channels=48)
    text = encoders.make_text_encoder("features", text_length=4, text_dim=8)
    inputs = DreamZeroInputs(made[1].spec, video, text)
    assert video.spatial_stride == 16
    with pytest.raises(ValueError, match="'text_features'|'latents'"):
        inputs.encode({"video": video.init(None), "text": text.init()}, make_batch(1))


def test_weighting_and_average_are_known_words(made):
    for options in (dict(weighting="flat"), dict(action_average="all")):
        with pytest.raises(ValueError, match=r"expected"):
            made[-1](**options)
    assert float(run(made, make_batch(2), weighting="uniform")[0]) != float(run(made, make_batch(2))[0])


def test_parameters_of_another_structure_are_refused(made):
    params, _, _, make = made
    with pytest.raises(ValueError, match="missing .*time_projection.bias"):
        functional.bind(make().model, {k: v for k, v in params.items() if k != "time_projection.bias"})


def test_image_features_need_an_encoder(made):
    spec = make_model("dreamzero", **{**SIZES, "image_dim": 8, "image_tokens": 2}).spec
    _, inputs, frozen, _ = made
    with pytest.raises(ValueError, match="model.image_dim = 8"):
        dataclasses.replace(inputs, spec=spec).encode(frozen, make_batch(1))


def test_encoders_are_arguments_of_what_is_compiled(made):
    """One program for any weights of an encoder, and none inside it."""
    (_, inputs, frozen, _), batch, traced = made, make_batch(2), []

    @functools.partial(jax.jit, static_argnums=0)
    def latents(inputs, frozen, batch):
        traced.append(inputs)
        return inputs.encode(frozen, batch).latents

    same = dataclasses.replace(inputs)
    assert same is not inputs and hash(same) == hash(inputs)  # a description: equal ones share what is compiled
    other = jax.tree.map(lambda x: x + 1, frozen)
    found = [latents(inputs, frozen, batch), latents(same, other, batch)]
    assert np.abs(found[0] - found[1]).max() > 0.1 and len(traced) == 1
    assert latents.trace(inputs, frozen, batch).jaxpr.consts == []


def test_forward_dynamics_gives_actions_without_noise_and_learns_none_of_them(made):
    batch = make_batch(4)
    _, whole = run(made, batch, forward_dynamics=1.0)
    assert whole["action_loss"] == 0 < whole["video_loss"]
    moved = batch | {"actions": batch["actions"] + 1}
    assert run(made, moved, forward_dynamics=1.0)[1]["video_loss"] != whole["video_loss"]
    some, none = (run(made, batch, forward_dynamics=share)[1] for share in (0.5, 0.0))
    assert some["action_loss"] > 0 and some["action_loss"] != none["action_loss"]
