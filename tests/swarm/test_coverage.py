"""What announcements cover: as much work as there are announcements, whatever they claim."""

from __future__ import annotations

import msgspec

from shoal.swarm.announcement import Announcement, Served
from shoal.swarm.coverage import in_one_format, most_relevant, runs
from shoal.types import Span, covered

DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
SERVED = Served("tiny", DIGEST, 30, 576, 2048, 49152, 0, 10, "fp32", 4096, 4096, 0, 2.5)


def served(start: int, end: int, **changes) -> Served:
    return msgspec.structs.replace(SERVED, start=start, end=end, **changes)


def said(peer: str, what: Served) -> Announcement:
    return Announcement(peer, 1, 0.0, 30.0, (), (), what)


def test_neighbouring_blocks_with_as_many_peers_are_one_run() -> None:
    assert runs([Span(0, 10), Span(5, 12), Span(5, 12)], 30) == [
        (Span(0, 5), 1),
        (Span(5, 10), 3),
        (Span(10, 12), 2),
        (Span(12, 30), 0),
    ]
    assert runs([], 3) == [(Span(0, 3), 0)]
    assert runs([Span(0, 2), Span(2, 3)], 3) == [(Span(0, 3), 1)]


def test_a_span_beyond_the_model_counts_for_what_is_inside() -> None:
    assert runs([Span(0, 16384)], 3) == [(Span(0, 3), 1)]
    assert runs([Span(100, 200)], 3) == [(Span(0, 3), 0)]


def test_runs_are_as_many_as_there_are_ends_of_spans() -> None:
    assert len(runs([Span(0, 16384)] * 5000, 16384)) == 1


def test_blocks_that_several_have_are_covered_once() -> None:
    assert covered([Span(0, 10), Span(5, 12), Span(20, 30)]) == 22
    assert covered([]) == 0


def test_a_model_is_shown_in_the_format_in_which_a_client_would_take_it() -> None:
    many = [served(0, 1, format="int8")] * 9
    assert in_one_format([*many, served(0, 30, format="bf16")])[0] == "bf16"  # it alone covers the model
    assert in_one_format([*many, served(0, 10, format="bf16")])[0] == "int8"
    assert in_one_format([served(0, 10, format="bf16"), served(0, 10)])[0] == "fp32"


def test_what_is_served_in_a_format_of_a_later_release_covers_nothing_here() -> None:
    later = served(0, 30, format="w3a9")
    alive = [
        said("a", later),
        said("b", served(0, 10)),
        said("c", served(0, 30, format="w3a9", digest=OTHER)),
    ]
    ((shape, known),) = most_relevant(alive, lambda _: None, 5)
    assert (shape.digest, known) == (DIGEST, [served(0, 10)])
    assert in_one_format(known) == ("fp32", [Span(0, 10)])


def test_models_that_are_here_come_first_and_then_those_that_most_serve() -> None:
    other, crowd = OTHER, "sha256:" + "c" * 64
    alive = [said("a", served(0, 10)), said("b", served(0, 10, digest=other))]
    alive += [said(f"c{number}", served(0, 10, digest=crowd)) for number in range(9)]
    known = {other: alive[1].served.shape}
    found = most_relevant(alive, known.get, 2)
    assert [shape.digest for shape, _ in found] == [other, crowd]


def test_of_a_model_that_is_not_here_the_shape_is_what_most_say() -> None:
    alive = [said("liar", served(0, 10, n_blocks=16384))]
    alive += [said(f"honest{number}", served(0, 30)) for number in range(2)]
    ((shape, serving),) = most_relevant(alive, lambda _: None, 1)
    assert shape.n_blocks == 30
    assert len(serving) == 2
