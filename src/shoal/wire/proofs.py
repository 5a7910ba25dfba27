"""Messages of proofs (:mod:`shoal.trust.proofs`): that a block's products are those of its weights.

Asked after the receipts are in, and before anybody has said which block it is about::

    client → Prove           commit to what each of your blocks gave in this window
    client ← Proved
    client → Prove           and now prove this block of it
    client ← Proved
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from shoal.wire.fields import MAX_TOKENS, Block, SessionBytes, TaggedMessage, Text

MAX_WINDOW_BYTES = 16 << 20
"""Of the rows of one window."""
MAX_PROOF = 64 << 20
"""Bytes of a proof, with all that it is about."""


class Prove(TaggedMessage, frozen=True, tag="prove"):
    """Ask a hop about one window. Its payload: the rows that it was given there, as one step of them."""

    session: SessionBytes
    nonce: SessionBytes
    """Of the receipts that it has signed: what it proves is about these."""
    tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    """Of the session, when they were signed."""
    window: Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
    size: Annotated[int, Meta(ge=0, le=MAX_WINDOW_BYTES)]
    block: Block | None = None
    """The block that is to be proved; ``None``: commit to what all of them gave."""


class Proved(TaggedMessage, frozen=True, tag="proved"):
    """Its payload: 32 bytes for each boundary between the hop's blocks; or a proof
    (:class:`shoal.trust.proofs.block_proof.BlockProof`)."""

    session: SessionBytes
    window: Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
    block: Block | None = None
    size: Annotated[int, Meta(ge=0, le=MAX_PROOF)] = 0
    refused: Text = ""
    """Why there is none."""
    busy: bool = False
    """Whether that is for want of time or room, and not for good."""
