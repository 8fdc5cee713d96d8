"""The name table against the reference's own lists of names, and round trips on its weights."""

import json
import pathlib
import types

import jax
import numpy as np
import pytest

from world_model.families.dreamzero.weights.names import DREAMZERO
from world_model.weights import conversion, names, safetensors_io
from world_model.weights.formats import InitRule, PublishedFormat
from world_model.weights.names import NameTable, OptionalModules, StackTable
from world_model.weights.safetensors_io import WeightsError

GOLDENS = pathlib.Path(__file__).parent / "goldens"
SIZES = {  # dim, ffn, layers, input channels, output channels, parameters
    "14b": (5120, 13824, 40, 36, 16, 16_484_292_448),
    "5b": (3072, 14336, 30, 48, 48, 5_606_692_832),
}


def our_shapes(dim, ffn, layers, channels_in, channels_out, *, freq=256, text=4096, image=1280, state=64,
               action=32, hidden=1024):
    """Our abstract parameters, written from the contract and not from the table."""
    shapes = {}

    def linear(name, *shape):
        shapes[f"{name}.kernel"], shapes[f"{name}.bias"] = shape, (*shape[:-2], shape[-1])

    def block(at, *lead):
        shapes[f"{at}.modulation"] = (*lead, 6, dim)
        for attention in ("self_attn", "cross_attn"):
            for p in "qkvo":
                linear(f"{at}.{attention}.{p}", *lead, dim, dim)
            for p in "qk":
                shapes[f"{at}.{attention}.{p}_norm.scale"] = (*lead, dim)
        if image:
            linear(f"{at}.cross_attn.k_image", *lead, dim, dim)
            linear(f"{at}.cross_attn.v_image", *lead, dim, dim)
            shapes[f"{at}.cross_attn.k_image_norm.scale"] = (*lead, dim)
        shapes[f"{at}.cross_norm.scale"] = shapes[f"{at}.cross_norm.bias"] = (*lead, dim)
        linear(f"{at}.mlp.fc1", *lead, dim, ffn)
        linear(f"{at}.mlp.fc2", *lead, ffn, dim)

    linear("patch_embedding", 4 * channels_in, dim)
    linear("text_embedding.fc1", text, dim)
    linear("text_embedding.fc2", dim, dim)
    linear("time_embedding.fc1", freq, dim)
    linear("time_embedding.fc2", dim, dim)
    linear("time_projection", dim, 6 * dim)
    shapes["head.modulation"] = (2, dim)
    linear("head.proj", dim, 4 * channels_out)
    linear("state_encoder.fc1", state, hidden)
    linear("state_encoder.fc2", hidden, dim)
    linear("action_encoder.fc1", action, dim)
    linear("action_encoder.fc2", 2 * dim, dim)
    linear("action_encoder.fc3", dim, dim)
    linear("action_decoder.fc1", dim, hidden)
    linear("action_decoder.fc2", hidden, action)
    if image:
        for norm, width in (("norm1", image), ("norm2", dim)):
            shapes[f"image_embedding.{norm}.scale"] = shapes[f"image_embedding.{norm}.bias"] = (width,)
        linear("image_embedding.fc1", image, image)
        linear("image_embedding.fc2", image, dim)
    if layers > 1:
        block("blocks", layers - 1)
    block("final_block")
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}


def tiny(golden):
    file = np.load(GOLDENS / f"dreamzero_{golden}_tiny.npz")
    weights = {key[2:]: file[key] for key in file.files if key.startswith("w/")}
    cfg = json.loads(str(file["cfg_json"]))
    m = cfg["model"]
    shapes = our_shapes(m["dim"], m["ffn_dim"], m["num_layers"], m["in_dim"], m["out_dim"],
                        freq=m["freq_dim"], text=m["text_dim"], image=cfg["clip_dim"],
                        state=m["max_state_dim"], action=m["action_dim"], hidden=m["hidden_size"])
    return weights, shapes


@pytest.mark.parametrize("size", SIZES)
def test_every_name_and_shape_of_the_released_sizes(size):
    *sizes, total = SIZES[size]
    expected = json.loads((GOLDENS / "shapes" / f"dreamzero_{size}.json").read_text())
    found = {k: list(x.shape) for k, x in names.published_shapes(our_shapes(*sizes), 128, DREAMZERO).items()}
    assert found == expected
    assert sum(int(np.prod(shape)) for shape in found.values()) == total


@pytest.mark.parametrize("golden", ["i2v", "ti2v"])
def test_round_trip_is_bit_exact(golden):
    weights, shapes = tiny(golden)
    params = names.from_published(weights, shapes, 24, DREAMZERO)
    assert {k: x.shape for k, x in params.items()} == {k: x.shape for k, x in shapes.items()}
    back = dict(names.to_published(params, 24, DREAMZERO))
    assert back.keys() == weights.keys()
    for name, x in weights.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)


def test_layouts_mean_the_same_function():
    """A linear and a patch embedding in our layout equal PyTorch's definition, written with einsum."""
    weights, shapes = tiny("i2v")
    params = names.from_published(weights, shapes, 24, DREAMZERO)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 96)).astype(np.float32)
    np.testing.assert_allclose(x @ params["blocks.mlp.fc1.kernel"][0],
                               np.einsum("bi,oi->bo", x, weights["blocks.0.ffn.0.weight"]), atol=1e-5)
    patch = rng.normal(size=(36, 1, 2, 2)).astype(np.float32)  # c, t, ph, pw
    rows = patch[:, 0].transpose(1, 2, 0).reshape(-1)  # ph, pw, c
    expected = np.einsum("ctij,dctij->d", patch, weights["patch_embedding.weight"])
    np.testing.assert_allclose(rows @ params["patch_embedding.kernel"], expected, atol=1e-5)
    # one head of four: our (first half, second half) are the published (even, odd) rows
    q = weights["blocks.1.self_attn.q.weight"][24:48]
    native = params["final_block.self_attn.q.kernel"][:, 24:48]
    np.testing.assert_array_equal(native.T, np.concatenate([q[0::2], q[1::2]]))
    cross = weights["blocks.0.cross_attn.q.weight"]
    np.testing.assert_array_equal(params["blocks.cross_attn.q.kernel"][0], cross.T)
    np.testing.assert_array_equal(params["action_encoder.fc2.kernel"], weights["action_encoder.W2.W"][0])
    np.testing.assert_array_equal(params["final_block.modulation"], weights["blocks.1.modulation"][0])


def test_names_missing_and_unexpected_are_listed():
    weights, shapes = tiny("ti2v")
    weights["blocks.0.self_attn.norm_v.weight"] = weights.pop("blocks.0.self_attn.norm_q.weight")
    with pytest.raises(ValueError, match=r"missing \['blocks.0.self_attn.norm_q.weight'\], "
                                         r"unexpected \['blocks.0.self_attn.norm_v.weight'\]"):
        names.from_published(weights, shapes, 24, DREAMZERO)
    del shapes["head.proj.bias"]
    with pytest.raises(ValueError, match=r"our parameters.*missing \['head.proj.bias'\]"):
        names.published_shapes(shapes, 24, DREAMZERO)


def test_wrong_shape_is_named():
    weights, shapes = tiny("ti2v")
    weights["blocks.1.ffn.0.weight"] = weights["blocks.1.ffn.0.weight"].T
    with pytest.raises(ValueError, match=r"blocks.1.ffn.0.weight .*expected shape \(144, 72\), found \(72,"):
        names.from_published(weights, shapes, 24, DREAMZERO)


def test_tensors_are_produced_one_at_a_time():
    """The stream reads our parameters lazily: a leaf is not touched before its turn."""
    weights, shapes = tiny("ti2v")
    params = names.from_published(weights, shapes, 24, DREAMZERO)

    touched = []

    class Logged(dict):
        def __getitem__(self, key):
            touched.append(key)
            return super().__getitem__(key)

    stream = names.to_published(Logged(params), 24, DREAMZERO)
    next(stream)
    assert touched == ["action_decoder.fc1.bias"]
    list(stream)
    runs = [name for name, before in zip(touched, [None, *touched]) if name != before]
    assert len(runs) == len(set(runs))  # all layers of a stack before the next: each array is read once


@pytest.mark.parametrize("layers,image", [(1, 32), (3, 0), (1, 0)])
def test_one_layer_and_no_image_context(layers, image):
    shapes = our_shapes(24, 48, layers, 8, 4, freq=16, text=8, image=image, state=5, action=3, hidden=7)
    published = names.published_shapes(shapes, 24, DREAMZERO)
    assert any("img" in name for name in published) == bool(image)
    numbers = {int(name.split(".")[1]) for name in published if name.startswith("blocks.")}
    assert numbers == set(range(layers))


# Two stacks: a tower, all of whose layers are stacked, and an expert, whose last layer stands apart.
TOY = NameTable(
    modules=(("model.proj", "proj", "linear"),),
    stacks=(StackTable("model.tower.blocks.{i}.", "tower.", (("mlp.up", "fc1", "matrix"),)),
            StackTable("model.expert.layers.{i}.", "expert.", (("norm", "norm", "norm"),), last="expert_last.")),
    optional=(OptionalModules("a depth head", "depth.", (("model.depth", "depth", "linear"),),
                              {"tower.": (("ln", "norm", "layer_norm"),)}),))
TOY_NAMES = {  # published name -> (native name, layer)
    "model.proj.weight": ("proj.kernel", None), "model.proj.bias": ("proj.bias", None),
    **{f"model.tower.blocks.{i}.mlp.up.weight": ("tower.fc1.kernel", i) for i in range(3)},
    "model.expert.layers.0.norm.weight": ("expert.norm.scale", 0),
    "model.expert.layers.1.norm.weight": ("expert_last.norm.scale", None)}
TOY_DEPTH = {
    "model.depth.weight": ("depth.kernel", None), "model.depth.bias": ("depth.bias", None),
    **{f"model.tower.blocks.{i}.ln.{kind}": (f"tower.norm.{native}", i) for i in range(3)
       for kind, native in (("weight", "scale"), ("bias", "bias"))}}


def toy_params(depth_head: bool, tower: int = 3):
    rng = np.random.default_rng(0)
    shapes = {"proj.kernel": (2, 5), "proj.bias": (5,), "tower.fc1.kernel": (tower, 5, 7), "expert.norm.scale": (1, 4),
              "expert_last.norm.scale": (4,)}
    if depth_head:
        shapes |= {"depth.kernel": (5, 2), "depth.bias": (2,), "tower.norm.scale": (tower, 5),
                   "tower.norm.bias": (tower, 5)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("depth_head", [False, True])
def test_two_stacks_of_their_own_depths(depth_head):
    """Each published tensor is the named slice of ours, transposed where it is a kernel, and comes back bit for bit."""
    params, expected = toy_params(depth_head), TOY_NAMES | (TOY_DEPTH if depth_head else {})
    published = dict(names.to_published(params, 4, TOY))
    assert published.keys() == expected.keys()
    for name, (native, layer) in expected.items():
        np.testing.assert_array_equal(published[name], (params[native] if layer is None else params[native][layer]).T)
    found = names.from_published(published, params, 4, TOY)
    assert found.keys() == params.keys()
    for name, x in params.items():
        np.testing.assert_array_equal(found[name], x)


def test_two_stacks_from_a_file(tmp_path):
    """Read through a format; what does not fit is told stack by stack; a rule stands in for optional modules."""
    params, sizes = toy_params(depth_head=False), types.SimpleNamespace(head_dim=4)
    safetensors_io.write(tmp_path, names.to_published(params, 4, TOY))
    rule = InitRule(r"^depth\.|^tower\.norm\.", "the release has no depth head")
    opened = PublishedFormat("model", ("",), ("",), TOY, (rule,)).open(tmp_path)
    for name, x in conversion.read(opened, params, sizes).items():
        np.testing.assert_array_equal(x, params[name])
    with pytest.raises(WeightsError, match=r"model of 4 layers of tower\.\* and 2 layers of expert\.\*, without a depth "
                       r"head, .*the source has 3 layers of tower\.\* and 2 layers of expert\.\*\): 1 missing"):
        conversion.read(opened, toy_params(depth_head=False, tower=4), sizes)
    with pytest.raises(WeightsError, match=r"with a depth head, .*: 8 missing"):
        conversion.read(opened, toy_params(depth_head=True), sizes)  # `read` wants a whole model, rules or not
    plan = conversion.make_plan(opened, toy_params(depth_head=True), sizes)
    assert plan.initialised == dict.fromkeys({native for native, _ in TOY_DEPTH.values()}, "the release has no depth head")


def test_an_uneven_stack_is_named():
    params = toy_params(depth_head=True) | {"tower.norm.scale": np.zeros((2, 5), np.float32)}
    with pytest.raises(ValueError, match=r"tower\. must be stacked equally deep, found .*'tower.norm.scale': 2"):
        names.to_published(params, 4, TOY)
