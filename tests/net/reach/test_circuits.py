"""What a relay grants: within bounds, whatever is asked."""

from __future__ import annotations

import pytest

from shoal.errors import Busy, ChannelClosed
from shoal.net.reach.circuits import Circuits, RelayLimits
from shoal.types import PeerId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")
LIMITS = RelayLimits(circuits=3, circuits_per_peer=2, join_s=10)


def token(number: int) -> bytes:
    return bytes([number]) * 32


def test_a_circuit_is_granted_then_joined_and_then_nobody_else_comes_with_its_token():
    circuits = Circuits(LIMITS)
    circuits.grant(token(1), A, B, now=0)
    assert circuits.granted(token(1), now=1)
    assert circuits.join(token(1), now=1)
    assert not circuits.granted(token(1), now=1)
    assert not circuits.join(token(1), now=1)
    assert len(circuits) == 1
    circuits.end(token(1))
    assert len(circuits) == 0


def test_who_does_not_come_in_time_is_forgotten():
    circuits = Circuits(LIMITS)
    circuits.grant(token(1), A, B, now=0)
    assert not circuits.granted(token(1), now=11)
    assert not circuits.join(token(1), now=11)
    assert len(circuits) == 0


def test_a_peer_has_so_many_circuits_whether_it_calls_or_is_called():
    circuits = Circuits(LIMITS)
    circuits.grant(token(1), A, B, now=0)
    circuits.grant(token(2), C, A, now=0)
    for caller, called in ((A, C), (B, A)):
        with pytest.raises(Busy):
            circuits.grant(token(3), caller, called, now=0)
    circuits.grant(token(3), B, C, now=0)


def test_a_relay_has_so_many_circuits_joined_ones_among_them():
    circuits = Circuits(LIMITS)
    for number in range(3):
        circuits.grant(token(number), PeerId(f"x{number}"), PeerId(f"y{number}"), now=0)
        assert circuits.join(token(number), now=0)
    with pytest.raises(Busy):
        circuits.grant(token(9), A, B, now=0)
    circuits.end(token(0))
    circuits.grant(token(9), A, B, now=0)


def test_a_network_has_so_many_circuits_however_many_keys_it_makes():
    circuits = Circuits(RelayLimits(circuits=9, circuits_per_network=2))
    for number in range(2):
        peers = PeerId(f"x{number}"), PeerId(f"y{number}")
        circuits.grant(token(number), *peers, now=0, networks=frozenset({"1.1.1.0/24"}))
    with pytest.raises(Busy, match="network"):
        circuits.grant(token(3), A, B, now=0, networks=frozenset({"2.2.2.0/24", "1.1.1.0/24"}))
    circuits.grant(token(3), A, B, now=0, networks=frozenset({"2.2.2.0/24"}))


def test_a_grant_is_withdrawn_and_a_joined_circuit_is_not():
    circuits = Circuits(LIMITS)
    circuits.grant(token(1), A, B, now=0)
    circuits.grant(token(2), A, B, now=0)
    circuits.join(token(2), now=0)
    circuits.withdraw(token(1))
    circuits.withdraw(token(2))
    assert not circuits.granted(token(1), now=0)
    assert len(circuits) == 1


def test_a_token_is_of_one_circuit():
    circuits = Circuits(LIMITS)
    circuits.grant(token(1), A, B, now=0)
    with pytest.raises(ChannelClosed):
        circuits.grant(token(1), C, B, now=0)
    circuits.join(token(1), now=0)
    with pytest.raises(ChannelClosed):
        circuits.grant(token(1), C, B, now=0)
