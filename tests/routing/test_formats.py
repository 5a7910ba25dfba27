"""In which format a node holds a model: what was asked for, what the swarm has, what suits the machine."""

from __future__ import annotations

from typing import get_args

import pytest

from shoal.routing.formats import choose_format, ranked, ranked_numerics
from shoal.types import Format, Numerics, Span

STORED = ["F32", "BF16", "F16", "F64", "U8"]


@pytest.mark.parametrize("stored", STORED)
def test_a_machine_with_kernels_takes_int8_whatever_the_checkpoint_is_in(stored: str) -> None:
    assert choose_format("auto", stored, kernels=True).format == "int8"


@pytest.mark.parametrize("where", [{"kernels": True}, {"kernels": False, "accelerator": True}], ids=str)
def test_a_quantised_model_stays_as_it_was_published(where: dict[str, bool]) -> None:
    chosen = choose_format("auto", "Q4_1", published=True, **where)
    assert (chosen.format, "(Q4_1)" in chosen.why) == ("published", True)
    assert choose_format("published", "Q4_1", published=True, **where).format == "published"
    served: list[tuple[Format, Span]] = [("int8", Span(0, 6))]
    assert choose_format("auto", "Q4_1", published=True, served=served, **where).format == "int8"


def test_where_nothing_computes_with_its_integers_it_does_not() -> None:
    assert choose_format("auto", "Q4_1", kernels=False, published=True).format == "fp32"
    assert choose_format("auto", "Q4_1", kernels=True, parallel=2, published=True).format == "fp32"


def test_a_model_without_integers_is_bf16_where_it_should_be_as_published() -> None:
    chosen = choose_format("published", "F32", kernels=True)
    assert (chosen.format, "not published as integers" in chosen.why) == ("bf16", True)


@pytest.mark.parametrize(
    ("stored", "format"), [("F32", "fp32"), ("F64", "fp32"), ("BF16", "bf16"), ("F16", "bf16")]
)
def test_without_kernels_nothing_of_the_checkpoint_is_lost(stored: str, format: Format) -> None:
    chosen = choose_format("auto", stored, kernels=False)
    assert chosen.format == format
    assert "kernels are not built" in chosen.why


@pytest.mark.parametrize("stored", STORED)
def test_an_accelerator_takes_what_the_nodes_on_cpus_take(stored: str) -> None:
    chosen = choose_format("auto", stored, kernels=False, accelerator=True)
    assert (chosen.format, "nodes on CPUs" in chosen.why) == ("int8", True)


@pytest.mark.parametrize(("stored", "format"), [("F32", "fp32"), ("BF16", "bf16")])
def test_several_processes_take_what_they_can_hold(stored: str, format: Format) -> None:
    served: list[tuple[Format, Span]] = [("int8", Span(0, 30))]
    chosen = choose_format("auto", stored, kernels=True, parallel=2, served=served)
    assert chosen.format == format
    assert "several processes" in chosen.why


@pytest.mark.parametrize("kernels", [True, False])
def test_the_swarm_goes_before_the_machine(kernels: bool) -> None:
    for format in get_args(Format):
        chosen = choose_format("auto", "F32", kernels=kernels, served=[(format, Span(0, 10))])
        assert chosen.format == format
        assert "swarm" in chosen.why


def test_of_two_formats_the_one_that_covers_more_blocks_is_taken() -> None:
    served: list[tuple[Format, Span]] = [
        ("fp32", Span(0, 10)),
        ("fp32", Span(0, 10)),
        ("int4", Span(0, 10)),
        ("int4", Span(10, 11)),
    ]
    assert choose_format("auto", "F32", kernels=True, served=served).format == "int4"


def test_of_equals_the_more_exact_is_taken_as_clients_do() -> None:
    served: list[tuple[Format, Span]] = [("int8", Span(0, 30)), ("bf16", Span(0, 30))]
    assert choose_format("auto", "F32", kernels=True, served=served).format == "bf16"


def test_what_was_asked_for_is_taken_in_any_swarm() -> None:
    served: list[tuple[Format, Span]] = [("int8", Span(0, 30))]
    assert choose_format("fp32", "BF16", kernels=True, served=served).format == "fp32"


def test_a_node_that_hears_only_of_the_last_blocks_follows_their_format() -> None:
    served = [("int4", Span(3, 6))]
    assert choose_format("auto", "F32", kernels=True, served=served).format == "int4"


def test_formats_are_tried_by_what_has_answered_then_by_what_covers_then_by_peers_then_by_exactness() -> None:
    whole, part = Span(0, 6), Span(0, 3)
    assert (
        ranked([("fp32", whole, False), ("int8", part, True), ("int8", Span(3, 6), True)], whole)[0] == "int8"
    )
    assert ranked([("bf16", part, False), ("bf16", part, False), ("int8", whole, False)], whole)[0] == "int8"
    assert (
        ranked([("fp32", whole, False), ("int8", whole, False), ("int8", whole, False)], whole)[0] == "int8"
    )
    assert ranked([("int8", whole, False), ("bf16", whole, False)], whole) == ["bf16", "int8"]
    assert ranked([], whole) == []


def test_only_the_blocks_that_a_route_is_to_have_must_be_covered() -> None:
    offered: list[tuple[Format, Span, bool]] = [("int8", Span(2, 4), True), *[("bf16", Span(0, 3), True)] * 2]
    assert ranked(offered, Span(2, 4))[0] == "int8"
    assert ranked(offered, Span(0, 6))[0] == "bf16"


ROWS, TORCH = Numerics("int8", "auto", "rows"), Numerics("int8", "auto", "torch")
OTHER_KV, FP32 = Numerics("int8", "int8", "rows"), Numerics("fp32", "auto", "modules")
WHOLE, HALF = Span(0, 6), Span(0, 3)


def test_numerics_that_cover_come_first_and_a_mix_of_them_last() -> None:
    served = [(ROWS, HALF, False), (ROWS, HALF, False), (TORCH, WHOLE, False), (FP32, HALF, False)]
    assert ranked_numerics(served, WHOLE) == [TORCH, ROWS, ROWS.loose, FP32]
    assert ranked_numerics(served, WHOLE, "fp32") == [FP32]


def test_other_kinds_of_kv_are_in_no_mix() -> None:
    assert ranked_numerics([(ROWS, HALF, True), (OTHER_KV, WHOLE, False)], WHOLE) == [OTHER_KV, ROWS]


def test_of_two_that_cover_alike_the_kv_as_computed_comes_first_whoever_is_heard_of_first() -> None:
    one, other = (ROWS, HALF, False), (OTHER_KV, Span(3, 6), False)
    assert ranked_numerics([one, other], WHOLE) == ranked_numerics([other, one], WHOLE) == [ROWS, OTHER_KV]


def test_of_two_that_cover_alike_bits_that_can_be_checked_come_first() -> None:
    assert ranked_numerics([(TORCH, WHOLE, False), (ROWS, WHOLE, False)], WHOLE)[0] == ROWS
