"""What members of a run decide by what they know, and how much they keep of what others say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from shoal.errors import RemoteProtocolError
from shoal.net.identity import Identity, verify
from shoal.training.federated.board import RunBoard
from shoal.training.federated.compress import UpdateForm
from shoal.training.federated.decide import (
    GRACE_S,
    RunSnapshot,
    ahead,
    convenes_at,
    plan_fault,
    ready_members,
)
from shoal.training.federated.statements import (
    MemberCard,
    MemberStanding,
    PlannedMember,
    RoundPlan,
    read_statement,
    sign_statement,
    statement_hash,
)
from shoal.types import PeerId
from shoal.wire.federating import MAX_MEMBERS, SecretShare, UpdatePart

RUN, A, B = b"r" * 32, b"a" * 32, b"b" * 32
PEERS = [PeerId(f"peer{number}") for number in range(5)]


def standing(peer, round, state=A, ready=True, number=1):
    return MemberStanding(RUN, peer, round, state, ready, 10, number)


def known(
    standings, own=PEERS[0], round=3, state=A, gone=(), members=PEERS, first_ready=100.0, last_ready=100.0
):
    return RunSnapshot(
        own=own,
        run=RUN,
        round=round,
        state=state,
        standings={PeerId(said.peer): said for said in standings},
        members=set(members),
        gone=set(gone),
        first_ready=first_ready,
        last_ready=last_ready,
    )


def test_all_members_have_the_same_order_of_those_who_convene_and_another_one_each_round():
    said = [standing(peer, 3) for peer in PEERS]
    orders = {tuple(ready_members(known(said, own=peer))) for peer in PEERS}
    assert len(orders) == 1
    first = {ready_members(known([standing(peer, r) for peer in PEERS], round=r))[0] for r in range(40)}
    assert len(first) == len(PEERS)


def test_a_round_begins_at_once_when_all_are_ready_and_else_when_the_others_have_had_their_time():
    ready = [standing(peer, 3) for peer in PEERS]
    first = ready_members(known(ready))[0]
    second = ready_members(known(ready))[1]
    assert convenes_at(known(ready, own=first), 2, 60) == 100.0
    assert convenes_at(known(ready, own=second), 2, 60) == 100.0 + GRACE_S
    late = [said for said in ready if said.peer != second]
    assert convenes_at(known(late, own=first), 2, 60) == 160.0
    assert convenes_at(known(late, own=first, gone=[second]), 2, 60) == 100.0
    assert convenes_at(known(late, own=first), 5, 60) is None
    assert convenes_at(known(ready, own=first, first_ready=None), 2, 60) is None


def test_turns_to_convene_are_counted_from_the_last_one_who_became_ready():
    ready = [standing(peer, 3) for peer in PEERS]
    order = ready_members(known(ready))
    due = [convenes_at(known(ready, own=peer, last_ready=130.0), 2, 60) for peer in order]
    assert due == [130.0 + GRACE_S * turn for turn in range(len(order))]
    late = known(ready[:-1], own=ready_members(known(ready[:-1]))[1], last_ready=190.0)
    assert convenes_at(late, 2, 60) == 190.0 + GRACE_S, "beyond the time that the others had"


def test_who_says_again_and_again_that_it_is_ready_holds_up_nobody():
    made = board()
    for number, at in ((1, 5.0), (3, 9.0)):
        made.take(standing(PEERS[1], 3, number=number), b"s" + bytes([number]), at)
        made.take(standing(PEERS[1], 3, ready=False, number=number + 1), b"u" + bytes([number]), at + 1)
    assert (made.first_ready, made.last_ready) == (5.0, 5.0)
    made.take(standing(PEERS[2], 3), b"s2", 12.0)
    assert (made.first_ready, made.last_ready) == (5.0, 12.0)


def test_a_plan_of_others_is_none():
    members = tuple(PlannedMember(peer, 10) for peer in PEERS[:3])
    plan = RoundPlan(RUN, PEERS[1], 3, A, members)
    snapshot = known([standing(peer, 3) for peer in PEERS[:3]])
    assert plan_fault(plan, snapshot, 2) == ""
    assert "of round 4" in plan_fault(structs.replace(plan, round=4), snapshot, 2)
    assert "another adapter" in plan_fault(structs.replace(plan, state=B), snapshot, 2)
    assert "convened" in plan_fault(structs.replace(plan, peer=PEERS[4]), snapshot, 2)
    assert "not in it" in plan_fault(structs.replace(plan, members=members[1:]), snapshot, 2)


def test_a_plan_of_so_few_that_one_would_know_what_another_adds_is_none():
    """Whoever is ready may convene, also who wants to be alone with a member."""
    pair = RoundPlan(RUN, PEERS[1], 3, A, tuple(PlannedMember(peer, 10) for peer in PEERS[:2]))
    ready = [standing(peer, 3) for peer in PEERS]
    assert "the terms ask for 4" in plan_fault(pair, known(ready[:2]), 4)
    assert "most of those who are ready" in plan_fault(pair, known(ready), 2)
    assert "most of those who are ready" in plan_fault(pair, known(ready[:4]), 2)  # half is not most
    assert plan_fault(pair, known(ready[:3]), 2) == ""
    three = structs.replace(pair, members=tuple(PlannedMember(peer, 10) for peer in PEERS[:3]))
    assert plan_fault(three, known(ready), 3) == ""
    heavy = structs.replace(pair, members=(PlannedMember(PEERS[0], 1), PlannedMember(PEERS[1], 10)))
    assert "another number of examples" in plan_fault(heavy, known(ready[:2]), 2)
    made = board(least=4)
    for said in ready:
        made.take(said, b"s" + said.peer.encode(), 5.0)
    made.take(pair, b"pair", 6.0)
    assert made.accepted is None
    # Who is gone fills no plan up, unless it has said that it is ready.
    made = board(least=4)
    for said in ready[:2]:
        made.take(said, b"s" + said.peer.encode(), 5.0)
    made.gone |= set(PEERS[2:])
    four = structs.replace(pair, members=tuple(PlannedMember(peer, 10) for peer in PEERS[:4]))
    made.take(four, b"four", 6.0)
    assert made.accepted is None


def test_who_has_another_adapter_than_most_takes_theirs():
    others = [standing(peer, 3, B) for peer in PEERS[1:4]]
    assert ahead(known(others)) == (3, B)
    assert ahead(known([standing(PEERS[1], 3, A), *others[1:]])) is None  # two and two: the smaller one holds
    assert ahead(known([standing(peer, 3, A) for peer in PEERS[1:3]], own=PEERS[0], state=B)) == (3, A)
    assert ahead(known([standing(peer, 2, B) for peer in PEERS[1:]])) is None  # they are behind


def test_a_single_member_that_says_to_be_far_ahead_takes_nobody_along():
    said = [standing(PEERS[1], 9, B), standing(PEERS[2], 3), standing(PEERS[3], 3)]
    assert ahead(known(said)) is None
    said = [standing(peer, 5, B) for peer in PEERS[1:4]]
    assert ahead(known(said)) == (5, B)
    assert ahead(known(said, gone=PEERS[1:4])) is None
    assert ahead(known([standing(PEERS[1], 4, B)])) == (4, B)  # there is but one other


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(2, 4), st.sampled_from([A, B])), min_size=2, max_size=5))
def test_members_of_a_round_come_to_one_adapter_when_each_takes_that_of_most(where):
    """In steps, one member after another, as in a round; each change is told to all."""
    members = PEERS[: len(where)]
    at = dict(zip(members, where, strict=True))
    for _ in range(4):
        for peer in members:
            others = [standing(other, *at[other]) for other in members]
            moved = ahead(known(others, own=peer, round=at[peer][0], state=at[peer][1]))
            at[peer] = moved or at[peer]
    newest = max(round for round, _ in at.values())
    assert len({state for round, state in at.values() if round == newest}) == 1


def test_what_is_not_signed_by_whom_it_is_of_is_refused():
    one, other = Identity.ephemeral(), Identity.ephemeral()
    said = standing(one.peer, 3)
    raw = sign_statement(said, one.sign)
    assert read_statement(raw, verify) == said
    with pytest.raises(RemoteProtocolError, match="not signed"):
        read_statement(sign_statement(said, other.sign), verify)
    with pytest.raises(RemoteProtocolError, match="not signed"):
        read_statement(raw[:64] + raw[64:].replace(b"a" * 32, b"b" * 32), verify)
    twice = RoundPlan(RUN, one.peer, 3, A, (PlannedMember(one.peer, 1),) * 2)
    with pytest.raises(RemoteProtocolError, match="names a member twice"):
        read_statement(sign_statement(twice, one.sign), verify)
    with pytest.raises(RemoteProtocolError, match="not a statement"):
        read_statement(bytes(100), verify)
    with pytest.raises(RemoteProtocolError, match="at most"):
        read_statement(bytes(1 << 20), verify)


def board(members=PEERS, least=2):
    made = RunBoard(RUN, PEERS[0], UpdateForm(100), least)
    for peer in members:
        made.take(MemberCard(RUN, peer, (), (), 1), b"card" + peer.encode(), 0.0)
    made.begin(3, A, 0.0)
    return made


def test_a_board_keeps_so_much_and_no_more():
    made = board([PeerId(f"member{number}") for number in range(MAX_MEMBERS + 9)])
    assert len(made.cards) == MAX_MEMBERS
    made.gone.add(PeerId("member3"))
    made.take(MemberCard(RUN, "newcomer", (), (), 1), b"x", 0.0)
    assert "newcomer" in made.cards
    assert "member3" not in made.cards
    assert made.gone == set()


def ready_board(**options):
    made = board(**options)
    for peer in PEERS:
        made.take(standing(peer, 3), b"s" + peer.encode(), 5.0)
    return made


def test_parts_before_their_plan_have_a_share_for_each_sender_and_nobody_has_that_of_another():
    made = ready_board()
    part = UpdatePart(RUN, 3, b"p" * 32, 0, "update", 136)
    longest = bytes(4 * 34)  # of 100 elements, with three of five ready members at least
    assert not made.take_part(PEERS[1], part, longest + bytes(4))
    assert not made.take_part(PEERS[1], structs.replace(part, round=4), b"")
    assert not made.take_part(PeerId("stranger"), part, b"")
    assert not made.take_part(PEERS[1], structs.replace(part, left_out=(("peer3", "why"),)), b"")
    for number in range(50):  # one member, with plans that it invents
        made.take_part(PEERS[1], structs.replace(part, plan=bytes([number]) * 32), longest)
        made.take_secret(PEERS[1], SecretShare(RUN, 3, bytes([number]) * 32, bytes(64)))
    assert all(made.take_part(peer, part, longest) for peer in PEERS[2:])
    assert len(made._received._parts) == 4
    share = SecretShare(RUN, 3, b"p" * 32, bytes(64))
    assert all(made.take_secret(peer, share) for peer in PEERS[2:])
    assert not made.take_secret(PEERS[2], structs.replace(share, share=b"x" * 64))
    assert not made.take_secret(PeerId("stranger"), share)
    assert len(made._received._secrets) == 4
    made.take(standing(PEERS[2], 3, ready=False, number=2), b"not", 6.0)
    assert len(made._received._parts) == 3


def test_of_four_who_are_ready_a_part_is_no_longer_than_with_three():
    made = ready_board()
    made.take(standing(PEERS[4], 3, ready=False, number=2), b"not", 6.0)
    part = UpdatePart(RUN, 3, b"p" * 32, 0, "update", 136)
    assert not made.take_part(PEERS[1], part, bytes(4 * 50))
    assert made.take_part(PEERS[1], part, bytes(4 * 34))


def test_by_a_plan_its_members_send_their_parts_and_no_more():
    made = ready_board()
    made.take(MemberCard(RUN, "outsider", (), (), 1), b"card", 6.0)
    plan = RoundPlan(RUN, PEERS[1], 3, A, tuple(PlannedMember(peer, 10) for peer in PEERS[:4]))
    by_plan = UpdatePart(RUN, 3, statement_hash(b"plan"), 0, "update", 100)
    assert made.take_part(PEERS[2], by_plan, bytes(100))  # before the plan
    assert made.take_part(PEERS[1], structs.replace(by_plan, plan=b"p" * 32), bytes(100))  # by none
    assert made.take_secret(PEERS[1], SecretShare(RUN, 3, b"p" * 32, bytes(64)))
    made.take(plan, b"plan", 6.0)
    assert made.accepted is not None
    assert list(made.parts("update")) == [PEERS[2]]
    assert made.secret("SecretShare") == {}
    assert not made.take_part(PEERS[2], by_plan, bytes(100))  # once
    assert not made.take_part(PEERS[4], by_plan, bytes(100))
    assert not made.take_part(PEERS[1], structs.replace(by_plan, index=1), bytes(100))
    assert not made.take_part(PEERS[1], by_plan, bytes(104))
    assert not made.take_part(PEERS[1], structs.replace(by_plan, kind="mean"), bytes(100))
    assert made.take_part(PEERS[1], by_plan, bytes(100))
    assert made.take_part(PEERS[1], structs.replace(by_plan, kind="mean", index=1), bytes(100))
    share = SecretShare(RUN, 3, statement_hash(b"plan"), bytes(64))
    assert made.take_secret(PEERS[1], share)
    assert not made.take_secret(PEERS[4], share)
    assert not made.take_secret(PEERS[2], structs.replace(share, plan=b"p" * 32))


def test_a_plan_holds_when_all_in_it_are_known_to_be_ready():
    made = board()
    plan = RoundPlan(RUN, PEERS[1], 3, A, tuple(PlannedMember(peer, 10) for peer in PEERS[:3]))
    for peer in PEERS[:2]:
        made.take(standing(peer, 3), b"s" + peer.encode(), 5.0)
    assert made.first_ready == 5.0
    made.take(plan, b"plan", 6.0)
    assert made.accepted is None
    assert made.unknown(plan) == [PEERS[2]]
    made.take(standing(PEERS[2], 3), b"s2", 7.0)
    assert made.accepted is not None
    assert not made.take(structs.replace(plan, members=plan.members[:2]), b"other", 8.0)  # one a member


def test_plans_of_others_leave_room_for_every_member_and_for_the_own_one():
    made = board()
    for peer in PEERS:
        made.take(standing(peer, 3), b"s" + peer.encode(), 5.0)
    everybody = tuple(PlannedMember(peer, 10) for peer in PEERS)
    for peer in PEERS[1:]:
        for round in (3, 4):
            assert made.take(RoundPlan(RUN, peer, round, B, everybody), f"{peer} {round}".encode(), 6.0)
    assert made.accepted is None
    # Of a member that has begun the round anew, as with the adapter of most, the later plan holds.
    assert made.take(RoundPlan(RUN, PEERS[1], 3, A, (everybody[1], everybody[2])), b"anew", 7.0)
    assert not made.take(RoundPlan(RUN, PEERS[1], 3, A, everybody), b"once more", 7.0)
    assert made.take(RoundPlan(RUN, PEERS[0], 3, A, everybody[:1]), b"own", 8.0)
    assert made.accepted is None
    assert made.take(RoundPlan(RUN, PEERS[0], 3, A, everybody), b"own again", 9.0)
    assert made.accepted is not None
    assert made.accepted.plan.peer == PEERS[0]


def test_a_round_that_goes_on_without_a_member_is_not_convened_by_it():
    made = board()
    for peer in PEERS:
        made.take(standing(peer, 3), b"s" + peer.encode(), 5.0)
    few = RoundPlan(RUN, PEERS[1], 3, A, tuple(PlannedMember(peer, 1) for peer in PEERS[1:3]))
    made.take(few, b"few", 6.0)
    assert not made.passed_over(8.0, 40.0)  # two of five ready ones are no round that is to be waited for
    made.gone.add(PEERS[4])
    assert not made.passed_over(8.0, 40.0)  # nor are two of four, who would not keep to it
    made.gone.discard(PEERS[4])
    most = structs.replace(few, peer=PEERS[2], members=tuple(PlannedMember(peer, 1) for peer in PEERS[1:]))
    made.take(most, b"most", 7.0)
    assert made.passed_over(8.0, 40.0)
    assert made.passed_over(46.0, 40.0)
    assert not made.passed_over(47.0, 40.0)  # as long as a round may take, and nobody has gone on


def test_invented_members_of_a_plan_keep_nobody_from_convening():
    made = board()
    for peer in PEERS:
        made.take(standing(peer, 3), b"s" + peer.encode(), 5.0)
    invented = tuple(PlannedMember(f"nobody{number}", 1) for number in range(9))
    made.take(RoundPlan(RUN, PEERS[1], 3, A, (PlannedMember(PEERS[1], 1), *invented)), b"plan", 6.0)
    assert not made.passed_over(7.0, 40.0)
    made.take(MemberCard(RUN, "outsider", (), (), 1), b"card", 6.0)
    all_others = tuple(PlannedMember(peer, 10) for peer in (*PEERS[1:], PeerId("outsider")))
    made.take(RoundPlan(RUN, "outsider", 3, A, all_others), b"outside", 6.0)
    assert not made.passed_over(7.0, 40.0)  # who is not ready convenes nothing


def test_of_two_standings_of_a_member_the_later_one_holds():
    made = board()
    assert made.take(standing(PEERS[1], 3, number=5), b"1", 0.0)
    assert not made.take(standing(PEERS[1], 4, number=4), b"2", 0.0)
    assert made.take(standing(PEERS[1], 1, B, number=6), b"3", 0.0)  # as after a restart
    assert made.standings[PEERS[1]].round == 1
    assert not made.take(standing("stranger", 3), b"4", 0.0)
