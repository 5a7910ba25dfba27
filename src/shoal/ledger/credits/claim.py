"""That a client asks in the name of a node: signed by the node, for one peer and for a while. Pure.

A client has an identity for the occasion, so that hops cannot tell its sessions apart. Who wants to be served
for what a node of its machine has given says which node that is.
"""

from __future__ import annotations

import msgspec

from shoal.errors import RemoteProtocolError
from shoal.ledger.credits.acknowledgement import (
    Acknowledgement,
    CheckSignature,
    SignBytes,
    check_acknowledgements,
)
from shoal.types import PeerId
from shoal.wire.paying import ShownCredit

CLAIM_CONTEXT = b"shoal credit claim 1\n"
CLAIM_S = 86_400.0
"""How long one holds, at most."""
CLOCKS_APART_S = 300.0

_words = msgspec.msgpack.Decoder(Acknowledgement)


def claim(
    sign: SignBytes, node: PeerId, client: PeerId, words: tuple[Acknowledgement, ...], now: float
) -> ShownCredit:
    """Let ``client`` ask in the name of ``node``, whose key signs."""
    expires = now + CLAIM_S
    signature = sign(_claimed(node, client, expires))
    return ShownCredit(node, expires, signature, tuple(map(msgspec.msgpack.encode, words)))


def check_claim_of(
    shown: ShownCredit, client: PeerId, verify: CheckSignature, now: float
) -> dict[PeerId, int]:
    """What others have signed for the node in whose name ``client`` asks, by who they are.

    Raises:
        RemoteProtocolError: the node has not let it, or no longer; or a word is none.
    """
    node = PeerId(shown.peer)
    if not now < shown.expires <= now + CLAIM_S + CLOCKS_APART_S:
        raise RemoteProtocolError("a claim of credit that does not hold now")
    if not verify(node, _claimed(node, client, shown.expires), shown.signature):
        raise RemoteProtocolError(f"a claim of credit that {node} has not signed")
    return check_acknowledgements(tuple(map(read_word, shown.words)), node, verify)


def read_word(data: bytes) -> Acknowledgement:
    """An acknowledgement as it travels. Raises RemoteProtocolError: it is none."""
    try:
        return _words.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"no acknowledgement: {error}") from error


def _claimed(node: str, client: str, expires: float) -> bytes:
    return CLAIM_CONTEXT + msgspec.msgpack.encode((node, client, expires))
