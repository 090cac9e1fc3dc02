"""What is read from a program's text: loops, asynchronous transfers, TPU spellings."""

from __future__ import annotations

import pytest

from unclip_jax.training.planning.compiled import read_program

TEXT = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (input: bf16[32,512]) -> bf16[8,512] {
  %input = bf16[32,512]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = bf16[32,512]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=9, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice.1 = bf16[8,512]{1,0} slice(%all-reduce.1), slice={[0:8], [0:512]}
}

%products (p: bf16[2,8,8,3], k: bf16[3,3,3,5]) -> bf16[2,8,8,5] {
  %p = bf16[2,8,8,3]{3,0,2,1:T(8,128)(2,1)} parameter(0)
  %k = bf16[3,3,3,5]{3,2,1,0} parameter(1)
  ROOT %conv = bf16[2,8,8,5]{3,2,1,0} convolution(%p, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
}

%body (s: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %s = (s32[], f32[4,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %m = f32[4,4]{1,0} get-tuple-element(%s), index=1
  %dot.1 = f32[4,4]{1,0} dot(%m, %m), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %gather.1 = f32[16,4]{1,0} all-gather(%dot.1), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %next = (s32[], f32[4,4]{1,0}) tuple(%i, %dot.1)
}

%condition (s.1: (s32[], f32[4,4])) -> pred[] {
  %s.1 = (s32[], f32[4,4]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (x: bf16[2,8,8,3], w: bf16[3,3,3,5], g: bf16[32,512], c: (s32[], f32[4,4])) -> bf16[2,8,8,5] {
  %x = bf16[2,8,8,3]{3,0,2,1:T(8,128)(2,1)} parameter(0)
  %w = bf16[3,3,3,5]{3,2,1,0} parameter(1)
  %g = bf16[32,512]{1,0} parameter(2)
  %c = (s32[], f32[4,4]{1,0}) parameter(3)
  %loop = (s32[], f32[4,4]{1,0}) while(%c), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %start = (bf16[4,6]{1,0}, bf16[4,6]{1,0}, u32[]{:S(2)}) collective-permute-start(%w), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %again = (bf16[4,6]{1,0}, bf16[4,6]{1,0}, u32[]{:S(2)}) collective-permute-start(%w), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %both = f32[10]{0} all-reduce(%w), channel_id=4, replica_groups=mesh['data'=2,'fsdp'=4] {'data','fsdp'}, to_apply=%add
  %scattered = bf16[8,512]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %out = bf16[2,8,8,5]{3,2,1,0} fusion(%x, %w), kind=kOutput, calls=%products
}
"""  # noqa: E501


def test_products_in_loops_and_fusions() -> None:
    convolution = 2 * (2 * 8 * 8 * 5) * (9 * 3)
    assert read_program(TEXT, 8).flops == convolution + 6 * (2 * 4 * 4 * 4)


def test_transfers_by_kind() -> None:
    found = {row.kind: row for row in read_program(TEXT, 8).collectives}
    assert set(found) == {"all-gather", "all-reduce", "reduce-scatter", "collective-permute"}
    gather = found["all-gather"]
    assert (gather.count, gather.group, gather.dtype) == (6, 4, "f32")
    assert gather.received == pytest.approx(6 * 16 * 4 * 4 * 3 / 4)
    assert found["all-reduce"].group == 8
    assert found["all-reduce"].received == pytest.approx(2 * 10 * 4 * 7 / 8)
    scatter = found["reduce-scatter"]  # an all-reduce in a computation of that name
    assert (scatter.count, scatter.group) == (1, 4)
    assert scatter.received == pytest.approx(32 * 512 * 2 * 3 / 4)
    permute = found["collective-permute"]  # one channel stands twice
    assert (permute.count, permute.received) == (1, 4 * 6 * 2)


def test_a_loop_that_does_not_say_how_often_it_runs() -> None:
    """As a TPU program has it: the condition compares the counter with a constant."""
    text = TEXT.replace(', backend_config={"known_trip_count":{"n":"6"}}', "")
    bound = "%bound = s32[]{:T(128)} constant(6)\n  ROOT %less = pred[] compare(%j, %bound)"
    text = text.replace("ROOT %less = pred[] constant(true)", bound)
    found, said = read_program(text, 8), read_program(TEXT, 8)
    assert (found.flops, found.collectives) == (said.flops, said.collectives)


def test_bytes_are_counted_at_the_borders_of_operations() -> None:
    """The inside of a fusion stays in the chip's own memory; a loop's body counts every time."""
    x, w, out = 2 * 8 * 8 * 3 * 2, 3 * 3 * 3 * 5 * 2, 2 * 8 * 8 * 5 * 2
    body = 3 * 16 * 4 + (16 * 4 + 16 * 4 * 4)
    permutes = 2 * (w + 2 * 4 * 6 * 2 + 4)
    reduce = w + 10 * 4
    scattered = 32 * 512 * 2 + 8 * 512 * 2
    expected = 6 * body + permutes + reduce + scattered + x + w + out
    assert read_program(TEXT, 8).bytes_moved == pytest.approx(expected)


def between_slices(name: str, kind: str, slices: str, shape: str) -> str:
    """A transfer by the hosts, as a program for several slices spells it."""
    return (
        f"  %{name} = (f32[{shape}]{{1,0}}, u32[]{{:S(2)}}, token[]) recv(%after.{name}), "
        "channel_id=7, is_host_transfer=true, frontend_attributes={"
        f'_xla_megascale_target="{{{slices}}}x{{0:7}}",_xla_megascale_transfer_type="{kind}"}}\n'
    )


def test_transfers_between_slices_are_told_apart() -> None:
    """By what a device gets: its part of a sum, all slices' parts, or one part of a sum."""
    added = (
        between_slices("recv.1", "ALL_REDUCE", "1,2,3,4", "4,8")
        + between_slices("recv.2", "ALL_GATHER", "1,2", "6,8")
        + between_slices("recv.3", "REDUCE_SCATTER", "1:3", "2,8")
    )
    rows = read_program(TEXT.replace("  %both =", f"{added}  %both ="), 8).collectives
    assert [row for row in rows if not row.is_across] == read_program(TEXT, 8).collectives
    found = {row.kind: (row.group, row.count, row.received) for row in rows if row.is_across}
    assert found == {
        "all-reduce": (4, 1, 2 * 3 / 4 * 4 * 8 * 4),
        "all-gather": (2, 1, 1 / 2 * 6 * 8 * 4),
        "reduce-scatter": (3, 1, 2 * 2 * 8 * 4),
    }


def test_two_transfers_of_one_channel_and_other_arrays_are_two() -> None:
    """Programs for several slices give their channels' numbers again."""
    other = "  %both2 = f32[10]{0} all-reduce(%g), channel_id=4, replica_groups={{0,1,2,3,4,5,6,7}}"
    rows = read_program(TEXT.replace("  %both =", f"{other}, to_apply=%add\n  %both ="), 8)
    (row,) = (row for row in rows.collectives if row.kind == "all-reduce")
    assert row.count == 2
