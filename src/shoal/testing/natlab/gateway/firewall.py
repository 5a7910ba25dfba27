"""What a gateway's firewall does, in the words of nftables, and what can be done to it."""

from __future__ import annotations

from pathlib import Path

from shoal.testing.natlab.namespaces import Namespace
from shoal.testing.natlab.programs import run_program
from shoal.testing.natlab.sites import SiteKind

LAN, WAN = "lan0", "wan0"
"""A gateway's interfaces, to its hosts and to the internet."""
LAN_ADDRESS = "192.168.7.1"
"""The same in every home, as with routers of one make."""
ONLY_HOST = "192.168.7.2"
"""The first host's, at a gateway that leads everything to it."""
MAPPED = ("ip", "gateway", "mapped")
"""The map of forwarded ports: protocol and public port to a host's address and port."""

_RULES = """
table ip gateway {{
  map mapped {{
    type inet_proto . inet_service : ipv4_addr . inet_service
    flags dynamic, timeout
    timeout 1h
  }}
  chain arriving {{
    type nat hook prerouting priority dstnat
    iifname "wan0" dnat ip to meta l4proto . th dport map @mapped
    {forward}
  }}
  chain leaving {{
    type nat hook postrouting priority srcnat
    oifname "wan0" masquerade {masquerade}
  }}
  chain for_the_gateway {{
    type filter hook input priority filter
    iifname "wan0" ct state {{ new, invalid }} drop
  }}
  chain for_hosts {{
    type filter hook forward priority filter
    ct state invalid drop
    iifname "wan0" ct state new ct status dnat accept
    iifname "wan0" ct state new drop
    {learn}
  }}
}}
"""
_SIX = """
table ip6 gateway {
  chain for_the_gateway {
    type filter hook input priority filter
    iifname "wan0" meta l4proto { tcp, udp } ct state { new, invalid } drop
  }
  chain for_hosts {
    type filter hook forward priority filter
    ct state invalid drop
    iifname "wan0" ct state new drop
  }
}
"""
_LEARN = """oifname "wan0" ct state new meta l4proto { tcp, udp } \
update @mapped { meta l4proto . th sport : ip saddr . th sport }"""


_FORWARD = f'iifname "wan0" dnat to {ONLY_HOST}'


def firewall(kind: SiteKind) -> str:
    """The rules of a gateway. What nobody inside asked for is dropped without a word.

    Linux keeps a connection's port where it is free, for all destinations alike: that is the cone. A full
    cone forwards to what it has sent from.
    """
    rules = _RULES.format(
        masquerade="fully-random" if kind == "sym" else "",
        learn=_LEARN if kind == "full" else "",
        forward=_FORWARD if kind == "static" else "",
    )
    return rules + (_SIX if kind == "dual" else "")


def set_up_firewall(kind: SiteKind) -> None:
    """Make this thread's namespace a gateway.

    Raises:
        ShoalError: the kernel has not what it needs.
    """
    kernel = Path("/proc/sys/net")
    (kernel / "ipv4/ip_forward").write_text("1")
    if kind == "dual":
        (kernel / "ipv6/conf/all/forwarding").write_text("1")
    run_program(["nft", "-f", "-"], firewall(kind))
    # What belongs to no known connection starts none: after a gateway forgot it, a connection is dead. The
    # file is there once a rule has asked for the tracking of connections.
    (kernel / "netfilter/nf_conntrack_tcp_loose").write_text("0")
    bridged = kernel / "bridge/bridge-nf-call-iptables"
    if bridged.exists():
        bridged.write_text("0")  # hosts at one switch talk without the gateway


def drop_mappings(gateway: Namespace) -> None:
    """Let a gateway forget all connections and forwarded ports, as when it is switched off and on."""
    run_program(gateway.command(["nft", "flush", "map", *MAPPED]))
    for family in ("ipv4", "ipv6"):
        run_program(gateway.command(["conntrack", "--flush", "--family", family]))
