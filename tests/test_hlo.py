"""What a program moves, read from its text: loops count, and slices count as slices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from xmae_jax import hlo


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))


def compiled(fn, mesh, *specs):
    shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
    return jax.jit(fn, in_shardings=shardings, out_shardings=NamedSharding(mesh, P()))


def test_an_all_reduce_and_how_often_it_runs(mesh):
    """A sum over rows on eight devices, five times: 4 x 16 numbers each."""

    def total(x):
        def body(carry, _):
            return jnp.tanh(carry + jnp.sum(jnp.sin(x) * carry.sum(), axis=0)), None

        return jax.lax.scan(body, jnp.zeros((4, 16)), None, length=5)[0]

    x = jax.ShapeDtypeStruct((8, 4, 16), jnp.float32)
    text = compiled(total, mesh, P("x")).lower(x).compile().as_text()
    (moved,) = hlo.traffic(text, 8).collectives
    assert moved == hlo.Moved("all-reduce", 8, 5, 5 * 4 * 16 * 4)
    assert moved.sent == 2 * 7 / 8 * moved.bytes


def test_an_all_gather_counts_what_is_gathered(mesh):
    x = jax.ShapeDtypeStruct((64, 16), jnp.bfloat16)
    text = compiled(lambda x: x, mesh, P("x")).lower(x).compile().as_text()
    (moved,) = hlo.traffic(text, 8).collectives
    assert (moved.kind, moved.group, moved.times) == ("all-gather", 8, 1)
    item = moved.bytes / (64 * 16)
    assert item in (2, 4)  # the CPU's compiler may widen bfloat16
    assert moved.sent == 7 / 8 * moved.bytes


TEXT = """HloModule m, is_scheduled=true

%slice_of (p0: f32[10,1000], p1: s32[]) -> f32[1,1000] {
  %p0 = f32[10,1000]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %ds = f32[1,1000]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,1000}
}

%body (arg: (s32[], f32[10,1000])) -> (s32[], f32[10,1000]) {
  %arg = (s32[], f32[10,1000]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %w = f32[10,1000]{1,0} get-tuple-element(%arg), index=1
  %f = f32[1,1000]{1,0} fusion(%w, %i), kind=kLoop, calls=%slice_of
  %r = f32[1,1000]{1,0} all-reduce(%f), replica_groups=[4,2]<=[8], to_apply=%sum
  ROOT %t = (s32[], f32[10,1000]{1,0}) tuple(%i, %w)
}

%cond (arg.1: (s32[], f32[10,1000])) -> pred[] {
  %arg.1 = (s32[], f32[10,1000]{1,0}) parameter(0)
  %n = s32[] constant(10)
  %j = s32[] get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[] compare(%j, %n), direction=LT
}

ENTRY %main (a: (s32[], f32[10,1000]), b: f32[100]) -> (s32[], f32[10,1000]) {
  %a = (s32[], f32[10,1000]{1,0}) parameter(0)
  %b = f32[100]{0:T(128)S(1)} parameter(1)
  %c = f32[100]{0:T(128)S(1)} negate(%b)
  ROOT %while = (s32[], f32[10,1000]{1,0}) while(%a), condition=%cond, body=%body
}
"""


def test_a_loop_counts_as_often_as_its_condition_says():
    found = hlo.traffic(TEXT, 8)
    assert found.collectives == [hlo.Moved("all-reduce", 2, 10, 10 * 4000)]
    # Each round: a row of w and the counter read, a row written; the reduction reads and writes it.
    assert found.memory == 10 * (4000 + 4 + 4000 + 8000)


def test_a_loop_of_unknown_length_is_an_error():
    with pytest.raises(ValueError, match="how often does the loop while run"):
        hlo.traffic(TEXT.replace("constant(10)", "parameter(1)"), 8)


def test_real_programs_are_read_whole(mesh):
    """Every operation of a compiled step has bytes, none of them negative or absurd."""
    x = jax.ShapeDtypeStruct((8, 32, 64), jnp.float32)
    w = jax.ShapeDtypeStruct((4, 64, 64), jnp.float32)

    def loss(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    text = compiled(jax.grad(loss), mesh, P(), P("x")).lower(w, x).compile().as_text()
    found = hlo.traffic(text, 8)
    least = 4 * (np.prod(w.shape) + np.prod(x.shape) / 8)
    assert least < found.memory < 50 * least
    assert {m.kind for m in found.collectives} == {"all-reduce"}


BARE = """HloModule m

ENTRY %main (a: f32[10,1000], u: f32[1,1000], i: s32[]) -> f32[10,1000] {
  %a = f32[10,1000]{1,0} parameter(0)
  %u = f32[1,1000]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %ds = f32[1,1000]{1,0} dynamic-slice(%a, %i, %i), dynamic_slice_sizes={1,1000}
  %cs = (f32[1,1000]{1,0:S(1)}, f32[1,1000]{1,0}, u32[]) copy-start(%u)
  %cd = f32[1,1000]{1,0:S(1)} copy-done(%cs)
  ROOT %dus = f32[10,1000]{1,0} dynamic-update-slice(%a, %u, %i, %i)
}
"""


def test_a_slice_outside_of_a_fusion_is_a_slice_too():
    # A row read and written twice, and one read into on-chip memory.
    assert hlo.traffic(BARE, 1).memory == 2 * 4000 + 2 * 4000 + 4000


def test_a_fusion_is_looked_into_through_bitcasts():
    text = TEXT.replace(
        "  ROOT %ds = f32[1,1000]{1,0} dynamic-slice(%p0,",
        "  %b = f32[10,1000]{1,0} bitcast(%p0)\n  ROOT %ds = f32[1,1000]{1,0} dynamic-slice(%b,",
    )
    assert hlo.traffic(text, 8) == hlo.traffic(TEXT, 8)
