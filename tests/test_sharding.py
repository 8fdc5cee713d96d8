"""world_model/parallel/sharding.py: meshes, the table of axes, and what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from world_model.parallel import axes, gather, host_rows, sharding

MESH = sharding.make_mesh(1, 4, 2, 1)


def place(axes, shape, mesh=MESH):
    return sharding.shardings({"w": axes}, {"w": shape}, mesh)["w"].spec


def test_the_free_axis_takes_the_remaining_devices():
    assert dict(sharding.make_mesh(data=2, fsdp=-1, tensor=2).shape) == dict(data=2, fsdp=2, tensor=2, context=1)
    assert dict(sharding.make_mesh(devices=jax.devices()[:3]).shape) == dict(data=1, fsdp=3, tensor=1, context=1)


@pytest.mark.parametrize("sizes, sentence", [
    ((1, 3, 2, 1), r"mesh data 1 x fsdp 3 x tensor 2 x context 1 needs 6 devices, there are 8; nearest that works: "
                   r"data 1 x fsdp 4 x tensor 2 x context 1"),
    ((1, -1, 3, 1), r"needs a multiple of 3 devices, there are 8; nearest .* tensor 4 "),
    ((-1, -1, 1, 1), r"at most one is -1"),
    ((0, -1, 1, 1), r"sizes are positive"),
])
def test_a_mesh_that_does_not_fit_names_one_that_does(sizes, sentence):
    with pytest.raises(ValueError, match=sentence):
        sharding.make_mesh(*sizes)


@pytest.mark.parametrize("stages", [(8,), (2, 4), (4, 2), (2, 2, 2)])
def test_a_gather_in_stages_is_the_gather_and_its_transpose_the_scatter(stages, monkeypatch):
    monkeypatch.setattr(gather, "gather_stages", lambda *_: stages)
    mesh = sharding.make_mesh(1, 8, 1, 1)
    whole, weight = np.arange(48.0).reshape(3, 16), np.arange(8 * 48.0).reshape(8, 3, 16)

    def of_device(share, weight):
        gathered, pull = jax.vjp(lambda share: gather.gather(share, 1, jax.sharding.get_abstract_mesh()), share)
        return gathered[None], *pull(weight[0])

    with jax.set_mesh(mesh):
        run = jax.shard_map(of_device, in_specs=(P(None, "fsdp"), P("fsdp")), out_specs=(P("fsdp"), P(None, "fsdp")),
                            check_vma=False)
        gathered, scattered = jax.jit(run)(whole, weight)
    np.testing.assert_array_equal(gathered, np.broadcast_to(whole, (8, 3, 16)))
    np.testing.assert_array_equal(scattered, weight.sum(axis=0))


def test_tori_of_three_dimensions_gather_over_a_plane_and_a_line():
    assert gather.gather_stages(64, "TPU v5") == (16, 4) and gather.gather_stages(16, "TPU v5p") == (4, 4)
    assert gather.gather_stages(8, "TPU v5") == (8,) and gather.gather_stages(64, "TPU v5 lite") == (64,)


def test_parameters_lie_as_the_table_says():
    assert place(("layers", "embed", "heads"), (3, 8, 6)) == P(None, "fsdp", "tensor")
    assert place(("mlp", "embed"), (6, 8)) == P("tensor", "fsdp")
    assert place((None, "time"), (7, 5)) == P(None, None)


def test_a_small_weight_may_stay_whole_and_a_large_one_may_not():
    assert place(("embed",), (30,)) == P(None)
    with pytest.raises(ValueError, match=r"parameter w \(4098, 4098\): its axis 'embed' of 4098 .* 4 = mesh axes fsdp"):
        place(("embed", "heads"), (4098, 4098))


def test_heads_are_never_left_whole():
    with pytest.raises(ValueError, match=r"parameter w \(8, 5\): its axis 'heads' of 5 does not divide by 2"):
        place(("embed", "heads"), (8, 5))


@pytest.mark.parametrize("axes, sentence", [
    (("embed", "embed"), "use a mesh axis twice"), (("embed",), "1 axes .* for shape"), (("width", None), "'width'"),
])
def test_axes_that_make_no_sense_name_the_parameter(axes, sentence):
    with pytest.raises(ValueError, match=sentence):
        place(axes, (8, 8))


def test_axes_and_shapes_name_the_same_parameters():
    with pytest.raises(ValueError, match="parameter b has a shape but no axes"):
        sharding.shardings({"a": (None,)}, {"a": (1,), "b": (1,)}, MESH)


def test_run_sizes_must_divide():
    fits = dict(global_batch_size=8, accumulation=2, num_heads=4)
    sharding.check_run(MESH, **fits)
    with pytest.raises(ValueError, match=r"global_batch_size = 12 .*accumulation = 2 .* 4 batch shards.*nearest: 16$"):
        sharding.check_run(MESH, **fits | {"global_batch_size": 12})
    with pytest.raises(ValueError, match=r"num_heads = 3 does not divide by mesh.tensor = 2"):
        sharding.check_run(MESH, **fits | {"num_heads": 3})


def test_constrain_needs_a_mesh_to_do_anything():
    pinned = jax.jit(lambda x: sharding.constrain(x + 1, "batch", None, "heads"))
    x = jnp.ones((4, 3, 2))
    assert len(pinned(x).sharding.device_set) == 1
    with jax.set_mesh(MESH):
        assert pinned(x).sharding.spec == P("fsdp", None, "tensor")
        with pytest.raises(ValueError, match="unknown logical axis 'rows'"):
            sharding.constrain(x, "rows", None, None)


def test_hosts_share_the_batch():
    assert host_rows.host_share(MESH) == (0, 1)
    assert host_rows.share_of({0: {0, 1}, 1: {2, 3}}, 1) == (1, 2)
    tensor_over_hosts = {0: {0}, 1: {0}, 2: {1}, 3: {1}}  # hosts 0 and 1 must load the same rows
    assert [host_rows.share_of(tensor_over_hosts, p) for p in range(4)] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    with pytest.raises(ValueError, match="overlapping or unequal"):
        host_rows.share_of({0: {0, 1}, 1: {1, 2}}, 0)


def test_batches_are_split_over_data_and_fsdp():
    rows = np.arange(16.0).reshape(8, 2)
    placed = host_rows.put_batch({"x": rows}, sharding.make_mesh(2, 2, 2, 1))["x"]
    assert placed.sharding.shard_shape(placed.shape) == (2, 2)
    np.testing.assert_array_equal(placed, rows)


def test_the_table_of_arrays_counts_bytes_in_all_and_per_device():
    shapes = {"w": (1024, 1024), "b": (3,)}
    placed = sharding.shardings({"w": ("embed", "heads"), "b": (None,)}, shapes, MESH)
    table = sharding.describe({name: jax.ShapeDtypeStruct(shape, np.float32, sharding=placed[name])
                               for name, shape in shapes.items()}).splitlines()
    assert table[2].split() == ["w", "1024x1024", "float32", "fsdp,", "tensor", "4.000", "0.500"]
    assert table[-1].split() == ["total", "of", "1,048,579", "elements", "4.000", "0.500"]


def test_a_rule_names_the_end_of_a_parameter_and_the_first_that_fits_counts():
    rules = ((r"gate\.kernel", ("embed", None)), *axes.LAYER_RULES, (r"table", axes.WHOLE))
    shapes = {"blocks.self_attn.q.kernel": (3, 8, 8), "final_block.mlp.gate.kernel": (8, 8), "blocks.norm.scale": (3, 8),
              "table": (2**13, 2**13), "expert_blocks.mlp.fc2.lora_a": (3, 8, 2), "mlp.fc2.lora_b": (2, 8)}
    assert axes.axes_of({name: np.broadcast_to(0, shape) for name, shape in shapes.items()}, rules) == {
        "blocks.self_attn.q.kernel": ("layers", "embed", "heads"), "final_block.mlp.gate.kernel": ("embed", None),
        "blocks.norm.scale": ("layers", None), "table": (None, None),
        "expert_blocks.mlp.fc2.lora_a": ("layers", "mlp", None), "mlp.fc2.lora_b": (None, "embed")}


def test_zeros_fill_the_lanes_of_an_mlp_that_lacks_few():
    shapes = {"mlp.gate.kernel": (4, 3420), "mlp.gate.bias": (3420,), "mlp.gate.lora_b": (2, 3420), "mlp.fc2.kernel": (3420, 4),
              "self_attn.q.kernel": (4, 3420), "mlp.fc1.kernel": (4, 300)}
    filled = axes.fill_lanes({name: np.ones(shape) for name, shape in shapes.items()}, axes.LAYER_RULES)
    assert [p.shape for p in filled.values()] == [(4, 3456), (3456,), (2, 3456), (3456, 4), (4, 3420), (4, 300)]
    assert all(p.sum() == np.prod(shapes[name]) for name, p in filled.items())


def test_a_large_parameter_that_no_rule_names_is_refused():
    """By its name and shape; xq is no q. What is small stays whole."""
    large = jax.ShapeDtypeStruct((sharding.SMALL // 8, 8), np.float32)
    with pytest.raises(ValueError, match=r"self_attn\.xq\.kernel \(\d+, 8\) is named by no sharding rule.*param_axes"):
        axes.axes_of({"self_attn.xq.kernel": large}, axes.LAYER_RULES)
    small = jax.ShapeDtypeStruct((sharding.SMALL // 8 - 1, 8), np.float32)
    assert axes.axes_of({"self_attn.xq.kernel": small}, axes.LAYER_RULES) == {"self_attn.xq.kernel": (None, None)}
