"""What a peer announces of itself, and how addresses are written."""

from __future__ import annotations

import pytest

from shoal.errors import UsageError
from shoal.net.addresses import expand, split_bootstrap


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
