"""Reading programs: texts written by hand for what each compiler writes, and real ones."""

import jax
import jax.numpy as jnp
import pytest

from revision_jax.planning import hlo, work
from revision_jax.planning.hlo import Shape

# A loop of eight windows, two in each turn, as the TPU compiler writes it; a fusion that reads one slice of a stack; a tuple; memory on the chip.
TEXT = """HloModule jit_step, is_scheduled=true

%fused (param_0.1: bf16[32,64,8], param_1.1: s32[]) -> bf16[1,64,8] {
  %param_0.1 = bf16[32,64,8]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1.1 = s32[]{:T(128)} parameter(1)
  ROOT %dynamic-slice.3 = bf16[1,64,8]{2,1,0} dynamic-slice(%param_0.1, %param_1.1), dynamic_slice_sizes={1,64,8}
}

%body (arg: (s32[], f32[4,8], bf16[32,64,8])) -> (s32[], f32[4,8], bf16[32,64,8]) {
  %arg = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)S(1)}, /*index=2*/bf16[32,64,8]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %x = f32[4,8]{1,0:T(8,128)S(1)} get-tuple-element(%arg), index=1
  %stack = bf16[32,64,8]{2,1,0} get-tuple-element(%arg), index=2
  %two = s32[] constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %w = bf16[1,64,8]{2,1,0} fusion(%stack, %i), kind=kLoop, calls=%fused
  ROOT %out = (s32[], f32[4,8]{1,0:T(8,128)S(1)}, bf16[32,64,8]{2,1,0}) tuple(%next, %x, %stack)
}

%condition (arg.1: (s32[], f32[4,8], bf16[32,64,8])) -> pred[] {
  %arg.1 = (s32[], f32[4,8]{1,0}, bf16[32,64,8]{2,1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %eight = s32[]{:T(128)} constant(8)
  ROOT %lt = pred[]{:T(512)} compare(%j, %eight), direction=LT
}

ENTRY %main.1 (p.1: (s32[], f32[4,8], bf16[32,64,8])) -> (s32[], f32[4,8], bf16[32,64,8]) {
  %p.1 = (s32[], f32[4,8]{1,0}, bf16[32,64,8]{2,1,0}) parameter(0)
  ROOT %while.9 = (s32[], f32[4,8]{1,0}, bf16[32,64,8]{2,1,0}) while(%p.1), condition=%condition, body=%body, metadata={op_name="while (a) {b}"}
}
"""


def test_instructions_shapes_and_calls():
    module = hlo.parse(TEXT)
    assert module.entry == "main.1" and set(module.computations) == {"fused", "body", "condition", "main.1"}
    body = module.computations["body"]
    assert body.root.name == "out" and body.root.operands == ("next", "x", "stack")
    assert body.instructions["arg"].shapes == (Shape("s32", ()), Shape("f32", (4, 8), fast=True), Shape("bf16", (32, 64, 8)))
    assert body.instructions["w"].called == ("fused",) and module.computations["main.1"].root.called == ("condition", "body")


def test_sizes_of_types():
    assert [Shape(name, (10,)).bytes for name in ("pred", "bf16", "f32", "s64", "f8e4m3fn", "s4", "u32", "token")] == [10, 20, 40, 80, 10, 5, 40, 0]


def test_a_loop_runs_as_often_as_its_bound_by_its_stride():
    module = hlo.parse(TEXT)
    assert module.trips(module.computations["main.1"].root) == 4
    assert module.times() == {"main.1": 1, "body": 4, "fused": 4}
    assert module.times(inside_fusions=False) == {"main.1": 1, "body": 4}
    known = TEXT.replace('metadata={op_name="while (a) {b}"}', 'backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0"}}')
    assert hlo.parse(known).times()["body"] == 3


def test_what_a_condition_reduces_with_bounds_no_loop():
    """A loop that ends early where no chip has more to do: its condition adds up flags, four to a word, which takes shifts by 8, 16 and 24."""
    words = "%words (a: u32[], b: u32[]) -> u32[] {\n  %a = u32[] parameter(0)\n  %b = u32[] parameter(1)\n  %by = u32[] constant(24)\n"
    words += "  ROOT %shifted = u32[] shift-right-logical(%b, %by)\n}\n\n"
    early = TEXT.replace("%condition (arg.1", words + "%condition (arg.1").replace(
        "  ROOT %lt = pred[]{:T(512)} compare(%j, %eight), direction=LT\n",
        "  %lt = pred[]{:T(512)} compare(%j, %eight), direction=LT\n  %flags = u32[] constant(1)\n"
        "  %all = u32[] all-reduce(%flags), replica_groups={}, to_apply=%words\n  %more = pred[] bitcast(%all)\n  ROOT %both = pred[] and(%lt, %more)\n",
    )
    module = hlo.parse(early)
    assert module.computations["condition"].root.name == "both" and module.trips(module.computations["main.1"].root) == 4


def test_of_a_sliced_stack_the_slice_moves_and_what_is_on_the_chip_does_not():
    # in each of 4 turns: a counter of 4 bytes and a constant are added up to 4 bytes, the fusion reads one slice and its number and writes the slice
    assert work.hbm_bytes(hlo.parse(TEXT)) == 4 * ((4 + 4 + 4) + (2 * 64 * 8 + 4 + 2 * 64 * 8))


def test_text_without_a_program_raises():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule nothing\n")


def test_a_real_scan_counts_each_turn():
    def layers(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    shapes = jax.ShapeDtypeStruct((16, 32), "float32"), jax.ShapeDtypeStruct((6, 32, 32), "float32")
    compiled = jax.jit(layers).lower(*shapes).compile()
    assert work.flops(hlo.parse(compiled.as_text())) == 6 * 2 * 16 * 32 * 32
