"""DreamZero whose tokens stand as the TPU's attention kernel would have them, against plain attention."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs import dreamzero_5b, dreamzero_14b
from launch.setup.experiment import Experiment
from tests import goldens_io
from world_model import attention, functional
from world_model.attention import context, flash, tokens, visibility
from world_model.attention.packing import PackedOrder
from world_model.attention.tokens import NOISY_VIDEO
from world_model.families.dreamzero.layout import HEADS_READ, make_sequence
from world_model.families.dreamzero.model import DreamZero
from world_model.families.dreamzero.visibility import TABLES
from world_model.layers import compiler_hints
from world_model.parallel import sharding


def test_the_arranged_forward_equals_the_plain_one_with_its_gradients(monkeypatch):
    monkeypatch.setattr(attention, "MOST_PADDING", np.inf)
    monkeypatch.setattr(flash, "make_attend_packed", functools.partial(flash.make_attend_packed, interpret=True))
    monkeypatch.setattr(context, "fused", functools.partial(context.fused, interpret=True))
    z, spec, params = goldens_io.load("i2v")
    inputs = goldens_io.inputs(z)
    valid = np.ones(inputs.noisy_actions.shape[:2], bool)
    valid[0] = False  # a clip without actions
    inputs = inputs._replace(action_valid=jax.numpy.asarray(valid))

    def run(kernel):
        model = functional.abstract(DreamZero, dataclasses.replace(spec, attention=kernel, num_layers=spec.num_layers))

        def value(params):
            out = functional.bind(model, params)(inputs)
            return (out.video**2).mean() + (out.action[1:]**2).mean(), out

        grads, out = jax.jit(jax.grad(value, has_aux=True))(params)
        return grads, out.video, out.action[1:]

    assert 1 < inputs.noisy_latents.shape[0] <= compiler_hints.MAX_SAMPLES  # blocks take them one after another
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), run("flash"), run("reference"))


@pytest.mark.parametrize(("count", "kernel", "mesh", "parts"), [
    (2, "flash", {}, 2), (compiler_hints.MAX_SAMPLES + 1, "flash", {}, 1), (2, "blockwise", {}, 1), (2, "flash", {"fsdp": 8}, 1)])
def test_few_samples_that_a_device_holds_whole_stand_apart(count, kernel, mesh, parts):
    tree = {"x": np.arange(3.0 * count).reshape(count, 3), "none": None}
    with jax.set_mesh(sharding.make_mesh(**mesh)) if mesh else contextlib.nullcontext():
        found = compiler_hints.one_by_one(tree, kernel)
    assert len(found) == parts and all(part["none"] is None for part in found)
    np.testing.assert_array_equal(np.concatenate([part["x"] for part in found]), tree["x"])


def test_an_arrangement_puts_every_token_once_and_back():
    _, spec, _ = goldens_io.load("i2v")
    sequence = make_sequence(spec)
    kept = visibility.needed(visibility.get_table("dreamzero", TABLES), sequence, {NOISY_VIDEO})
    sequence = tokens.select(sequence, kept.__contains__)
    packed = PackedOrder(sequence, 128)
    x = np.arange(1.0, 1 + tokens.length(sequence), dtype=np.float32)[None, :, None]
    arranged = np.asarray(packed.pack(x))
    assert arranged.shape[1] == len(packed.order) and arranged.shape[1] % 128 == 0
    np.testing.assert_array_equal(arranged[0, :, 0], np.where(packed.order < 0, 0, packed.order + 1))
    np.testing.assert_array_equal(packed.unpack(arranged), x)


@pytest.mark.parametrize(("config", "arranged"), [(dreamzero_14b, True), (dreamzero_5b, False)])
def test_tokens_stand_as_the_kernel_wants_them_where_little_is_padding(config, arranged):
    model = Experiment(config.get_config()).model
    spec, sequence = model.spec, make_sequence(model.spec)
    kept = visibility.needed(spec.table(), sequence, set(HEADS_READ), spec.window_frames)
    sequence = tokens.select(sequence, kept.__contains__)
    packed = attention.packed_order("flash", sequence)
    assert (packed is not None) == arranged
    assert not arranged or len(packed.order) < 1.02 * tokens.length(sequence)
