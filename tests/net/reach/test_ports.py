"""Dialling from our own port: whatever the host is called, nobody answering is all that can go wrong."""

from __future__ import annotations

import pytest

from shoal.errors import ChannelClosed
from shoal.net.carriers.direct import DirectCarrier
from shoal.net.identity import Identity
from shoal.net.reach.ports import dial_from, dial_only_from

NO_HOSTS = ["2606:4700::1%" + "a" * 70, "a" * 70, "a..b", "2606:4700::1%\udcff"]


@pytest.mark.parametrize("host", NO_HOSTS)
async def test_what_is_no_host_does_not_answer(host: str) -> None:
    local = ("::1" if ":" in host else "127.0.0.1", 0)
    with pytest.raises(OSError, match="is no host"):
        await dial_from(None, host, 1)
    with pytest.raises(OSError, match="is no host"):
        await dial_from(local, host, 1)
    with pytest.raises(OSError, match="is no host"):
        await dial_only_from(local, host, 1)


@pytest.mark.parametrize("host", NO_HOSTS)
async def test_a_peer_at_what_is_no_host_cannot_be_reached(host: str) -> None:
    with pytest.raises(ChannelClosed, match="nobody answers"):
        await DirectCarrier(Identity.ephemeral(), None).dial(host, 1, Identity.ephemeral().peer)
