"""The rules of audits: what is drawn, what it costs, what follows from opinions, and what is remembered."""

from __future__ import annotations

from itertools import count

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import UsageError
from shoal.net.identity import Identity
from shoal.routing.reputation import LIE_HALF_LIFE_S, Reputation
from shoal.testing.sim.audits import SimulatedClient, named_within
from shoal.trust.audit import (
    BUDGET,
    MAX_AUDIT_BYTES,
    OPINIONS,
    SHOWN_WITHIN_S,
    AuditAccount,
    AuditTarget,
    Opinion,
    auditable,
    differing_window,
    judge,
    misfit_window,
    next_target,
    settled,
    within_reach,
)
from shoal.trust.audit_record import (
    FORGET_S,
    MAX_CONVICTIONS,
    MAX_RECORD,
    AuditRecord,
    Conviction,
    read_record,
)
from shoal.trust.independence import OWN, Whereabouts, apart, closeness, together, whereabouts
from shoal.trust.rows import HASH
from shoal.types import PeerId

from .test_receipts import HONEST, LINKS, TOKENS, an_answer, changed, faults, with_hop

ALL = {0: 3, 1: 3, 2: 3}
"""Every hop, and all of its windows."""
BLOCKS = 6
ROW = 128


def account(hop: float = 0.0, window: float = 0.0, earned: float = 1e9) -> AuditAccount:
    return AuditAccount(earned=earned, hop=hop, window=window)


# ---- what is drawn ----


def test_every_hop_of_an_honest_answer_can_be_audited() -> None:
    assert auditable(HONEST, []) == ALL


def test_what_bits_do_not_show_is_not_audited() -> None:
    assert auditable(an_answer(numerics="n1/bf16/auto/batch"), []) == {}
    assert auditable(an_answer(numerics="n1/int8/auto/any"), []) == {}


def test_a_hop_whose_receipts_do_not_hold_is_not_audited_nor_is_the_next_by_its_rows() -> None:
    silent = with_hop(HONEST, 1, receipts=())
    assert auditable(silent, faults(silent)) == {0: 3}
    odd = an_answer(links=[(LINKS[0], LINKS[1]), (LINKS[1], changed(LINKS[2], 40)), (LINKS[2], LINKS[3])])
    assert auditable(odd, faults(odd)) == {0: 3}
    assert auditable(odd, []) == {0: 3, 1: 3, 2: 1}  # up to the window in which they disagree


def test_without_the_clients_own_rows_the_first_hop_is_not_audited() -> None:
    assert auditable(msgspec.structs.replace(HONEST, sent=b""), []) == {1: 3, 2: 3}


@pytest.mark.parametrize(
    ("hop", "window", "expected"),
    [(0.0, 0.0, (0, 0, 32)), (0.34, 0.99, (1, 2, TOKENS)), (0.999, 0.5, (2, 1, 64))],
)
def test_the_target_is_where_chance_said(hop: float, window: float, expected: tuple[int, int, int]) -> None:
    found = next_target(account(hop, window), HONEST, ALL, BUDGET, ROW)
    assert found is not None
    assert (found.hop, found.window, found.tokens) == expected
    assert found.cost == expected[2] * len(found.span)


def test_what_was_drawn_waits_until_the_budget_allows_it_with_what_confirms_it() -> None:
    cost = 64 * 3
    enough = 2 * cost / BUDGET
    assert next_target(account(0.999, 0.5, enough - 1), HONEST, ALL, BUDGET, ROW) is None
    assert next_target(account(0.999, 0.5, enough), HONEST, ALL, BUDGET, ROW) is not None
    spent = account(0.999, 0.5, enough).pay(1)
    assert next_target(spent, HONEST, ALL, BUDGET, ROW) is None
    assert next_target(account(), HONEST, ALL, 0.0, ROW) is None
    assert next_target(account(), HONEST, {}, BUDGET, ROW) is None


def test_no_window_is_drawn_whose_rows_would_be_too_many() -> None:
    found = next_target(account(0.0, 0.999), HONEST, ALL, BUDGET, MAX_AUDIT_BYTES // 40)
    assert found is not None
    assert found.window == 0


@settings(deadline=None)
@given(st.lists(st.floats(0, 0.999), min_size=2, max_size=60), st.sampled_from([0.0, 0.01, BUDGET, 0.3]))
def test_audits_never_take_more_than_their_budget(chance: list[float], budget: float) -> None:
    numbers = (chance[n % len(chance)] for n in count())

    def draw() -> float:
        return next(numbers)

    now = AuditAccount().draw(draw)
    for _ in range(40):
        now = now.answered(TOKENS, BLOCKS)
        hops = dict(ALL)
        while (found := next_target(now, HONEST, hops, budget, ROW)) is not None:
            del hops[found.hop]
            now = now.pay(found.cost).draw(draw)
        assert now.share <= budget


# ---- what is compared ----

TARGET = AuditTarget(1, 2, HONEST.hops[1].span, TOKENS)


def test_rows_and_results_are_compared_window_by_window() -> None:
    assert misfit_window(HONEST, TARGET, LINKS[1]) is None
    assert misfit_window(HONEST, TARGET, changed(LINKS[1], 33)) == 1
    assert misfit_window(HONEST, TARGET, LINKS[1].copy(69)) == 2
    assert differing_window(HONEST, TARGET, LINKS[2]) is None
    assert differing_window(HONEST, TARGET, changed(LINKS[2], 69)) == 2
    assert differing_window(HONEST, TARGET, LINKS[2].copy(10)) == 0
    assert differing_window(HONEST, AuditTarget(1, 0, TARGET.span, 32), changed(LINKS[2], 69)) is None


def test_of_a_last_hop_only_what_it_sent_is_compared() -> None:
    came_back = LINKS[3].copy(TOKENS)
    came_back.forget(40)
    links = [(LINKS[0], LINKS[1]), (LINKS[1], LINKS[2]), (LINKS[2], came_back)]
    target = AuditTarget(2, 2, HONEST.hops[2].span, TOKENS)
    assert differing_window(an_answer(links=links), target, LINKS[3]) is None
    assert differing_window(an_answer(links=links), target, changed(LINKS[3], 3)) is None
    assert differing_window(an_answer(links=links), target, changed(LINKS[3], 41)) == 1


# ---- what follows ----

SAME = {"window": None, "root": b""}
LIE = {"window": 1, "root": b"l" * HASH}
OTHER = {"window": 1, "root": b"o" * HASH}
LATER = {"window": 2, "root": b"l" * HASH}


def opinions(*given: dict[str, object]) -> list[Opinion]:
    pairs = enumerate(zip("abc", given, strict=False))
    return [Opinion(name, at=at(name, f"192.0.{n}.1"), **one) for n, (name, one) in pairs]  # type: ignore[arg-type]


def at(name: str, *hosts: str) -> Whereabouts:
    return whereabouts([name], hosts)


@pytest.mark.parametrize(
    ("given", "verdict", "alone", "done"),
    [
        ([], "open", (), False),
        ([SAME], "same", (), True),
        ([LIE], "open", (), False),
        ([LIE, LIE], "cheat", (), True),
        ([LIE, SAME], "open", (), False),
        ([LIE, OTHER], "open", (), False),
        ([LIE, LATER], "open", (), False),
        ([LIE, SAME, SAME], "same", ("a",), True),
        ([LIE, SAME, LIE], "cheat", ("b",), True),
        ([LIE, OTHER, SAME], "open", (), True),
        ([LIE, OTHER, OTHER], "cheat", ("a",), True),
    ],
    ids=str,
)
def test_nobody_is_named_before_two_have_found_the_same_to_the_bit(
    given: list[dict[str, object]], verdict: str, alone: tuple[str, ...], done: bool
) -> None:
    found = judge(opinions(*given))
    assert (found.verdict, found.alone) == (verdict, alone)
    assert settled(opinions(*given)) == done


def test_one_auditor_that_says_it_twice_is_one() -> None:
    twice = [Opinion("a", 1, b"l" * HASH, at("a", "192.0.2.1"))] * OPINIONS
    assert judge(twice).verdict == "open"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["192.0.2.7"], ["192.0.2.7"]),
        (["192.0.2.7", "198.51.100.1"], ["203.0.113.9", "198.51.100.1"]),
        (["2001:db8:0:1::7"], ["2001:db8:0:1:ffff::1"]),
        (["Node.example.org"], ["node.example.org."]),
        (["192.0.2.7"], []),  # behind a relay: nobody knows where it is
        ([], []),
    ],
)
@pytest.mark.parametrize("found", [LIE, SAME])
def test_two_that_may_be_one_name_nobody_and_clear_nobody(
    one: list[str], other: list[str], found: dict[str, object]
) -> None:
    honest = Opinion("c", 1, b"o" * HASH, at("c", "203.0.113.1"))
    agreeing = [Opinion(n, at=at(n, *h), **found) for n, h in (("a", one), ("b", other))]  # type: ignore[arg-type]
    judgement = judge([honest, *agreeing])
    assert (judgement.verdict, judgement.alone, judgement.near) == ("open", (), True)
    assert settled([honest, *agreeing])


def test_peers_of_one_network_may_be_two_and_this_machine_is_nobody_elses() -> None:
    one, other = at("a", "192.0.2.7"), at("b", "192.0.2.8")
    assert (closeness(one, other), apart(one, other)) == (1, True)
    assert closeness(one, at("b", "198.51.100.8")) == 0
    assert closeness(at("a", "192.0.2.7"), at("a", "198.51.100.8")) == 2
    assert apart(OWN, at("a")) and apart(OWN, OWN)
    checked = [Opinion("this machine", 1, b"l" * HASH, OWN), Opinion("checked", 1, b"l" * HASH, OWN)]
    assert judge(checked).verdict == "cheat"


def test_what_is_the_same_on_many_machines_makes_nobody_one() -> None:
    one, other = (
        at("a", "192.0.2.7", "172.17.0.1", "10.0.0.2"),
        at("b", "198.51.100.8", "172.17.0.1", "10.0.0.2"),
    )
    assert (closeness(one, other), closeness(one, at("c", "192.0.2.7", "10.0.0.3"))) == (0, 2)
    lan, beside = at("a", "192.168.1.5", "172.17.0.1"), at("b", "192.168.1.6", "172.17.0.1")
    assert (closeness(lan, beside), closeness(lan, at("c", "192.168.1.5"))) == (1, 2)
    assert closeness(at("a", "127.0.0.1"), at("b", "127.0.0.1")) == 2
    assert closeness(lan, other) == 2  # what it says of a private network, nobody can know
    seen = [
        whereabouts([name], [host], seen=True) for name, host in (("a", "192.168.1.5"), ("b", "192.0.2.7"))
    ]
    assert closeness(*seen) == 0


def test_an_address_has_one_name_and_names_count_for_nothing() -> None:
    assert closeness(at("a", "::ffff:192.0.2.7"), at("b", "192.0.2.7")) == 2
    assert closeness(at("a", "one.example.org"), at("b", "two.example.com")) == 2
    assert (
        closeness(at("a", "same.example.org", "192.0.2.7"), at("b", "same.example.org", "198.51.100.8")) == 0
    )


def test_those_who_did_something_together_are_known_where_each_of_them_is() -> None:
    near, far, nowhere = at("a", "192.0.2.7"), at("b", "198.51.100.8"), at("c")
    assert not together([near, nowhere]).known
    assert closeness(together([near, far]), at("d", "198.51.100.8")) == 2
    assert closeness(together([near, far]), at("d", "203.0.113.1")) == 0


def test_no_window_is_drawn_whose_rows_the_link_cannot_bring_in_time() -> None:
    fast, slow, thin = 1e9, ROW * 32 * 2 / SHOWN_WITHIN_S, 1.0
    assert within_reach(ALL, [fast, slow, thin], ROW) == {0: 3, 1: 2, 2: 1}


# ---- what is remembered ----


def peer(number: int) -> PeerId:
    return Identity.from_seed(number.to_bytes(32, "big")).peer


def test_a_lie_outlives_other_faults_is_forgiven_and_is_not_pushed_out() -> None:
    reputation, liar = Reputation(), peer(1)
    for _ in range(256):
        reputation.answered([liar])
    reputation.lied(liar, 100.0)
    assert reputation.distrusted(liar, 100.0 + 2 * LIE_HALF_LIFE_S)
    assert not reputation.distrusted(liar, 100.0 + 8 * LIE_HALF_LIFE_S)
    assert reputation.distrusted(liar, -1e9)  # a clock that was set back
    reputation.lied(liar, 50.0)
    assert reputation.distrusted(liar, 100.0 + 2 * LIE_HALF_LIFE_S)
    newcomer = peer(2)
    reputation.lied(newcomer, 0.0)
    for number in range(5000):
        reputation.failed(PeerId(f"p{number}"), 1.0)
    assert reputation.distrusted(newcomer, 1.0)


def test_a_fault_after_a_lie_does_not_make_the_lie_pass_sooner() -> None:
    reputation, liar = Reputation(), peer(1)
    reputation.lied(liar, 0.0)
    reputation.failed(liar, 1.0)
    before = reputation.trust(liar, 1.0)
    reputation.failed(liar, 2.0, 0.0)
    assert reputation.trust(liar, 2.0) == pytest.approx(before, rel=0.01)


def test_a_record_survives_its_file_and_is_bounded() -> None:
    record = AuditRecord().with_account(account(0.5, 0.25).pay(7))
    for number in range(MAX_CONVICTIONS + 10):
        record = record.convict(Conviction(f"peer{number}", float(number)))
    record = record.convict(Conviction(f"peer{MAX_CONVICTIONS + 9}", 5000.0))
    assert len(record.convictions) == MAX_CONVICTIONS
    assert record.convictions[-1].at == 5000.0
    assert read_record(record.encoded(), "audits.json") == record
    assert len(record.encoded()) < MAX_RECORD
    assert read_record(b"", "audits.json") == AuditRecord()


def test_what_is_long_ago_is_forgotten_and_what_is_to_come_is_now() -> None:
    record = AuditRecord().convict(Conviction("old", 0.0)).convict(Conviction("new", FORGET_S))
    assert dict(record.ages(FORGET_S + 5)) == {"new": 5.0}
    assert dict(record.ages(FORGET_S - 1e6))["new"] == 0.0


@pytest.mark.parametrize(
    "data", [b"{]", b"[]", b'{"kind":"else"}', b'{"account":{"spent":-1}}', b" " * (MAX_RECORD + 1)]
)
def test_what_is_no_record_is_refused_with_what_to_do(data: bytes) -> None:
    with pytest.raises(UsageError, match="no record of audits") as caught:
        read_record(data, "audits.json")
    assert "delete it" in str(caught.value.check)


# ---- how soon a cheat is named: the whole table is in docs/trust.md ----


def test_a_hop_that_always_cheats_is_named_within_100_requests_and_nobody_else() -> None:
    runs = [SimulatedClient(seed, 1.0).run(100) for seed in range(8)]
    assert named_within(runs, 100) == len(runs)
    assert sum(run.accused for run in runs) == 0
    assert max(run.share for run in runs) <= BUDGET


def test_where_nobody_cheats_nobody_is_named() -> None:
    run = SimulatedClient(1, 0.0).run(40)
    assert (run.named_at, run.accused) == (None, 0)
    assert 0 < run.share <= BUDGET
