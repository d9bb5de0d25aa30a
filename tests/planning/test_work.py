"""FLOPs of products against the compiler's own count, and by hand for what CPUs do not write."""

import pytest

from revision_jax.planning import hlo, work

CASES = {
    # rows 394, contraction 2 x 256 as a window of two: 2 * 64 * 394 * 2752 * 512
    "window of the contraction": (
        "bf16[64,394,2,256]", "bf16[2,256,2752,1]", "bf16[64,394,2752,1]", "window={size=2x1}, dim_labels=1b0f_0io1->1bf0", 2 * 64 * 394 * 2752 * 512,
    ),
    # a product for each of 4 x 3 pairs, written as a convolution over them that is dilated so far that each place meets one element
    "batch axes as space": (
        "f32[4,16,3,8]", "f32[4,20,3,8]", "f32[4,3,16,20]", "window={size=4x3 stride=3x2 lhs_dilate=4x3}, dim_labels=0b1f_0o1i->01bf", 2 * 12 * 16 * 20 * 8,
    ),
    "plain": ("f32[10,16]", "f32[16,20]", "f32[10,20]", "dim_labels=bf_io->bf", 2 * 10 * 16 * 20),
    # a 3 x 3 kernel over 5 x 5 with a rim of padding: corners meet 4, edges 6, the rest 9
    "padding": (
        "f32[1,5,5,2]", "f32[3,3,2,7]", "f32[1,5,5,7]", "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f", 2 * 2 * 7 * (4 * 4 + 12 * 6 + 9 * 9),
    ),
    "strides": ("f32[1,8,8,3]", "f32[2,2,3,5]", "f32[1,4,4,5]", "window={size=2x2 stride=2x2}, dim_labels=b01f_01io->b01f", 2 * 16 * 4 * 3 * 5),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_convolutions_as_tpus_write_products(name):
    left, right, out, attributes, wanted = CASES[name]
    text = f"HloModule m\n\nENTRY %main (a: {left}, b: {right}) -> {out} {{\n  %a = {left} parameter(0)\n  %b = {right} parameter(1)\n"
    text += f"  ROOT %c = {out} convolution(%a, %b), {attributes}\n}}\n"
    assert work.flops(hlo.parse(text)) == wanted


def test_a_dot_multiplies_what_it_sums_over():
    text = """HloModule m

ENTRY %main (a: f32[3,10,16], b: f32[3,16,20]) -> f32[3,10,20] {
  %a = f32[3,10,16]{2,1,0} parameter(0)
  %b = f32[3,16,20]{2,1,0} parameter(1)
  ROOT %d = f32[3,10,20]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}
}
"""
    assert work.flops(hlo.parse(text)) == 2 * 3 * 10 * 16 * 20
    assert work.hbm_bytes(hlo.parse(text)) == 4 * (3 * 10 * 16 + 3 * 16 * 20 + 3 * 10 * 20)


def test_an_update_in_place_moves_the_update_alone():
    text = """HloModule m

%fused (p0: f32[100,8], p1: f32[1,8], p2: s32[]) -> f32[100,8] {
  %p0 = f32[100,8]{1,0} parameter(0)
  %p1 = f32[1,8]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %z = s32[] constant(0)
  ROOT %u = f32[100,8]{1,0} dynamic-update-slice(%p0, %p1, %p2, %z)
}

ENTRY %main (a: f32[100,8], b: f32[1,8], i: s32[]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %b = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %f = f32[100,8]{1,0} fusion(%a, %b, %i), kind=kLoop, calls=%fused
}
"""
    assert work.hbm_bytes(hlo.parse(text)) == 32 + 4 + 32
