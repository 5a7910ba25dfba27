"""What a node needs to show what it runs on: found and tried before it joins, so that it fails early."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import trio

from shoal.config import Settings
from shoal.net.network import Network
from shoal.node.attestation.answering import AttestationDesk
from shoal.node.attestation.collateral import CollateralSource
from shoal.node.attestation.find import find_quotes
from shoal.node.attestation.quotes import QuoteSource
from shoal.node.server import SpanServer
from shoal.trust.attestation.evidence import Binding
from shoal.types import TeeKind
from shoal.wire.messages import Attest


@dataclass(frozen=True, slots=True)
class Attesting:
    """How a node shows what it runs on."""

    quotes: QuoteSource | None
    """``None`` where it shows nothing."""
    collateral: CollateralSource
    kind: TeeKind | None


async def start_attesting(settings: Settings, quotes: QuoteSource | None = None) -> Attesting:
    """Find this machine's hardware, and have it give one quote, if the settings want that.

    Args:
        quotes: the hardware, where it need not be looked for.

    Raises:
        UsageError: there is none.
        QuoteFailed: it gives none, or what it is verified with cannot be had.
    """
    collateral = CollateralSource(settings.pccs)
    if not settings.attest:
        return Attesting(None, collateral, None)
    return await trio.to_thread.run_sync(partial(try_quotes, quotes or find_quotes(), collateral))


def try_quotes(quotes: QuoteSource, collateral: CollateralSource) -> Attesting:
    """Have the hardware give one quote. Raises QuoteFailed: as :func:`start_attesting`."""
    tried = quotes.quote(bytes(64))
    collateral.beside(tried)
    return Attesting(quotes, collateral, tried.kind)


def attestation_desk(attesting: Attesting, network: Network, server: SpanServer) -> AttestationDesk:
    """What answers who asks, for what ``server`` serves."""

    def bind(nonce: bytes) -> Binding:
        return Binding(network.peer, nonce, server.digest, str(server.engine.numerics), network.noise_key)

    desk = AttestationDesk(attesting.quotes, attesting.collateral, bind, server.has_client)
    server.handlers.register(Attest, desk.take)
    return desk
