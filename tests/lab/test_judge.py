"""The lab can fail: what is wrong is noticed, and what is right is not."""

from __future__ import annotations

import pytest

from shoal.errors import ChannelClosed, NoCoverage
from shoal.swarm.announcement import Announcement
from shoal.testing.lab.asking import longest_gap
from shoal.testing.lab.judge import Fault, ghosts, held, judge, leaks
from shoal.testing.lab.plan import Event, Run
from shoal.testing.lab.report import LabReport, results
from shoal.testing.lab.runs import AppliedEvent, RunRecord
from shoal.types import PeerId, Span

from .conftest import asked

REFERENCE = [[1, 2, 3, 4]]
TIMES = (1.0, 1.1, 1.2, 1.3)
KILL = Event(do="kill", hop=0, token=2)
GONE = Run(events=[Event(do="kill", block=3, token=1)], expect="no_coverage", within_s=10)


def faults(run: Run, *answers, missed=(), gap_s: float | None = 6.0) -> list[tuple[str, str]]:
    played = RunRecord(
        run, 0.0, list(answers), [AppliedEvent(e, 1.15, ("a",)) for e in run.events], list(missed)
    )
    return [(fault.what, fault.message) for fault in judge(0, played, REFERENCE, gap_s)]


def test_the_same_tokens_in_time_are_right() -> None:
    assert faults(Run(events=[KILL]), asked([1, 2, 3, 4], TIMES, hits=[1.15])) == []


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([1, 2, 9, 4], "from token 2 on it is [9, 4] and not [3, 4]"),
        ([1, 2, 3], "from token 3 on it is nothing and not [4]"),
        ([1, 2, 3, 4, 5], "from token 4 on it is [5] and not the end"),
        ([], "from token 0 on it is nothing"),
    ],
)
def test_a_wrong_token_one_too_few_and_one_too_many_are_noticed(tokens: list[int], said: str) -> None:
    ((what, message),) = faults(Run(), asked(tokens, [1.0] * len(tokens)))
    assert what == "tokens"
    assert said in message


def test_a_gap_that_is_too_long_is_noticed() -> None:
    late = asked([1, 2, 3, 4], [1.0, 2.0, 9.0, 9.1], hits=[2.0])
    assert [what for what, _ in faults(Run(), late)] == ["gap"]
    assert faults(Run(gap_s=8.0), late) == []
    assert faults(Run(), late, gap_s=None) == []


def test_a_gap_in_the_prefill_begins_with_the_hit() -> None:
    assert longest_gap([1.5, 1.6], [4.0, 4.1]) == pytest.approx(2.5)
    assert longest_gap([], [4.0, 4.1]) == pytest.approx(0.1)
    assert longest_gap([1.0], []) == 0.0


def test_an_error_where_an_answer_was_to_come_is_noticed_with_the_missing_tokens() -> None:
    found = faults(Run(events=[KILL]), asked([1, 2], TIMES[:2], error=ChannelClosed("gone"), hits=[1.15]))
    assert [what for what, _ in found] == ["tokens", "error"]
    assert "channel_closed: gone" in found[1][1]


def test_an_error_that_is_none_of_ours_is_noticed() -> None:
    found = faults(Run(), asked([1, 2, 3, 4], TIMES, error=KeyError("x")))
    assert [what for what, _ in found] == ["untyped"]
    assert [what for what, _ in faults(GONE, asked([1], [1.0], error=KeyError("x")))] == ["untyped"]


def no_coverage(message: str = "blocks 2:4 of 6 are served by nobody") -> NoCoverage:
    return NoCoverage(message, missing=[Span(2, 4)])


def test_an_expected_error_that_names_the_blocks_in_time_is_right() -> None:
    assert faults(GONE, asked([1, 2], TIMES[:2], error=no_coverage(), ended=9.0, hits=[1.15])) == []


def test_an_expected_error_that_does_not_come_is_noticed() -> None:
    assert faults(GONE, asked([1, 2, 3, 4], TIMES)) == [
        ("error", "no_coverage was to come, and an answer came")
    ]


def test_another_error_a_late_one_and_one_without_the_blocks_are_noticed() -> None:
    other = faults(GONE, asked([1], [1.0], error=ChannelClosed("gone"), ended=2.0, hits=[1.15]))
    late = faults(GONE, asked([1], [1.0], error=no_coverage(), ended=12.0, hits=[1.15]))
    unnamed = faults(GONE, asked([1], [1.0], error=no_coverage("some blocks"), ended=2.0, hits=[1.15]))
    wrong = Run(events=[Event(do="kill", block=5, token=1)], expect="no_coverage")
    elsewhere = faults(wrong, asked([1], [1.0], error=no_coverage(), ended=2.0, hits=[1.15]))
    for found in (other, late, unnamed, elsewhere):
        assert [what for what, _ in found] == ["error"]


def test_wrong_tokens_before_an_expected_error_are_noticed() -> None:
    found = faults(GONE, asked([1, 7], TIMES[:2], error=no_coverage(), ended=2.0, hits=[1.15]))
    assert [what for what, _ in found] == ["tokens"]


def test_an_event_that_did_not_come_is_noticed() -> None:
    ((what, message),) = faults(Run(events=[KILL]), asked([1, 2, 3, 4], TIMES), missed=[KILL])
    assert what == "missed"
    assert "kill hop 0 at token 2" in message
    guarded = Run(events=[KILL], guarded=True)
    assert faults(guarded, asked([1, 2, 3, 4], TIMES), missed=[KILL]) == []


def announced(peer: str) -> Announcement:
    return Announcement(peer, 1, 0.0, 30.0, (), (), None)


def figures(sessions: int, used: int, waiting: int) -> str:
    return (
        f"# TYPE shoal_sessions gauge\nshoal_sessions {sessions}\n"
        f"# TYPE shoal_queue_steps gauge\nshoal_queue_steps {waiting}\n"
        f'# TYPE shoal_kv_tokens gauge\nshoal_kv_tokens{{state="free"}} 7\n'
        f'shoal_kv_tokens{{state="used"}} {used}\n'
    )


def test_a_node_that_does_not_let_go_of_kv_a_session_or_a_step_is_noticed() -> None:
    assert held(figures(0, 0, 0)) == ""
    assert held(figures(1, 0, 0)) == "1 sessions"
    assert held(figures(0, 64, 2)) == "2 steps and 64 tokens of KV"
    assert "nan sessions" in held("")


def test_a_dead_peer_that_stays_listed_is_a_ghost_after_an_expiry() -> None:
    listed = [announced("dead"), announced("alive")]
    assert ghosts(listed, {PeerId("dead"): 100.0}, 120.0, 30.0) == set()
    assert ghosts(listed, {PeerId("dead"): 100.0}, 140.0, 30.0) == {"dead"}


def test_descriptors_that_pile_up_are_noticed() -> None:
    assert leaks({"a": 20, "b": 20, "gone": 20}, {"a": 30, "b": 90, "new": 500}) == [
        "b has 90 descriptors open, and had 20"
    ]


def report(played: RunRecord, *faults: Fault) -> dict[str, object]:
    return LabReport("kill", "m", "fp32", 0, 6, 0, tuple(results(0, played, REFERENCE)), faults, 1.0).fields()


def test_a_report_counts_what_it_promises_to() -> None:
    good = asked([1, 2, 3, 4], [1.0, 1.1, 3.1, 3.2], hits=[1.15])
    bad = asked([1, 9], [1.0, 1.1], error=ChannelClosed("gone"), ended=2.0, hits=[1.15])
    fields = report(RunRecord(Run(), 0.0, [good, bad]), Fault(0, "tokens", "…"))
    assert (fields["runs"], fields["same_tokens"], fields["ok"]) == (2, 1, False)
    assert fields["gap_s_median"] == fields["gap_s_max"] == pytest.approx(2.0)
    assert fields["errors"] == [{"run": 0, "what": "tokens", "message": "…"}]


def test_where_nothing_was_left_to_go_on_with_the_gap_does_not_count() -> None:
    waited = asked([1, 2, 3, 4], [1.0, 1.1, 21.0, 21.1], hits=[1.15])
    fields = report(RunRecord(Run(gap_s=60.0), 0.0, [waited]))
    assert (fields["gap_s_max"], fields["ok"]) == (None, True)
