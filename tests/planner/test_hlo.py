"""Collectives, read from the text of compiled programs."""

import dataclasses

import pytest

from reft_jax.planner import hlo

# Lines as three backends write them: async pairs, a loop whose trips are noted,
# one whose condition tells them, one that may stop early, a TPU's
# reduce-scatter, groups in four notations.
HLO = """\
HloModule jit_f, is_scheduled=true, num_partitions=8, entry_computation_layout=x

%noted_body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], /*index=1*/f32[4,8]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %s = (f32[4,8]{1,0}, bf16[32,8]{1,0}) all-gather-start(%x), channel_id=1, \
replica_groups=mesh['data'=1,'fsdp'=8,'tensor'=1] {'fsdp'}, dimensions={0}
  %d = bf16[32,8]{1,0} all-gather-done(%s), metadata={op_name="a(b)/while"}
}

%told_body (q: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %q = (s32[], f32[4,8]) parameter(0)
  %y = f32[4,8]{1,0} get-tuple-element(%q), index=1
  %f = f32[1,8]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.2
}

%all-reduce-scatter.2 (i: f32[4,8]) -> f32[1,8] {
  %i = f32[4,8]{1,0} parameter(0)
  %r = f32[4,8]{1,0} all-reduce(%i), replica_groups=[2,4]<=[4,2]T(1,0), \
to_apply=%add
  ROOT %z = f32[1,8]{1,0} dynamic-slice(%r), dynamic_slice_sizes={1,8}
}

%told_condition (q: (s32[], f32[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %q = (s32[], f32[4,8]) parameter(0)
  %n = s32[] get-tuple-element(%q), index=0
  ROOT %lt = pred[] compare(%n, %limit), direction=LT
}

%open_condition (o: (s32[], pred[16])) -> pred[] {
  %o = (s32[], pred[16]) parameter(0)
  %e = pred[16]{0} get-tuple-element(%o), index=1
  %u = u8[16]{0} convert(%e)
  %w = u8[16]{0} all-reduce(%u), replica_groups={}, to_apply=%add
  ROOT %and = pred[] fusion(%w), kind=kLoop, calls=%fused
}

ENTRY %main.1 (x: f32[4,8], m: pred[16]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0), sharding={devices=[8,1]<=[8]}
  %m = pred[16]{0} parameter(1)
  %w1 = (s32[], f32[4,8]) while(%x), condition=%none, body=%noted_body, \
backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0"}}
  %w2 = (s32[], f32[4,8]) while(%w1), condition=%told_condition, \
body=%told_body
  %w3 = (s32[], pred[16]) while(%m), condition=%open_condition, body=%open_body
  %c = f32[4,8]{1,0} collective-permute(%x), \
source_target_pairs={{0,1},{1,0}}
  ROOT %a2a = f32[4,8]{1,0} all-to-all(%c), replica_groups={{0,4},{1,5},{2,6}}
}
"""


def test_collectives_of_a_text_by_hand():
  found = hlo.collectives(hlo.parse(HLO), open_loop=16)
  by_kind = {each.kind: each for each in found}
  everyone = tuple(range(8))
  assert {kind: dataclasses.astuple(x)[1:] for kind, x in by_kind.items()} == {
    # 4 x 8 float32 on each of 8 devices, three times.
    "all-gather": (8 * 128, everyone, 3, False),
    "reduce-scatter": (128, (0, 2, 4, 6), 5, False),
    # A condition is looked at once more than its body runs.
    "all-reduce": (16, everyone, 17, True),
    "collective-permute": (128, (0, 1), 1, False),
    "all-to-all": (128, (0, 4), 1, False),
  }
  assert len(found) == 5
  assert by_kind["collective-permute"].wire == 128
  assert by_kind["all-gather"].wire == 8 * 128 * 7 / 8
  assert by_kind["all-reduce"].wire == 2 * 16 * 7 / 8


def test_far_traffic_is_told_from_near():
  rows = hlo.by_kind(hlo.collectives(hlo.parse(HLO)), node=4)
  sent = {row.kind: (row.near, row.far) for row in rows}
  assert sent["all-to-all"] == (0, 64)  # 0 and 4 are in two nodes of four.
  assert sent["collective-permute"] == (128, 0)
  assert sent["all-gather"] == (0, 3 * 8 * 128 * 7 / 8)


@pytest.mark.parametrize(
  ("attributes", "group"),
  [
    ("replica_groups={{0,2},{1,3}}", (0, 2)),
    ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
    ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", (0, 2)),
    ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", (0, 1)),
    ("replica_groups={}", tuple(range(8))),
  ],
)
def test_groups_in_every_notation(attributes, group):
  assert hlo.groups(attributes, 8) == group


@pytest.mark.parametrize(
  ("text", "size"),
  [
    ("f32[4,8]{1,0:T(8,128)S(1)}", 128),
    ("(bf16[2], /*index=1*/pred[3], s32[])", 4 + 3 + 4),
    ("f8e4m3fn[5]", 5),
    ("s4[3]", 2),
    ("token[]", 0),
  ],
)
def test_sizes_of_types(text, size):
  assert hlo.size(text) == size
