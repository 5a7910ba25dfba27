"""What is said of giving and taking beside a session: credits without a chain, and vouchers.

Only to who has shown that it knows these messages: a hop that said in its ``Opened`` that it keeps credits,
or in its announcement what it asks; a client that offered to pay in its ``Open``::

    client → Acknowledged    so much have you served us, in all
    client ← PaymentDue      so much is owed; the session may wait until it is paid
    client → Paid            a voucher
    client ← PaymentDue      why it was not taken, if it was not

What is signed is opaque here: :mod:`shoal.ledger` reads it.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from shoal.wire.fields import PeerText, TaggedMessage, Text

PeerSignature = Annotated[bytes, Meta(min_length=64, max_length=64)]
SignedWord = Annotated[bytes, Meta(min_length=1, max_length=512)]
"""What somebody has signed, as MessagePack."""
ChannelId = Annotated[bytes, Meta(min_length=32, max_length=32)]
WireAmount = Annotated[bytes, Meta(max_length=32)]
"""Big-endian, as MessagePack has no numbers of 128 bits."""


class ShownCredit(Struct, frozen=True, array_like=True, gc=False):
    """In whose name a client asks, and what others have signed for that one."""

    peer: PeerText
    """A node of the client's machine."""
    expires: Annotated[float, Meta(ge=0, le=1e12)]
    """Seconds since the epoch."""
    signature: PeerSignature
    """Of that node: the peer that asks may ask in its name, until then."""
    words: Annotated[tuple[SignedWord, ...], Meta(max_length=16)] = ()


class PaymentOffer(Struct, frozen=True, array_like=True, gc=False):
    """How a client will pay for a session."""

    price: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    """For a million tokens of one block, for as long as the session lasts."""
    chain_id: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    contract: Annotated[bytes, Meta(min_length=20, max_length=20)]
    terms: SignedWord
    """Of the payment channel."""
    signature: Annotated[bytes, Meta(min_length=65, max_length=65)]
    """Of who signs its vouchers: this client may have it pay, at this price."""


class Acknowledged(TaggedMessage, frozen=True, tag="acknowledged"):
    """What the hop is owed: signed by the node in whose name its client asked."""

    word: SignedWord


class PaymentDue(TaggedMessage, frozen=True, tag="payment_due"):
    """A hop tells its client what is owed over a payment channel."""

    channel_id: ChannelId
    owed_micro: WireAmount
    """All that was ever served over it, in millionths of the smallest unit."""
    newest: Annotated[bytes, Meta(max_length=512)] = b""
    """The newest voucher that the hop has; empty: none."""
    waiting: bool = False
    """Whether sessions wait for it."""
    refused: Text = ""
    """Why a voucher was not taken."""


class Paid(TaggedMessage, frozen=True, tag="paid"):
    """A voucher: worth all before it."""

    voucher: SignedWord


PayingMessage = Acknowledged | PaymentDue | Paid
