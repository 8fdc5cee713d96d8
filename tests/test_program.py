"""Reading compiled programs: loops counted in full, collectives by kind, size and mesh axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from world_model.analysis import roofline
from world_model.analysis.program import Collective, Program
from world_model.parallel import sharding


def compiled(fn, *shapes, **options):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return Program(jax.jit(fn, **options).lower(*arguments).compile().as_text())


def test_products_of_a_loop_count_as_often_as_it_runs():
    def fn(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    assert compiled(fn, (8, 16), (5, 16, 16)).executed_flops() == 5 * 2 * 8 * 16 * 16


def test_batched_products():
    def fn(q, k):
        return jnp.einsum("bqnd,bknd->bnqk", q, k)
    assert compiled(fn, (2, 3, 4, 8), (2, 5, 4, 8)).executed_flops() == 2 * (2 * 4 * 3 * 5) * 8


def test_a_loop_that_may_run_for_ever_is_refused():
    with pytest.raises(ValueError, match="no known trip count"):
        compiled(lambda x: jax.lax.while_loop(lambda x: (x < 9).all(), lambda x: x @ x, x), (4, 4)).executed_flops()


def test_tpu_products_are_convolutions():
    """As libtpu writes them: the kernel's output channels are no part of the sum."""
    text = """
%fused (a: bf16[128,64], b: bf16[64,32]) -> bf16[128,32] {
  %a = bf16[128,64]{1,0} parameter(0)
  %b = bf16[64,32]{1,0} parameter(1)
  ROOT %c = bf16[128,32]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}
ENTRY %main (a: bf16[128,64], b: bf16[64,32]) -> bf16[128,32] {
  %a = bf16[128,64]{1,0} parameter(0)
  %b = bf16[64,32]{1,0} parameter(1)
  ROOT %f = bf16[128,32]{1,0} fusion(%a, %b), kind=kOutput, calls=%fused, backend_config={"estimated_cycles":"250"}
}
"""
    assert Program(text).executed_flops() == 2 * 128 * 64 * 32
    assert Program(text).estimated_cycles() == 250


def test_a_loop_over_shares_of_a_product_counts_by_its_step():
    """As libtpu writes them: an unsigned counter that moves by two."""
    text = """
%body (p: (u32[], bf16[8,64], bf16[64,32])) -> (u32[], bf16[8,64], bf16[64,32]) {
  %p = (u32[], bf16[8,64]{1,0}, bf16[64,32]{1,0}) parameter(0)
  %i = u32[] get-tuple-element(%p), index=0
  %a = bf16[8,64]{1,0} get-tuple-element(%p), index=1
  %b = bf16[64,32]{1,0} get-tuple-element(%p), index=2
  %two = u32[] constant(2)
  %next = u32[] add(%i, %two)
  %c = bf16[8,32]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
  ROOT %out = (u32[], bf16[8,64]{1,0}, bf16[64,32]{1,0}) tuple(%next, %a, %b)
}
%cond (p: (u32[], bf16[8,64], bf16[64,32])) -> pred[] {
  %p = (u32[], bf16[8,64]{1,0}, bf16[64,32]{1,0}) parameter(0)
  %bound = u32[] constant(8)
  %i = u32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}
ENTRY %main (s: (u32[], bf16[8,64], bf16[64,32])) -> (u32[], bf16[8,64], bf16[64,32]) {
  %s = (u32[], bf16[8,64]{1,0}, bf16[64,32]{1,0}) parameter(0)
  ROOT %w = (u32[], bf16[8,64]{1,0}, bf16[64,32]{1,0}) while(%s), condition=%cond, body=%body
}
"""
    assert Program(text).executed_flops() == 4 * 2 * 8 * 64 * 32


def test_gpu_products_are_calls_of_cublas():
    text = """
ENTRY %main (a: bf16[128,64], b: bf16[64,32]) -> bf16[128,32] {
  %a = bf16[128,64]{1,0} parameter(0)
  %b = bf16[64,32]{1,0} parameter(1)
  %call = (bf16[128,32]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"alpha_real":1,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
  ROOT %out = bf16[128,32]{1,0} get-tuple-element(%call), index=0
}
"""
    assert Program(text).executed_flops() == 2 * 128 * 64 * 32


CUDNN = """
ENTRY %main (q: bf16[2,880,40,128], k: bf16[2,1760,40,128]) -> bf16[2,40,880,128] {
  %q = bf16[2,880,40,128]{3,2,1,0} parameter(0)
  %k = bf16[2,1760,40,128]{3,2,1,0} parameter(1)
  %fwd = (bf16[2,40,880,128]{3,1,2,0}, f32[2,40,880]{2,1,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax", metadata={op_name="jit(f)/attend/dot_product_attention_fwd"}
  %bwd = (bf16[2,40,880,128]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %k, %q), custom_call_target="__cudnn$fmhaScaleBiasSoftmaxBackward", metadata={op_name="jit(f)/attend/dot_product_attention_bwd"}
  ROOT %out = bf16[2,40,880,128]{3,1,2,0} get-tuple-element(%fwd), index=0
}
"""


def test_cudnn_attention_counts_all_queries_with_all_keys():
    program, product = Program(CUDNN), 2 * 2 * 40 * 880 * 1760 * 128
    assert program.kernel_flops("fwd") == 2 * product and program.kernel_flops("bwd") == 5 * product
    assert program.executed_flops("attend") == program.kernel_flops() == 7 * product


ROOFLINE = """
%fused_slice (w: bf16[40,64,32], i: s32[]) -> bf16[64,32] {
  %w = bf16[40,64,32]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %s = bf16[1,64,32]{2,1,0} dynamic-slice(%w, %i, %i, %i), dynamic_slice_sizes={1,64,32}
  ROOT %r = bf16[64,32]{1,0} bitcast(%s)
}
%fused_write (stack: f32[40,128], x: f32[1,128], i: s32[]) -> f32[40,128] {
  %stack = f32[40,128]{1,0} parameter(0)
  %x = f32[1,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %u = f32[40,128]{1,0} dynamic-update-slice(%stack, %x, %i, %i)
}
%fused_dot (a: bf16[128,64], b: bf16[64,32]) -> bf16[128,32] {
  %a = bf16[128,64]{1,0} parameter(0)
  %b = bf16[64,32]{1,0} parameter(1)
  ROOT %d = bf16[128,32]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
ENTRY %main (a: bf16[128,64], w: bf16[40,64,32], stack: f32[40,128], x: f32[1,128], i: s32[]) -> bf16[128,32] {
  %a = bf16[128,64]{1,0} parameter(0)
  %w = bf16[40,64,32]{2,1,0} parameter(1)
  %stack = f32[40,128]{1,0} parameter(2)
  %x = f32[1,128]{1,0} parameter(3)
  %i = s32[] parameter(4)
  %start = ((bf16[40,64,32]{2,1,0}, s32[]), bf16[64,32]{1,0}, u32[]) fusion-start(%w, %i), kind=kLoop, calls=%fused_slice, metadata={op_name="jit(f)/slice"}
  %slice = bf16[64,32]{1,0} fusion-done(%start), metadata={op_name="jit(f)/slice"}
  %write = f32[40,128]{1,0} fusion(%stack, %x, %i), kind=kLoop, calls=%fused_write, metadata={op_name="jit(f)/write"}
  ROOT %dot = bf16[128,32]{1,0} fusion(%a, %slice), kind=kCustom, calls=%fused_dot, metadata={op_name="jit(f)/dot"}
}
"""


def test_a_pass_over_memory_takes_what_it_reads_and_writes_or_its_products():
    found = {p.name: p for p in roofline.passes(Program(ROOFLINE), 1e6, 1e3)}
    layer, flops = 2 * 64 * 32, 2 * 128 * 64 * 32
    assert found["fusion forward slice"].bytes == 2 * layer + 4  # a layer of the stack, and the index
    assert found["fusion forward write"].bytes == 2 * 4 * 128 + 4  # in place
    assert len(found) == 3  # a pass that runs beside others, until it is awaited, counts once
    dot = found["product forward dot"]
    assert (dot.flops, dot.bytes) == (flops, 2 * (128 * 64 + 128 * 32) + layer)
    assert dot.seconds == max(flops / 1e6, dot.bytes / 1e3) == dot.bytes / 1e3
    assert roofline.seconds(list(found.values())) == pytest.approx(sum(p.bytes for p in found.values()) / 1e3)


@pytest.mark.parametrize("axis,group,stride", [("data", 2, 4), ("fsdp", 2, 2), ("tensor", 2, 1)])
def test_collectives_tell_their_axis_and_bytes(axis, group, stride):
    """A sum over one mesh axis is one all-reduce: each device sends twice (n - 1) / n of the array."""
    mesh = sharding.make_mesh(2, 2, 2, 1)
    placed = NamedSharding(mesh, PartitionSpec(axis))
    found = compiled(lambda x: x.sum(axis=0), (2, 640), in_shardings=placed,
                     out_shardings=NamedSharding(mesh, PartitionSpec())).collective_bytes()
    assert found == {Collective("all-reduce", group, stride, overlapped=False): 2 * (group - 1) / group * 640 * 4}


def test_gathers_inside_loops():
    mesh = sharding.make_mesh(1, 8, 1, 1)
    placed, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((None, "fsdp"), ()))

    def fn(x, w):
        def gather(w):
            return jax.lax.with_sharding_constraint(w, whole)
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ gather(w)), None), x, w)[0]

    found = compiled(fn, (4, 16), (3, 16, 16), in_shardings=(whole, placed), out_shardings=whole).collective_bytes()
    assert {c.kind for c in found} == {"all-gather"}
    assert sum(found.values()) == 3 * 7 / 8 * 16 * 16 * 4
    assert np.unique([c.group for c in found]) == [8]


def test_tpu_collectives_count_once_however_they_are_written():
    """A scatter is a fusion of an all-reduce and a slice; a gather beside products stands in three fusions."""
    groups = "replica_groups={{0,1,2,3}}"
    text = f"""
%all-reduce-scatter (input: bf16[64,32]) -> bf16[16,32] {{
  %input = bf16[64,32]{{1,0}} parameter(0)
  %zero = s32[] constant(0)
  %sum = bf16[64,32]{{1,0}} all-reduce(%input), channel_id=1, {groups}, to_apply=%add
  ROOT %slice = bf16[16,32]{{1,0}} dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={{16,32}}
}}
%fused_computation.1 (p: bf16[16,32]) -> bf16[64,32] {{
  %p = bf16[16,32]{{1,0}} parameter(0)
  ROOT %g = bf16[64,32]{{1,0}} all-gather(%p), channel_id=2, {groups}, dimensions={{0}}
}}
%async_collective_fusion.1 (p: bf16[16,32]) -> bf16[64,32] {{
  %p = bf16[16,32]{{1,0}} parameter(0)
  ROOT %g = bf16[64,32]{{1,0}} all-gather(%p), channel_id=2, {groups}, dimensions={{0}}
}}
%fused_computation.2 (p: bf16[16,32]) -> bf16[64,32] {{
  %p = bf16[16,32]{{1,0}} parameter(0)
  ROOT %g = bf16[64,32]{{1,0}} all-gather(%p), channel_id=2, {groups}, dimensions={{0}}
}}
ENTRY %main (a: bf16[64,32], w: bf16[16,32]) -> bf16[64,32] {{
  %a = bf16[64,32]{{1,0}} parameter(0)
  %w = bf16[16,32]{{1,0}} parameter(1)
  %s = bf16[16,32]{{1,0}} fusion(%a), kind=kCustom, calls=%all-reduce-scatter
  %async-collective-start.1 = bf16[64,32]{{1,0}} fusion(%w), kind=kCustom, calls=%fused_computation.1
  %fusion.9 = bf16[64,32]{{1,0}} fusion(%w), kind=kOutput, calls=%async_collective_fusion.1
  ROOT %async-collective-done.1 = bf16[64,32]{{1,0}} fusion(%w), kind=kCustom, calls=%fused_computation.2
}}
"""
    share = 3 / 4 * 64 * 32 * 2
    assert Program(text).collective_bytes() == {
        Collective("reduce-scatter", 4, 1, overlapped=False): share,
        Collective("all-gather", 4, 1, overlapped=True): share}


def test_what_sparse_cores_exchange_counts_and_not_their_cycles():
    text = """
%called_computation (p: bf16[16,32], t: token[]) -> bf16[64,32] {
  %t = token[] parameter(1)
  %p = bf16[16,32]{1,0} parameter(0)
  ROOT %g = bf16[64,32]{1,0} all-gather(%p), channel_id=1, replica_groups=mesh['axis_0'=1,'axis_1'=4] {'axis_1'}, dimensions={0}, backend_config={"estimated_cycles":"7"}
}, execution_thread="sparsecore"
ENTRY %main (w: bf16[16,32]) -> bf16[64,32] {
  %w = bf16[16,32]{1,0} parameter(0)
  %s = ((bf16[16,32]{1,0}, token[]), bf16[64,32]{1,0}) call-start(%w), async_execution_thread="sparsecore", to_apply=%called_computation
  ROOT %d = bf16[64,32]{1,0} call-done(%s)
}
"""
    assert Program(text).collective_bytes() == {Collective("all-gather", 4, 1, overlapped=True): 3 / 4 * 64 * 32 * 2}
    assert Program(text).estimated_cycles() == 0


def test_a_scatter_of_a_gpu_holds_its_operand_beside_its_result():
    text = """
ENTRY %main (a: bf16[64,32]) -> bf16[16,32] {
  %a = bf16[64,32]{1,0} parameter(0)
  %s = ((bf16[64,32]{1,0}), bf16[16,32]{1,0}) reduce-scatter-start(%a), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
  ROOT %d = bf16[16,32]{1,0} reduce-scatter-done(%s)
}
"""
    assert Program(text).collective_bytes() == {Collective("reduce-scatter", 4, 1, overlapped=True): 3 / 4 * 64 * 32 * 2}


def test_an_attention_kernel_counts_the_pairs_that_its_scope_names():
    text = """
ENTRY %main (t: s8[1,2,2], q: bf16[3,40,256,128]) -> bf16[3,40,256,128] {
  %t = s8[1,2,2]{2,1,0} parameter(0)
  %q = bf16[3,40,256,128]{3,2,1,0} parameter(1)
  %b = f32[8]{0} custom-call(), custom_call_target="AllocateBuffer", metadata={op_name="jit(f)/attend/pairs_5000/flash_fwd/pallas_call"}
  ROOT %k = bf16[3,40,256,128]{3,2,1,0} custom-call(%t, %q), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="jit(f)/attend/pairs_5000/flash_fwd/pallas_call"}
}
"""
    assert Program(text).kernel_flops() == 2 * 2 * 5000 * 128 * 40 * 3
    assert Program(text).executed_flops("attend") == Program(text).kernel_flops()
