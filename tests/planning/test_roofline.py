"""The roofline's formulas, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from shoal.planning.roofline import (
    Machine,
    PartCost,
    SpanCost,
    hop_time,
    of_roofline,
    prefill_time,
    step_time,
)
from shoal.types import Span

MACHINE = Machine("m", 1 << 30, bandwidth=1e6, ops={"fp32": 1e7, "int8": 4e7}, link=1e5, rtt_s=0.02)
DENSE = PartCost(10_000, "bf16", outputs=100, other=50)


def one(part: PartCost) -> SpanCost:
    return SpanCost((part,), 64)


def test_a_weight_takes_what_its_format_takes() -> None:
    held = {f: PartCost(3200, f, outputs=10, other=5).bytes for f in ("fp32", "bf16", "int8", "w8a8", "int4")}
    by_row = 3_200 + 40 + 20
    assert held == {"fp32": 12_820, "bf16": 6_420, "int8": by_row, "w8a8": by_row, "int4": 1_600 + 200 + 20}


def test_a_single_row_reads_every_weight_once_and_is_bound_by_memory() -> None:
    estimate = step_time(MACHINE, one(DENSE), 1, 0)
    assert estimate.bytes == 20_000 + 200
    assert estimate.seconds == pytest.approx(0.0202)
    assert estimate.bound == "memory"


def test_many_rows_share_the_reading_and_are_bound_by_arithmetic() -> None:
    estimate = step_time(MACHINE, one(DENSE), 100, 0)
    assert estimate.ops == 2 * 100 * 10_000
    assert estimate.seconds == pytest.approx(2e6 / 1e7)
    assert estimate.bound == "compute"
    assert estimate.intensity == pytest.approx(2e6 / 20_200)


def test_the_ridge_is_where_both_take_as_long() -> None:
    # ceiling / bandwidth × bytes of a weight / 2 = 10 × 2 / 2 rows
    weights_only = one(PartCost(10_000, "bf16"))
    assert step_time(MACHINE, weights_only, 10, 0).seconds == pytest.approx(10_000 * 2 / 1e6)
    assert step_time(MACHINE, weights_only, 9, 0).bound == "memory"
    assert step_time(MACHINE, weights_only, 11, 0).bound == "compute"


def test_each_format_has_its_own_ceiling_and_float32s_stands_in() -> None:
    assert step_time(MACHINE, one(PartCost(10_000, "int8")), 1000, 0).seconds == pytest.approx(2e7 / 4e7)
    assert step_time(MACHINE, one(PartCost(10_000, "int4")), 1000, 0).seconds == pytest.approx(2e7 / 1e7)


KV = PartCost(0, "bf16", kv_elements=128, kv_vectors=4, kv="bfloat16", attention=512)


def test_every_session_reads_its_own_kv() -> None:
    estimate = step_time(MACHINE, one(KV), 3, 99)
    assert estimate.bytes == 3 * 100 * 256
    assert estimate.ops == 3 * 100 * 512


def test_a_prefill_reads_its_kv_once_and_its_rows_see_half_of_each_other() -> None:
    estimate = step_time(MACHINE, one(KV), 9, 100, sessions=1)
    assert estimate.bytes == 109 * 256
    assert estimate.ops == 512 * sum(100 + row for row in range(1, 10))


def test_int8_kv_has_a_scale_for_each_vector() -> None:
    assert PartCost(0, "bf16", kv_elements=128, kv_vectors=4, kv="int8").kv_bytes == 128 + 16


@pytest.mark.parametrize(("paged", "held"), [(False, 10), (True, 1000)])
def test_a_window_bounds_what_is_read_and_outside_of_pages_what_is_held(paged: bool, held: int) -> None:
    part = PartCost(0, "bf16", kv_elements=1, kv="bfloat16", attention=4, window=10, paged=paged)
    assert part.read(1, 1, 1000) == 2 * (10 + 1)
    assert part.attention_ops(1, 1, 1000) == 4 * 10
    assert part.kv_held(1000) == 2 * held


EXPERTS = PartCost(1000, "bf16", experts=8, active=2, expert_weights=500)


@pytest.mark.parametrize(
    ("rows", "experts"), [(1, 2), (2, 8 * (1 - 0.75**2)), (1000, 8)], ids=["one", "two", "many"]
)
def test_experts_are_read_when_a_row_takes_them_and_held_always(rows: int, experts: float) -> None:
    assert EXPERTS.read(rows, rows, 0) == pytest.approx(2000 + experts * 1000)
    assert EXPERTS.linear_ops(rows) == 2 * rows * (1000 + 2 * 500)
    assert EXPERTS.bytes == 2000 + 8 * 1000


def test_a_span_takes_as_long_as_its_blocks_and_the_head_sees_one_row_of_each_session() -> None:
    head = PartCost(5_000, "bf16")
    span = SpanCost((DENSE, DENSE), 64, head)
    decode = step_time(MACHINE, span, 1, 0).seconds
    assert decode == pytest.approx(2 * 0.0202 + 0.01)
    prefill = step_time(MACHINE, span, 1000, 0, sessions=1).seconds
    assert prefill == pytest.approx(2 * 2 * 1000 * 10_000 / 1e7 + 0.01)
    assert span.part(Span(1, 2)) == one(DENSE)


def test_the_bound_is_where_most_of_the_time_goes() -> None:
    slow_memory = SpanCost((PartCost(1_000_000, "bf16"), DENSE), 64)
    assert step_time(MACHINE, slow_memory, 11, 0).bound == "compute"
    assert step_time(MACHINE, slow_memory, 1, 0).bound == "memory"


def test_the_way_to_the_next_hop_is_half_a_round_trip_and_the_bytes() -> None:
    estimate = hop_time(MACHINE, rows=2, row_bytes=128)
    assert estimate.seconds == pytest.approx(0.01 + 256 / 1e5)
    assert estimate.bound == "network"


def test_a_prompt_in_pieces_reads_the_weights_for_each_but_the_head_once() -> None:
    span = SpanCost((PartCost(10_000, "bf16"),), 64, PartCost(5_000, "bf16"))
    assert prefill_time(MACHINE, span, 3, piece=2).bytes == 2 * 20_000 + 10_000


def test_the_part_of_the_roofline_that_was_reached() -> None:
    assert of_roofline(0.0404, step_time(MACHINE, one(DENSE), 1, 0)) == pytest.approx(0.5)
