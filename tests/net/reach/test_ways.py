"""Which addresses of a peer are dialled, which way each is, and in what order ways are tried."""

from __future__ import annotations

from ipaddress import ip_network

from shoal.net.carriers.dialer import BEFORE_IROH_S, MEET_ALONE_S, plan_ways
from shoal.net.dialable import LocalNetworks
from shoal.net.reach.iroh_addresses import IrohTarget
from shoal.net.reach.relay_session import RelayAddress
from shoal.net.reach.ways import Target, direct_targets, fit, relays_of, router_host
from shoal.types import PeerAddress, PeerId

PEER, RELAY = PeerId("peer"), PeerId("relay")
PUBLIC = "/ip4/9.9.9.9/tcp/4002"
MAPPED = "/ip4/198.41.0.4/tcp/30001"
PRIVATE = "/ip4/192.168.7.2/tcp/4002"
CIRCUIT = "/ip4/1.1.1.1/tcp/4002/p2p/relay/p2p-circuit"
OWN_ROUTER, OTHER_ROUTER = "198.41.0.4", "193.0.14.129"

HERE = LocalNetworks((ip_network("192.168.0.0/16"),), False, (ip_network("192.168.7.0/24"),))
"""On 192.168.7.0/24, in a private swarm, whose members may be sent through the whole range."""
SITE = LocalNetworks((ip_network("192.168.0.0/16"),), False, (ip_network("192.168.1.0/24"),))
"""As ``HERE``, on another network of the range."""
AWAY = LocalNetworks()


def at(*direct: str) -> PeerAddress:
    return PeerAddress(PEER, (), direct)


def ways(address: PeerAddress, nearby: LocalNetworks, ours: str | None) -> list[str]:
    return [target.way for target in direct_targets(address, nearby, ours)]


def test_a_public_address_is_dialled_from_everywhere():
    assert ways(at(PUBLIC), AWAY, None) == ["public"]
    assert direct_targets(at(PUBLIC), AWAY, None) == [Target("9.9.9.9", 4002, "public")]


def test_a_public_address_behind_private_ones_is_what_a_router_gives_the_peer():
    assert ways(at(PRIVATE, MAPPED), AWAY, None) == ["mapped"]
    assert ways(at(PUBLIC, PRIVATE), AWAY, None) == ["public"]
    assert router_host((PRIVATE, MAPPED)) == OWN_ROUTER
    assert router_host((PUBLIC, PRIVATE)) is None


def test_a_private_address_is_dialled_first_where_one_router_speaks_for_both():
    assert ways(at(PRIVATE, MAPPED), HERE, OWN_ROUTER) == ["lan", "mapped"]
    assert ways(at(PRIVATE, MAPPED), SITE, OWN_ROUTER) == ["lan", "mapped"]


def test_a_private_address_behind_another_router_is_somebody_else_here():
    assert ways(at(PRIVATE, MAPPED), HERE, OTHER_ROUTER) == ["mapped"]


def test_who_says_that_it_is_behind_a_router_is_dialled_only_on_a_network_of_our_interfaces():
    assert ways(at(PRIVATE, CIRCUIT), SITE, None) == []
    assert ways(at(PRIVATE, CIRCUIT), HERE, None) == ["lan"]


def test_sites_without_routers_between_them_reach_each_other_as_ever():
    assert ways(at(PRIVATE), SITE, None) == ["lan"]
    assert ways(at(PRIVATE), AWAY, None) == []


def test_the_same_rule_holds_for_libp2p_addresses():
    address = PeerAddress(PEER, ("/ip4/192.168.7.2/tcp/4001",), (PRIVATE, MAPPED))
    assert fit(address, address.libp2p, HERE, OTHER_ROUTER) == ()
    assert fit(address, address.libp2p, HERE, OWN_ROUTER) == address.libp2p


def test_places_at_relays_are_read_from_circuit_addresses_and_nothing_else_is():
    assert relays_of(at(PUBLIC, CIRCUIT)) == [RelayAddress(RELAY, "1.1.1.1", 4002)]
    for nonsense in (
        "/p2p-circuit",
        "/p2p/relay/p2p-circuit",
        "/ip4/1.1.1.1/tcp/4002/p2p-circuit",
        "/ip4/1.1.1.1/tcp/4002/p2p//p2p-circuit",
        "/ip4/1.1.1.1/udp/4002/p2p/relay/p2p-circuit",
        "/ip4/1.1.1.1/tcp/0/p2p/relay/p2p-circuit",
        CIRCUIT + "/x",
    ):
        assert relays_of(at(nonsense)) == []
        assert direct_targets(at(nonsense), AWAY, None) == []
    assert len(relays_of(at(*[CIRCUIT] * 99))) == 4


LAN, OPEN, ROUTED = Target("a", 1, "lan"), Target("b", 2, "public"), Target("c", 3, "mapped")


def order(*targets: Target, **known: object) -> list[object]:
    settings: dict[str, object] = {"called": True, "nat": "cone", "worked": None} | known
    return [wanted for wanted, _ in plan_ways(targets, **settings)]  # pyright: ignore[reportArgumentType]


def test_ways_are_tried_in_order_lan_public_mapped_met_relayed():
    assert order(LAN, OPEN, ROUTED) == [LAN, OPEN, ROUTED, "punched", "relayed"]
    assert order(ROUTED, nat="none") == [ROUTED, "reversed", "relayed"]


def test_without_a_relay_there_is_nothing_but_to_dial():
    assert order(LAN, OPEN, called=False) == [LAN, OPEN]


def test_a_meeting_begins_together_with_a_mapped_address_and_is_alone_before_a_circuit():
    plan = plan_ways([ROUTED], called=True, nat="cone", worked=None)
    assert plan[0] == (ROUTED, 0.0)
    assert plan[1] == ("punched", MEET_ALONE_S)


def test_a_meeting_begins_together_with_an_ipv6_address_that_may_be_behind_a_firewall():
    six = Target("2a10:20::1", 4, "public")
    assert plan_ways([six], called=True, nat="cone", worked=None)[0] == (six, 0.0)
    assert plan_ways([six], called=False, nat="cone", worked=None)[0][1] > 0


def test_behind_a_symmetric_router_no_meeting_is_tried():
    assert order(ROUTED, nat="symmetric") == [ROUTED, "relayed"]


def test_what_worked_lately_is_tried_sooner():
    assert order(LAN, ROUTED, worked="punched") == ["punched", LAN, ROUTED, "relayed"]
    relayed = plan_ways([ROUTED], called=True, nat="cone", worked="relayed")
    assert relayed[1][0] == "punched"
    assert relayed[1][1] < MEET_ALONE_S


def test_iroh_is_the_last_way_and_begins_when_the_others_have_had_their_time():
    iroh = IrohTarget(("9.9.9.9:4002",), None)
    assert order(LAN, ROUTED, iroh=iroh) == [LAN, ROUTED, "punched", "relayed", iroh]
    assert order(called=False, iroh=iroh) == [iroh]
    alone = plan_ways([LAN], called=False, nat="cone", worked=None, iroh=iroh)
    assert alone[0] == (LAN, BEFORE_IROH_S)
    # Who looks for a way with nobody in the middle does not take it: it may go over a relay.
    assert order(LAN, relay=False, iroh=iroh) == [LAN, "punched"]
