"""The rules of consensus: who is named, who never is, what is asked of third parties, and who is chosen."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from shoal.errors import NotAllowed
from shoal.testing.sim.consensus import SimulatedConsensus
from shoal.trust.consensus import (
    CHECKS,
    Disputed,
    HopCheck,
    NamedHop,
    ReplicaComparison,
    ReplicaOffer,
    ReplicaRing,
    ReplicaWork,
    choose_replica,
    commitment,
    compare,
    strength,
)
from shoal.trust.independence import OWN, Whereabouts, whereabouts
from shoal.trust.signing import MAX_QUESTIONS, Signing
from shoal.types import PeerId

from .test_receipts import HONEST, PEERS

SENT = (b"a0", b"b0")
"""The roots of two windows, which stand here for themselves."""


def at(name: str, host: str | None = None) -> Whereabouts:
    return whereabouts([name], [] if host is None else [host])


def ring(number: int, *rows: Sequence[bytes], host: str | None = "") -> ReplicaRing:
    """A replica whose hops were given and have made these, by window."""
    sides = [SENT, *rows]
    here = [host or f"192.{number}.{hop}.1" for hop in range(len(rows))]
    return [
        ReplicaWork(at(f"{number}/{hop}", None if host is None else here[hop]), tuple(came), tuple(went))
        for hop, (came, went) in enumerate(zip(sides, rows, strict=False))
    ]


def third(went: Sequence[bytes], name: str = "third", host: str = "203.0.113.1") -> HopCheck:
    return HopCheck(name, at(name, host), tuple(went))


ONE, TWO = (b"a1", b"b1"), (b"a2", b"b2")
LIE = (b"a1", b"xx")
"""From the second window on."""
ON_LIE = (b"a2", b"yy")
THREE = [ring(number, ONE, TWO) for number in range(3)]


def seen(rings: Sequence[ReplicaRing], checks: dict[int, list[HopCheck]] | None = None) -> ReplicaComparison:
    return compare(SENT, rings, checks or {})


# ---- who is named ----


def test_where_all_agree_nobody_else_is_asked() -> None:
    found = seen(THREE)
    assert (found.named, found.disputed, found.open) == ([], None, "")
    assert (found.right, found.confirmed) == ([(0, 1, 2), (0, 1, 2)], [True, True])


@pytest.mark.parametrize("liar", [0, 1, 2])
def test_a_third_party_computes_the_hop_up_to_the_first_window_that_differs(liar: int) -> None:
    rings = [*THREE]
    rings[liar] = ring(liar, LIE, ON_LIE)
    asked = seen(rings).disputed
    assert asked == Disputed(0, 1, (0, 1, 2))
    found = seen(rings, {0: [third(ONE)]})
    assert found.named == [NamedHop(liar, 0, 1, ("third",))]
    others = tuple(number for number in range(3) if number != liar)
    assert (found.right, found.confirmed, found.alone) == ([others, others], [True, True], [])


def test_what_a_hop_makes_of_a_lie_is_held_against_nobody() -> None:
    rings = [ring(0, LIE, ON_LIE), *THREE[1:]]
    assert [one.hop for one in seen(rings, {0: [third(ONE)]}).named] == [0]


def test_a_third_party_that_lies_for_the_liar_leaves_it_open_and_is_alone_in_the_end() -> None:
    rings = [ring(0, LIE, ON_LIE), *THREE[1:]]
    false = third(LIE, "false")
    found = seen(rings, {0: [false]})  # two against two
    assert (found.named, found.disputed) == ([], Disputed(0, 1, (0, 1, 2)))
    found = seen(rings, {0: [false, third(ONE, "true", "203.0.114.1")]})
    assert ([one.replica for one in found.named], found.alone) == ([0], ["false"])


def test_two_replicas_and_nobody_who_decides_between_them_blame_nobody() -> None:
    rings = [ring(0, LIE, ON_LIE), THREE[1]]
    odd = [third((b"a1", bytes([n])), f"odd {n}", f"203.0.{n}.1") for n in range(CHECKS)]
    found = seen(rings, {0: odd})
    assert (found.named, found.disputed, found.right) == ([], None, [])
    assert "nobody is blamed" in found.open


@pytest.mark.parametrize("host", [None, "192.0.2.7"])
def test_replicas_that_may_be_one_count_as_one(host: str | None) -> None:
    near = [ring(number, LIE, ON_LIE, host=host) for number in (1, 2)]
    lying = third(LIE, "their third", host or "203.0.113.9")
    found = seen([THREE[0], *near], {0: [lying, third(ONE)]})
    assert 0 not in [one.replica for one in found.named]
    agreeing = [ring(number, ONE, TWO, host=host) for number in range(3)]
    assert seen(agreeing).disputed == Disputed(0, 1, (0, 1, 2))
    confirmed = seen(
        agreeing, {hop: [HopCheck("this machine", OWN, one)] for hop, one in enumerate((ONE, TWO))}
    )
    assert confirmed.confirmed == [True, True]


def own(went: Sequence[bytes], *, checked: bool = True) -> HopCheck:
    return HopCheck("this machine", OWN, tuple(went), checked)


def test_what_this_machine_computes_with_checked_weights_decides_whoever_says_otherwise() -> None:
    liars = [ring(number, LIE, ON_LIE) for number in (0, 1)]
    false = third(LIE, "false")
    found = seen([*liars, THREE[2]], {0: [false, own(ONE)]})
    assert [(one.replica, one.by) for one in found.named] == [(0, ("this machine",)), (1, ("this machine",))]
    assert (found.right[0], found.alone, found.confirmed[0]) == ((2,), ["false"], True)
    outvoted = seen([*liars, THREE[2]], {0: [false, own(ONE, checked=False)]})
    assert [one.replica for one in outvoted.named] == [2]  # as one voice of several it would be


def test_where_all_replicas_differ_from_what_this_machine_computes_all_are_named() -> None:
    found = seen([ring(number, LIE, ON_LIE, host=None) for number in range(3)], {0: [own(ONE)]})
    assert [(one.replica, one.window) for one in found.named] == [(0, 1), (1, 1), (2, 1)]
    assert (found.right, found.disputed) == ([], None)
    assert "this machine" in found.open


def test_one_third_party_that_agrees_and_two_that_do_not_confirm_nothing_and_it_is_said() -> None:
    near = [ring(number, ONE, TWO, host="192.0.2.7") for number in range(3)]
    two = {0: [third(ONE), *(third(LIE, name, f"198.51.{n}.1") for n, name in enumerate("ab"))]}
    found = seen(near, {**two, 1: [third(TWO)]})
    assert (found.named, found.confirmed) == ([], [False, True])
    assert "hop 0 is not confirmed" in found.open
    one = {0: [third(ONE), third(LIE, "a", "198.51.1.1"), third(ONE, "b", "198.51.2.1")]}
    assert seen(near, {**one, 1: [third(TWO)]}).confirmed == [True, True]


def test_who_lies_in_a_later_window_or_hop_is_named_too() -> None:
    rings = [ring(0, (b"zz", b"b1"), TWO), ring(1, LIE, ON_LIE), THREE[2]]
    assert seen(rings).disputed == Disputed(0, 0, (0, 1, 2))
    once = {0: [third(ONE[:1])]}
    assert seen(rings, once).disputed == Disputed(0, 1, (0, 1, 2))
    twice = {0: [*once[0], third(ONE)]}
    found = seen(rings, {**twice, 1: [third(TWO)]})
    assert [(one.replica, one.hop, one.window) for one in found.named] == [(0, 0, 0), (1, 0, 1)]
    assert (found.right, found.confirmed) == ([(2,), (2,)], [True, True])


def test_a_hop_without_receipts_is_left_out_and_without_any_nothing_is_settled() -> None:
    silent = [None, THREE[0][1]]
    assert seen([silent, *THREE[1:]]).right == [(1, 2), (0, 1, 2)]
    assert "no receipts hold" in seen([silent]).open


def test_those_who_agree_are_counted_as_many_as_can_be_apart() -> None:
    nowhere, one, two = at("a"), at("b", "192.0.2.1"), at("c", "198.51.100.1")
    assert strength([nowhere, one, two]) == strength([one, two, nowhere]) == 2
    assert (strength([]), strength([nowhere]), strength([nowhere, at("d")])) == (0, 1, 1)


# ---- commitments ----


def test_a_commitment_is_good_for_one_peer_one_question_and_these_receipts() -> None:
    receipts = HONEST.receipts(0)
    said = commitment(b"n" * 16, PEERS[0].peer, receipts)
    others = [(b"m" * 16, PEERS[0].peer, receipts), (b"n" * 16, PEERS[1].peer, receipts)]
    others += [(b"n" * 16, PEERS[0].peer, one) for one in (receipts[:-1], HONEST.receipts(1))]
    assert said == commitment(b"n" * 16, PEERS[0].peer, HONEST.receipts(0))
    assert said not in [commitment(*one) for one in others]


def test_a_hop_commits_once_to_a_nonce_before_it_signs_for_it_and_not_without_end() -> None:
    signing = Signing()
    signing.commit(b"1")
    with pytest.raises(NotAllowed):
        signing.commit(b"1")
    assert signing.begin(b"1")
    signing.signed(b"1", [])
    with pytest.raises(NotAllowed):
        signing.commit(b"1")
    for number in range(MAX_QUESTIONS - 2):
        signing.commit(bytes([number, 0]))
    with pytest.raises(NotAllowed, match="64 times"):
        signing.commit(b"2")
    with pytest.raises(NotAllowed, match="64 times"):
        signing.begin(b"2")


# ---- who is chosen ----


def offers(*names: str) -> list[ReplicaOffer]:
    """Each name with the host that it is at after its letter."""
    return [ReplicaOffer(PeerId(name), at(name, f"192.0.{name[1:]}.1")) for name in names]


def test_a_replica_has_a_peer_for_each_hop_and_none_twice() -> None:
    everywhere = offers("a1", "b2")
    assert choose_replica([everywhere, offers("a1")], [[], []]) == ["b2", "a1"]
    assert choose_replica([offers("a1"), offers("a1")], [[], []]) is None
    assert choose_replica([offers("a1")], [[at("a1", "192.0.1.1")]]) is None


def test_who_shares_least_with_those_who_compute_already_is_preferred() -> None:
    taken = [[at("x", "192.0.1.1")]]
    assert choose_replica([offers("a1", "b2")], taken) == ["b2"]
    assert choose_replica([offers("a1")], taken) == ["a1"]  # better than nobody
    network = [ReplicaOffer(PeerId("n"), at("n", "192.0.1.9"))]
    assert choose_replica([[*network, *offers("b2")]], taken) == ["b2"]
    assert choose_replica([[*offers("a1"), *network]], taken) == ["n"]


def test_one_of_whom_nobody_knows_where_it_is_pushes_nobody_back() -> None:
    taken = [[at("x", "192.0.1.1"), at("hidden")]]
    assert choose_replica([offers("a1", "b2")], taken) == ["b2"]


# ---- how often it works: the figures are in docs/trust.md ----


def test_who_lies_is_named_and_who_is_lazy_found_out_in_100_of_100_answers_and_nobody_else() -> None:
    runs = [SimulatedConsensus(seed).run() for seed in range(100)]
    assert all(run.liar in run.named and run.lazy in run.named | run.told for run in runs)
    assert all(run.named | run.told == {run.liar, run.lazy} for run in runs)
    assert all(run.confirmed for run in runs if not {0} & {run.liar[0], run.lazy[0]})
    assert 1.5 < sum(run.rows for run in runs) / len(runs) < 3.5


def test_a_liar_that_signs_for_no_positions_is_told_and_one_that_denies_what_it_was_given_is_at_odds() -> (
    None
):
    """The second escapes being named, but for the first hop; no answer of either is confirmed."""
    for seed in range(12):
        silent, denies = (SimulatedConsensus(seed, lie=lie).run() for lie in ("sent", "came"))
        assert silent.liar in silent.told
        assert denies.liar in (
            denies.at_odds if denies.liar[1] else denies.told | denies.named | denies.at_odds
        )
        for run in (silent, denies):
            assert run.named | run.told <= {run.liar, run.lazy}
            assert not (run.confirmed and run.liar[0] == 0)


def test_where_third_parties_lie_nobody_else_is_named_and_where_all_are_honest_nobody_is() -> None:
    for seed in range(12):
        run = SimulatedConsensus(seed, false=1).run()
        assert run.named | run.told <= {run.liar, run.lazy}
    honest = [SimulatedConsensus(seed, cheats=False).run() for seed in range(5)]
    assert all(run.confirmed and not run.named | run.told and run.rows == 2.0 for run in honest)
