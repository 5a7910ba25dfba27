"""What a peer may take of a node: bounded, and over the bound a typed answer that says when to come back."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import trio

from shoal.errors import Busy, ChannelClosed, RemoteProtocolError
from shoal.net import channel as channel_module
from shoal.net import dial_budget as budget_module
from shoal.net import receive_budget as inbound_module
from shoal.net.dial_budget import BURST, EVERY_S, PEERS_KEPT, DialBudget
from shoal.net.moving import liveness
from shoal.net.network import Pipe
from shoal.net.receive_budget import STRANGER_LIMIT, ReceiveBudget
from shoal.node import fair_share as room_module
from shoal.node import hop as hop_module
from shoal.node.fair_share import RETRY_S
from shoal.testing.byhand import MINE, begun, fragment, rows
from shoal.testing.swarm import memory_swarm
from shoal.types import PeerAddress, PeerId, Span
from shoal.wire.fields import MAX_PAYLOAD, NextHop
from shoal.wire.messages import (
    NEWEST_VERSION,
    Close,
    Failed,
    Hello,
    Opened,
    Reroute,
    Rerouted,
    Step,
    encode,
)
from tests.hostile.conftest import BLOCKS, PIECES, PROMPT, WIDTH, Attack, honest
from tests.one_process import KERNELS, OneProcess

HELLO = fragment(
    1, len(encode(Hello(NEWEST_VERSION))).to_bytes(4, "big") + bytes(4) + encode(Hello(NEWEST_VERSION))
)


class Named:
    """A channel, as far as memory is concerned."""

    def __init__(self, peer: str) -> None:
        self.peer = PeerId(peer)
        self.reason = ""

    def close(self, reason: str = "") -> None:
        self.reason = reason


# --- unfinished messages ----------------------------------------------------------------------------------


def test_one_peer_has_one_allowance_however_many_channels_it_opens() -> None:
    inbound = ReceiveBudget()
    channels = [Named("evil") for _ in range(8)]
    for channel in channels[:4]:
        inbound.note(channel, MAX_PAYLOAD // 4)
    with pytest.raises(RemoteProtocolError):
        inbound.note(channels[4], MAX_PAYLOAD // 4)


def test_a_stranger_may_hold_little_and_who_takes_part_a_whole_message() -> None:
    inbound = ReceiveBudget(known={"friend"}.__contains__)
    inbound.note(Named("friend"), MAX_PAYLOAD)
    inbound.note(Named("stranger"), STRANGER_LIMIT)
    with pytest.raises(RemoteProtocolError):
        inbound.note(Named("other"), STRANGER_LIMIT + 1)


def test_past_the_limit_of_all_who_holds_most_loses_its_channel() -> None:
    inbound = ReceiveBudget(limit=100)
    small, large, last = Named("a"), Named("b"), Named("c")
    for channel, held in ((small, 20), (large, 70), (last, 30)):
        inbound.note(channel, held)
    assert large.reason
    assert not small.reason
    assert not last.reason
    assert inbound.held == 50
    inbound.note(small, 0)
    assert inbound.held == 30


async def test_a_payload_that_never_comes_is_not_waited_for(
    attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "ENDED_WITHIN_S", 0.3)
    monkeypatch.setattr(liveness, "PING_EVERY_S", 0.1)
    network = attack.swarm.world.network()
    pipe = await network.open_pipe(attack.swarm.networks[0].address, deadline_s=1)
    await pipe.send_all(HELLO + begun(2, 60_000, 200_000))
    with trio.fail_after(25):
        while await pipe.receive_some():
            pass
    await pipe.aclose()
    del attack.swarm.world.peers[network.peer]


async def test_a_stranger_that_begins_long_messages_is_hung_up_on(attack: Attack) -> None:
    network = attack.swarm.world.network()
    pipe = await network.open_pipe(attack.swarm.networks[0].address, deadline_s=1)
    await pipe.send_all(HELLO)
    sent = 0
    with pytest.raises(Exception, match="gone"), trio.fail_after(25):
        for number in range(2, 64):
            await pipe.send_all(begun(number, 1 << 18, MAX_PAYLOAD))
            sent += 1 << 18
    assert sent <= STRANGER_LIMIT + (16 << 18)  # and what was on its way
    await pipe.aclose()
    del attack.swarm.world.peers[network.peer]


# --- sessions and steps -----------------------------------------------------------------------------------


async def test_a_session_that_was_only_asked_for_holds_nothing(attack: Attack) -> None:
    node = attack.swarm.nodes[0]
    async with attack.stranger() as peer:
        for number in range(8):
            asked = attack.open(session=bytes([number]) * 16, tokens=node.engine.tokens // 2)
            assert isinstance((await peer.ask(asked))[0], Opened)
        assert node.engine.tokens - node.engine.tokens_free < 64  # of whoever is in the middle of an answer
        refused, _ = await peer.ask(attack.open(session=b"9" * 16, tokens=node.engine.tokens + 1))
        assert (refused.code, refused.retry_after_s) == ("busy", RETRY_S)


async def test_who_fills_a_node_makes_room_for_the_next_and_is_told(
    tmp_path: Path, checkpoint: Path, whole: OneProcess
) -> None:
    async with memory_swarm(tmp_path, checkpoint, [Span(0, BLOCKS)], kv_tokens=1024, **KERNELS) as swarm:
        attack, node = Attack(swarm, checkpoint), swarm.nodes[0]
        async with attack.stranger() as hog:
            await hog.ask(attack.open(tokens=1024))
            await hog.ask(attack.step(tokens=1024, rows=1024), rows(WIDTH, 1024))
            assert node.engine.tokens_free == 0
            async with swarm.client.session(str(checkpoint), tokens=64) as session:
                await honest(session, PIECES, whole.logits(PIECES))
                assert not session.reroutes
            failed, _ = await hog.receive()
            assert isinstance(failed, Failed)
            assert (failed.number, failed.code) == (None, "busy")
            assert (await hog.ask(attack.step(number=2), rows(WIDTH)))[0].code == "unknown_session"


async def test_a_session_that_had_to_make_room_goes_on_with_the_same_tokens(
    tmp_path: Path, checkpoint: Path, whole: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same node, when there is room again: its client fills another cache."""
    pieces = [PROMPT, PROMPT, PROMPT, [7]]
    expected = whole.logits(pieces)
    async with memory_swarm(tmp_path, checkpoint, [Span(0, BLOCKS)], kv_tokens=128, **KERNELS) as swarm:
        other = await swarm.add_client(**KERNELS)
        async with swarm.client.session(str(checkpoint), tokens=80) as session:
            await honest(session, pieces[:3], expected[:3])
            server = swarm.nodes[0].server
            monkeypatch.setattr(room_module, "QUIET_S", 0.0)
            async with other.session(str(checkpoint), tokens=64) as other_session:
                await other_session.step(list(range(60)))
                assert server.sessions == 1
            await honest(session, pieces[3:], expected[3:])
            assert [reroute.way for reroute in session.reroutes] == ["replay"]


async def test_steps_that_wait_are_bounded_in_tokens(attack: Attack) -> None:
    """A client that goes back again and again cannot pile up its longest step."""
    async with attack.stranger() as peer:
        await peer.ask(attack.open(tokens=512))
        await peer.ask(attack.step(), rows(WIDTH))
        long = attack.step(tokens=512, rows=512, wanted=0)
        for number in range(2, 40):
            await peer.send(msgspec.structs.replace(long, number=number), rows(WIDTH, 512))
        # A step that another at its position supersedes while it waits has no answer.
        refused, computed = set[str](), 0
        while not (refused and computed):
            answer, _ = await peer.receive(within_s=30)
            if isinstance(answer, Failed):
                refused.add(answer.code)
            else:
                assert isinstance(answer, Step)
                computed += 1
        assert refused == {"busy"}


async def test_a_session_that_is_not_used_makes_room_for_others(
    attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hop_module, "IDLE_S", 0.3)
    monkeypatch.setattr(hop_module, "FIRST_STEP_S", 0.2)
    async with attack.stranger() as peer:
        for stepped in (False, True):
            assert isinstance((await peer.ask(attack.open()))[0], Opened)
            if stepped:
                await peer.ask(attack.step(), rows(WIDTH))
            failed, _ = await peer.receive()
            assert isinstance(failed, Failed)
            assert (failed.number, failed.code) == (None, "unknown_session")
    monkeypatch.undo()


# --- what a peer has us do --------------------------------------------------------------------------------


def test_dials_for_another_peer_are_counted_and_come_back_with_time() -> None:
    budget, peer = DialBudget(), PeerId("evil")
    for _ in range(BURST):
        budget.ask(peer, 10.0)
    with pytest.raises(Busy) as refused:
        budget.ask(peer, 10.0)
    assert 0 < refused.value.retry_after_s <= EVERY_S
    budget.ask(PeerId("honest"), 10.0)
    budget.ask(peer, 10.0 + EVERY_S)
    for number in range(PEERS_KEPT + 5):
        budget.ask(PeerId(str(number)), 12.0)
    assert len(budget._full_at) == PEERS_KEPT


async def test_a_node_does_not_knock_all_day(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_module, "BURST", 3)
    network, knocked = attack.swarm.networks[0], []
    opened_by = network.open_pipe

    async def open_pipe(address: PeerAddress, *, deadline_s: float) -> Pipe:
        knocked.append(address.peer)
        return await opened_by(address, deadline_s=deadline_s)

    monkeypatch.setattr(network, "open_pipe", open_pipe)
    async with attack.stranger() as peer:
        codes = []
        for number in range(6):
            onward = NextHop(f"12D3KooWnobody{number}", direct=("/ip4/10.0.0.1/tcp/22",))
            refused, _ = await peer.ask(attack.open(next=onward))
            codes.append(refused.code)
        assert codes == ["channel_closed"] * 3 + ["busy"] * 3
        # The same through a change of route.
        assert isinstance((await peer.ask(attack.open()))[0], Opened)
        rerouted, _ = await peer.ask(Reroute(MINE, 0, None, NextHop("12D3KooWnobody9")))
        assert isinstance(rerouted, Rerouted)
        assert not rerouted.kept
        assert knocked == ["12D3KooWnobody0", "12D3KooWnobody1", "12D3KooWnobody2"]
        await peer.send(Close(MINE))


async def test_a_peer_that_asks_and_does_not_read_is_hung_up_on(attack: Attack) -> None:
    network = attack.swarm.world.network()
    pipe = await network.open_pipe(attack.swarm.networks[0].address, deadline_s=1)
    await pipe.send_all(HELLO)
    gone = False
    with trio.move_on_after(10):
        for number in range(2, 5000):
            session = number.to_bytes(16, "big")
            header = encode(attack.step(session=session))
            body = len(header).to_bytes(4, "big") + (512).to_bytes(4, "big") + header + rows(WIDTH)
            try:
                await pipe.send_all(fragment(number, body))
            except ChannelClosed:
                gone = True
                break
    assert gone
    await pipe.aclose()
    del attack.swarm.world.peers[network.peer]


def test_the_limits_are_what_they_are_said_to_be() -> None:
    assert inbound_module.PEER_LIMIT < inbound_module.TOTAL_LIMIT
    assert STRANGER_LIMIT < inbound_module.PEER_LIMIT
