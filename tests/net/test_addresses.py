"""Which announced addresses a peer is willing to dial (hostile.md 17), and what it announces itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import UsageError
from shoal.net.addresses import dialable, expand, host_and_port, split_bootstrap, without

LOOPBACK = ("/ip4/127.0.0.1/tcp/4001",)
HOME = ("/ip4/192.168.1.7/tcp/4001",)
PUBLIC = ("/ip4/8.8.4.4/tcp/4001",)
NOWHERE = [
    "/ip4/0.0.0.0/tcp/1",
    "/ip6/::/tcp/1",
    "/ip4/224.0.0.251/tcp/1",
    "/ip6/ff02::1/tcp/1",
    "/ip4/255.255.255.255/tcp/1",
    "/ip4/240.0.0.1/tcp/1",
    "/ip4/169.254.169.254/tcp/80",
    "/ip4/100.100.100.200/tcp/80",
    "/ip6/fd00:ec2::254/tcp/80",
    "/ip6/fe80::1/tcp/1",
    "/ip6/::ffff:169.254.169.254/tcp/80",
    "/dns4/metadata.google.internal/tcp/80",
    "/dns/localhost/tcp/1",
    "/ip4/8.8.8.8/udp/53",
    "/ip4/8.8.8.8/tcp/0",
    "/ip4/8.8.8.8/tcp/65536",
    "/ip4/8.8.8.8/tcp/١",
    "/ip4/8.8.8.8/tcp/1/ws",
    "/ip4/08.8.8.8/tcp/1",
    "/unix/tmp/x",
    "",
    "/",
    "ip4/8.8.8.8/tcp/1",
]


@pytest.mark.parametrize("address", NOWHERE)
@pytest.mark.parametrize("own", [LOOPBACK, HOME, PUBLIC, ()])
def test_never_dialled(address: str, own: tuple[str, ...]):
    assert not dialable(address, own)


@pytest.mark.parametrize(
    ("address", "own", "allowed"),
    [
        ("/ip4/8.8.8.8/tcp/4001", PUBLIC, True),
        ("/ip4/8.8.8.8/tcp/4001", HOME, True),
        ("/ip6/2001:4860::1/tcp/4001", PUBLIC, True),
        ("/ip4/127.0.0.1/tcp/4001", LOOPBACK, True),
        ("/ip6/::1/tcp/4001", LOOPBACK, True),
        ("/ip4/127.0.0.1/tcp/4001", HOME, False),
        ("/ip6/::ffff:127.0.0.1/tcp/4001", HOME, False),
        ("/ip4/127.0.0.1/tcp/4001", PUBLIC, False),
        ("/ip4/192.168.1.9/tcp/4001", HOME, True),
        ("/ip4/10.0.0.9/tcp/4001", HOME, True),
        ("/ip4/192.168.1.9/tcp/4001", PUBLIC, False),
        ("/ip4/192.168.1.9/tcp/4001", (), False),
    ],
)
def test_loopback_and_private_hosts_make_sense_only_to_those_who_are_there(address, own, allowed):
    assert dialable(address, own) is allowed


@given(st.text(max_size=60))
def test_any_text_is_judged(text: str):
    assert dialable(text, HOME) in (True, False)
    host_and_port(text)


def test_those_that_may_be_dialled_keep_their_order():
    good = ["/ip4/192.168.1.9/tcp/1", "/ip4/8.8.8.8/tcp/1"]
    assert without([good[0], *NOWHERE, good[1]], HOME) == good


def test_every_interface_is_announced_by_its_addresses():
    assert expand("127.0.0.1", 7) == ("/ip4/127.0.0.1/tcp/7",)
    assert expand("::1", 7) == ("/ip6/::1/tcp/7",)
    everywhere = expand("0.0.0.0", 7)
    assert everywhere
    assert all(a.startswith("/ip4/") and a.endswith("/tcp/7") and "0.0.0.0" not in a for a in everywhere)
    # A listener on :: does not take IPv4. A machine without IPv6 has nothing to announce there.
    assert all(a.startswith("/ip6/") and "/::/" not in a and "%" not in a for a in expand("::", 7))


def test_a_bootstrap_address_names_its_peer():
    assert split_bootstrap("/ip4/192.0.2.1/tcp/1/p2p/12D3") == ("/ip4/192.0.2.1/tcp/1", "12D3")
    for text in ("", "/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.1/tcp/1/p2p/", "x/p2p/y", "/a/p2p/b/c"):
        with pytest.raises(UsageError):
            split_bootstrap(text)
