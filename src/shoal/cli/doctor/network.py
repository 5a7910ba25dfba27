"""Can this machine reach others, and others it: ports, multicast, hub, swarms."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio

from shoal.cli.doctor.finding import Finding
from shoal.config import Settings
from shoal.net.addresses import host_and_port, listening_hosts
from shoal.option_values import parse_public_address
from shoal.swarm import membership
from shoal.swarm.local_nodes import running_nodes

if TYPE_CHECKING:
    from shoal.cli.enter import Onlooker
    from shoal.net.network import ReachView

DIAL_WITHIN_S = 2.0
ASKED_WITHIN_S = 5.0


def ports(settings: Settings) -> Finding:
    wanted = [port for port in (settings.port, settings.direct_port) if port]
    if not wanted:
        return Finding("ports", "ok", "free ports are picked")
    for host, port in itertools.product(listening_hosts(settings.host), wanted):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if probe.family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if running_nodes(settings.paths.nodes):
                    return Finding("ports", "note", f"{port} is in use, and a node runs here", "shoal status")
                return Finding(
                    "ports",
                    "fail",
                    f"{port}: {error.strerror}",
                    "choose another with --port, or 0 for a free one",
                )
    return Finding("ports", "ok", ", ".join(map(str, wanted)))


def multicast(settings: Settings) -> Finding:
    if not settings.mdns:
        return Finding("mdns", "note", "off: peers are found through invites only", "set mdns = true")
    group = socket.inet_aton("224.0.0.251") + socket.inet_aton("0.0.0.0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        except OSError as error:
            fix = "use an invite with addresses: shoal invite, on a machine that serves"
            return Finding("mdns", "note", f"no multicast here ({error.strerror})", fix)
    return Finding("mdns", "ok", "peers on the local network are found automatically")


def iroh(settings: Settings) -> Finding:
    if not settings.iroh:
        return Finding("iroh", "ok", "off")
    import_module("shoal.net.iroh.library")  # raises what is to be done where the extra is not here
    relays = ", ".join(settings.iroh_relay) or "no relay: peers are dialled at their UDP ports alone"
    return Finding("iroh", "ok", f"on; {relays}")


def hub(_: Settings) -> Finding:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "note", "offline (HF_HUB_OFFLINE): only the catalogue and local folders work")
    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
    except ValueError as error:
        return Finding("hub", "note", f"HF_ENDPOINT is {constants.ENDPOINT}: {error}", "unset HF_ENDPOINT")
    if answers(address.hostname or "", port):
        return Finding("hub", "ok", constants.ENDPOINT)
    return Finding(
        "hub", "note", f"{constants.ENDPOINT} does not answer: only the catalogue and local folders work"
    )


def swarms(settings: Settings) -> Finding:
    folder = settings.paths.swarms
    kept = [membership.load(folder, name) for name in membership.names(folder)]
    if not kept:
        return Finding(
            "swarms",
            "note",
            "none yet; the first node creates one named 'home'",
            "shoal up, or shoal join",
        )
    silent = [m.name for m in kept if m.bootstrap and not _any_answers(m.bootstrap)]
    text = ", ".join(m.name for m in kept)
    if silent:
        fix = "start a node there, or ask a member for a new invite"
        return Finding("swarms", "note", f"{text}; no answer from the addresses of {', '.join(silent)}", fix)
    return Finding("swarms", "ok", text)


def router(settings: Settings) -> Finding:
    """What kind of router is between this machine and the peers of its swarm, and what that means."""
    from shoal.cli.enter import looking

    folder = settings.paths.swarms
    if (
        settings.swarm not in membership.names(folder)
        or not membership.load(folder, settings.swarm).bootstrap
    ):
        return Finding("router", "ok", f"no peer of swarm {settings.swarm!r} to ask how it sees this machine")

    async def ask(swarm: Onlooker) -> ReachView:
        with trio.move_on_after(ASKED_WITHIN_S):
            return await swarm.network.observe()
        return swarm.network.reach()

    return router_finding(looking(settings, ask), settings.public_address)


def router_finding(seen: ReachView, public_address: Sequence[str] = ()) -> Finding:
    """How a machine that is seen so can be reached, and what would make it better.

    Args:
        public_address: where its nodes say that they are reached, beside their interfaces' addresses.
    """
    found = _forwarded_finding(seen, public_address) if public_address else _router_finding(seen)
    by_six = {"open": "; peers come in by IPv6", "closed": "; no peer has come in by IPv6 yet", "none": ""}
    return replace(found, detail=found.detail + by_six[seen.six])


def _forwarded_finding(seen: ReachView, public_address: Sequence[str]) -> Finding:
    said, at = ", ".join(public_address), host_and_port(seen.seen)
    hosts = [parse_public_address(text)[0] for text in public_address]
    if at is not None and at[0] not in hosts and any(":" not in host for host in hosts):
        return Finding(
            "router",
            "note",
            f"public_address is {said}, but peers see this machine at {at[0]}",
            "set public_address to the address at which the ports of a node here are reached",
        )
    return Finding("router", "ok", f"peers reach a node here at {said}, as public_address says")


def _router_finding(seen: ReachView) -> Finding:
    if seen.public or seen.nat == "none":
        return Finding("router", "ok", "none: this machine has a public address")
    if seen.nat == "cone":
        return Finding(
            "router",
            "ok",
            f"maps every port alike (cone), as {seen.seen}: peers meet this machine through it"
            if seen.seen
            else "a firewall that lets in whom this machine dials: peers meet it through that",
        )
    if seen.nat == "symmetric":
        return Finding(
            "router",
            "note",
            "maps a port anew for every peer (symmetric): peers behind other routers need a relay",
            "switch on UPnP in the router, or forward the ports that --port and --direct-port fix and give "
            "the router's address as --public-address, or start a public node",
        )
    return Finding(
        "router",
        "note",
        "unknown: fewer than two public peers on different networks say how they see this machine",
        "start a node with a public address, or forward the ports that --port and --direct-port of one fix "
        "and give the router's address as --public-address: it is then a relay for the others",
    )


def answers(host: str, port: int) -> bool:
    """Whether something takes a TCP connection there within two seconds."""
    try:
        with socket.create_connection((host, port), timeout=DIAL_WITHIN_S):
            return True
    except (OSError, OverflowError, UnicodeError):  # no such port, no such name
        return False


def _any_answers(addresses: Iterable[str]) -> bool:
    targets: list[tuple[str, int]] = []
    for address in addresses:
        _, kind, host, transport, port, *_ = [*address.split("/"), "", "", "", "", ""]
        if kind in ("ip4", "ip6", "dns", "dns4", "dns6") and transport == "tcp" and port.isdecimal():
            targets.append((host, int(port)))
    return any(answers(host, port) for host, port in targets)
