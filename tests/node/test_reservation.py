"""Of a crowd that joins a large swarm, each says where it will be before it is there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from shoal.models.store.local_model import LocalModel
from shoal.node.placing.choice import PlacedModel, keeping_peers, reservation, serving_peers
from shoal.node.placing.placement import reserve
from shoal.planning.level import MANY
from shoal.swarm.announcement import Announcement, Served, candidate
from shoal.swarm.directory import Directory
from shoal.swarm.member import Member
from shoal.testing.sim import model
from shoal.testing.sim.peers import a_served
from shoal.types import Numerics, PeerId, Span

NUMERICS = Numerics("fp32", "auto", "any")
PLACED = PlacedModel(model.SHAPE, NUMERICS, ())
SPAN = Span(8, 16)


class FakeMember:
    """A member as placement sees it."""

    def __init__(self) -> None:
        self.directory = Directory()
        self.network = SimpleNamespace(peer=PeerId("me"))
        self.served: Any = None
        self.said: list[Served] = []

    def now(self) -> float:
        return 0.0

    async def announce(self) -> None:
        self.said.append(self.served())

    def hear(self, peer: str, served: Served) -> None:
        self.directory.take(Announcement(peer, 1, 0.0, 60.0, (), (), served), peer.encode(), 0.0, 0.0)


@pytest.fixture
def member() -> FakeMember:
    return FakeMember()


def test_who_loads_its_first_span_is_taken_to_get_there_and_takes_no_session(member):
    member.hear("b", reservation(PLACED, SPAN))
    (coming,) = serving_peers(PLACED, cast("Member", member))
    assert coming.span == SPAN
    assert serving_peers(PLACED, cast("Member", member), before=PeerId("a")) == []
    assert candidate(PeerId("b"), reservation(PLACED, SPAN), None).tokens_free == 0


def test_who_has_paused_is_still_taken_to_serve_nothing(member):
    member.hear("b", msgspec.structs.replace(a_served(SPAN), share=0.0))
    assert serving_peers(PLACED, cast("Member", member)) == []


def test_blocks_may_be_left_to_those_alone_who_serve_them_and_stay(member):
    going = msgspec.structs.replace(a_served(SPAN), next_start=16, next_end=24)
    member.hear("b", going)
    member.hear("c", reservation(PLACED, SPAN))
    member.hear("d", msgspec.structs.replace(a_served(SPAN), share=0.0))
    assert keeping_peers(PLACED, cast("Member", member)) == []
    assert keeping_peers(PLACED, cast("Member", member), before=PeerId("c")) == []
    assert len(keeping_peers(PLACED, cast("Member", member), before=PeerId("a"))) == 1  # it goes after us
    member.hear("e", a_served(SPAN))
    (keeps,) = keeping_peers(PLACED, cast("Member", member))
    assert keeps.span == SPAN


async def test_in_a_large_swarm_a_node_says_where_it_will_be_and_in_a_small_one_it_waits(member):
    local = cast("LocalModel", SimpleNamespace(shape=model.SHAPE))
    for number in range(MANY - 1):
        member.hear(f"p{number}", a_served(Span(0, 8)))
    assert not await reserve(local, NUMERICS, SPAN, cast("Member", member))
    assert member.said == []
    member.hear("one more", a_served(Span(0, 8)))
    assert await reserve(local, NUMERICS, SPAN, cast("Member", member))
    assert member.said[0].going == SPAN
    assert member.said[0].share == 0
